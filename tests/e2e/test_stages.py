"""The stages one after another, each a command: from weights to a measured report."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Runner
from saten_runtime.bundle.folder import Bundle

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]

BUNDLES = ("dense-fp32", "saten-fp32", "saten-int8")
BENCH = ("-s", 8, "--min-time", 0.01, "--rounds", 2, "--json")


@dataclass(frozen=True)
class Work:
    """Where the stages wrote, and what each said."""

    folder: Path
    done: dict[str, Done]

    def bundle(self, name: str) -> Path:
        return self.folder / "bundles" / name

    @property
    def bundles(self) -> list[Path]:
        return [self.bundle(name) for name in BUNDLES]


@pytest.fixture(scope="module")
def work(saten_edge: Command, tiny_bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Every stage, once, in order; a stage that fails stops the rest."""
    folder = tmp_path_factory.mktemp("work")
    result = Work(folder, {})
    student, tuned, bundles = folder / "student", folder / "tuned", result.bundles
    budget = ("--budget", 0.4, "--group", 8, "--rounds", 1, "--share", 0.6)
    stages: dict[str, tuple[Any, ...]] = {
        "compress": ("compress", tiny_bert, "-o", student, *budget, "--calibration", data, "--texts", 32, "--json"),
        "finetune": (
            *("finetune", student, "-o", tuned, "--teacher", tiny_bert, "--data", data),
            *("--steps", 3, "--batch-size", 8, "--max-length", 16),
        ),
        "export dense-fp32": ("export", tiny_bert, "-o", bundles[0]),
        "export saten-fp32": ("export", tuned, "-o", bundles[1]),
        "export saten-int8": ("export", tuned, "-o", bundles[2], "--precision", "int8", "--quiet"),
        "validate": ("validate", bundles[1], "--json"),
        "bench": ("bench", *bundles, "--baseline", bundles[0], *BENCH, "-o", folder / "bench"),
        "eval": ("eval", *bundles, "--data", data, "--reference", bundles[0], "-o", folder / "eval.json", "--json"),
        "report": (
            *("report", *bundles, "--bench", folder / "bench" / "bench.json", "--eval", folder / "eval.json"),
            *("-o", folder / "report.html", "--format", "json"),
        ),
    }
    for name, arguments in stages.items():
        done = saten_edge(*arguments)
        # 4: measured, but on a machine too busy to be believed
        assert done.returncode in ((0, 4) if name == "bench" else (0,)), (name, done.stderr)
        result.done[name] = done
    return result


# --- each stage ----------------------------------------------------------------------------------------------------


def test_compress(work: Work) -> None:
    rows = json.loads(work.done["compress"].stdout)["layers"]
    assert len(rows) == 14
    stored, dense = sum(row["bytes"] for row in rows), sum(row["dense_bytes"] for row in rows)
    assert stored <= 0.4 * dense
    assert {row["kind"] for row in rows} == {"linear", "embedding"}
    names = {path.name for path in (work.folder / "student").iterdir()}
    assert names >= {"config.json", "model.safetensors", "saten_layers.json", "tokenizer.json", "modules.json"}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_finetune(work: Work) -> None:
    assert work.done["finetune"].stdout.startswith("3 steps, loss ")
    history = json.loads((work.folder / "tuned" / "metrics.json").read_text())["history"]
    assert [step["step"] for step in history] == [1, 2, 3]
    before, after = ((work.folder / name / "model.safetensors").read_bytes() for name in ("student", "tuned"))
    assert len(before) == len(after)
    assert before != after


@pytest.mark.parametrize("name", BUNDLES)
def test_export(name: str, work: Work) -> None:
    bundle = Bundle.open(work.bundle(name))
    assert bundle.name == name
    assert bundle.manifest.precision == name.partition("-")[2]
    assert work.done[f"export {name}"].stdout.startswith(
        f"{bundle.path}: {bundle.model_bytes:,} bytes of graph and weights, {bundle.size_bytes:,} in all\n"
    )
    assert len(bundle.manifest.layers) == (0 if name.startswith("dense") else 14)


def test_the_sizes_are_in_order(work: Work) -> None:
    dense, saten, int8 = (Bundle.open(path).model_bytes for path in work.bundles)
    assert int8 < saten < dense


def test_validate(work: Work, saten_edge: Command) -> None:
    rows = json.loads(work.done["validate"].stdout)
    report = json.loads((work.bundle("saten-fp32") / "validation" / "report.json").read_text())
    assert rows == report["comparisons"]
    table = saten_edge("validate", work.bundle("saten-int8"))
    assert table.returncode == 0
    assert len(table.stdout.splitlines()) == 1 + len(rows)


def test_bench(work: Work) -> None:
    result = json.loads(work.done["bench"].stdout)
    assert json.loads((work.folder / "bench" / "bench.json").read_text()) == result
    assert work.done["bench"].returncode == (0 if result["verdict"]["valid"] else 4)
    assert [cell["bundle"] for cell in result["cells"]] == list(BUNDLES)
    assert all(cell["failed"] is None and cell["p50_ms"] > 0 for cell in result["cells"])
    assert [cell["ratio"] is not None for cell in result["cells"]] == [False, True, True]
    assert (work.folder / "bench" / "samples.jsonl").stat().st_size > 0


def test_eval(work: Work) -> None:
    result = json.loads(work.done["eval"].stdout)
    assert json.loads((work.folder / "eval.json").read_text()) == result
    metrics = {row["bundle"]: row["metrics"] for row in result["rows"]}
    assert set(metrics) == set(BUNDLES)
    assert all(0 <= value <= 1 for row in metrics.values() for value in (row["recall_at_1"], row["recall_at_10"]))
    assert metrics["dense-fp32"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert metrics["saten-fp32"]["cosine"] < 1 - 1e-6


def test_report(work: Work) -> None:
    rows = json.loads(work.done["report"].stdout)
    assert [row["name"] for row in rows] == list(BUNDLES)
    for row, path in zip(rows, work.bundles, strict=True):
        assert row["bytes"] == Bundle.open(path).size_bytes
        assert set(row["p50_ms"]) == {"8"}
    page = (work.folder / "report.html").read_text()
    assert all(name in page for name in BUNDLES)
    assert "http://" not in page.replace("http://www.w3.org/", "")


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
def test_report_in_other_forms(form: str, work: Work, saten_edge: Command) -> None:
    done = saten_edge("report", *work.bundles, "--eval", work.folder / "eval.json", "--format", form)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in BUNDLES)
    if form == "csv":
        assert len(list(csv.reader(io.StringIO(done.stdout)))) == 1 + len(BUNDLES)


def test_stdout_is_data_and_stderr_talk(work: Work) -> None:
    for name, done in work.done.items():
        assert "Traceback" not in done.stderr, name
        assert "Warning" not in done.stderr, name
        assert "\x1b" not in done.stdout + done.stderr, name  # no colours and no bars off a terminal
    assert work.done["export dense-fp32"].stderr.startswith("export dense-fp32\n")
    assert work.done["export saten-int8"].stderr == ""
    assert work.done["validate"].stderr == ""


def test_nothing_half_written_is_left(work: Work) -> None:
    assert {path.name for path in work.folder.iterdir()} == {
        *("student", "tuned", "bundles", "bench", "eval.json", "report.html")
    }
    assert {path.name for path in (work.folder / "bundles").iterdir()} == set(BUNDLES)
    assert not list(work.folder.rglob("*.partial*"))


def test_a_second_run_is_refused_and_changes_nothing(work: Work, saten_edge: Command) -> None:
    before = (work.bundle("saten-fp32") / "saten_edge.json").read_bytes()
    done = saten_edge("export", work.folder / "tuned", "-o", work.bundle("saten-fp32"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("saten-edge: error: ")
    assert "already exists" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (work.bundle("saten-fp32") / "saten_edge.json").read_bytes() == before


# --- on the device ---------------------------------------------------------------------------------------------------


def test_predict_without_torch(work: Work, saten_run: Command, device_env: dict[str, str], texts: list[str]) -> None:
    for path in work.bundles:
        done = saten_run("predict", path, *texts[:3], env=device_env)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["text"] for row in rows] == texts[:3]
        vectors = np.array([row["embedding"] for row in rows])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_array_equal(vectors.astype(np.float32), Runner.load(path).predict(texts[:3]))


def test_predictions_are_torchs(work: Work, texts: list[str]) -> None:
    import torch

    from saten_edge.checkpoints.models import load_model

    loaded = load_model(work.folder / "tuned")
    with torch.no_grad():
        batch = loaded.encode(texts[:8])
        wanted = loaded.pool(loaded.model(**batch).last_hidden_state, batch["attention_mask"]).numpy()
    got, other = (Runner.load(work.bundle(name)).predict(texts[:8]) for name in ("saten-fp32", "dense-fp32"))
    bound = Bundle.open(work.bundle("saten-fp32")).manifest.tolerance["relative"]
    assert np.abs(got - wanted).max() <= bound
    assert not np.abs(other - wanted).max() <= bound
    assert not np.abs(got[::-1] - wanted).max() <= bound


def test_bench_without_torch(work: Work, saten_run: Command, device_env: dict[str, str]) -> None:
    done = saten_run("bench", work.bundle("saten-fp32"), work.bundle("saten-int8"), *BENCH, env=device_env)
    result = json.loads(done.stdout)
    assert done.returncode == (0 if result["verdict"]["valid"] else 4), done.stderr
    assert [cell["failed"] for cell in result["cells"]] == [None, None]


def test_eval_without_torch(work: Work, saten_run: Command, device_env: dict[str, str], data: Path) -> None:
    done = saten_run(*("eval", *work.bundles, "--data", data, "--reference", work.bundles[0], "--json"), env=device_env)
    assert done.returncode == 0, done.stderr
    here = {row["bundle"]: row["metrics"] for row in json.loads(work.done["eval"].stdout)["rows"]}
    assert {row["bundle"]: row["metrics"] for row in json.loads(done.stdout)["rows"]} == here


def test_doctor_without_torch(work: Work, saten_run: Command, device_env: dict[str, str]) -> None:
    done = saten_run("doctor", work.bundle("saten-int8"), "--json", env=device_env)
    status = {check["name"]: check["status"] for check in json.loads(done.stdout)}
    assert status["run"] == "OK"
    assert done.returncode == (2 if "FAIL" in status.values() else 0)


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A running `saten-edge` in a process group of its own, as a shell starts it; none is left behind."""
    command = [sys.executable, "-m", "saten_edge", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


# CPython ends by the signal itself, which a shell shows as 130 too, when the interrupt met code inside `exec`.
INTERRUPTED = (130, -signal.SIGINT)
# An interrupt that arrives while some library's `__del__` runs is dropped by Python, and the command goes on.
TRIES = 4


def press_ctrl_c(process: subprocess.Popen[str]) -> bool:
    """What a terminal does; False where Python dropped the interrupt, else the command ended as interrupted."""
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    if process.returncode == 0 and "Exception ignored in" in stderr:
        return False
    assert process.returncode in INTERRUPTED
    assert stdout == ""
    assert "Traceback" not in stderr
    return True


def interrupted(when: Callable[[], object], out: Path, *arguments: object) -> bool:
    """Press Ctrl-C as soon as `when()` holds, anew where the interrupt was dropped and `out` written."""
    for _ in range(TRIES):
        with started(*arguments) as process:
            wait_until(when)
            time.sleep(0.5)
            if press_ctrl_c(process):
                return True
        shutil.rmtree(out)
    return False


def test_ctrl_c_while_tracing_leaves_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert interrupted(lambda: list(tmp_path.glob(".bundle.partial-*")), out, "export", tiny_bert, "-o", out)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_writing_keeps_the_old_bundle(work: Work, tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(work.bundle("saten-fp32"), out)
    with started("export", tiny_bert, "-o", out, "--overwrite") as process:
        wait_until(lambda: list(tmp_path.glob(".bundle.partial-*/model.onnx*")))
        assert press_ctrl_c(process)
    assert list(tmp_path.iterdir()) == [out]
    assert Bundle.open(out).name == "saten-fp32"
