"""Ctrl-C at any moment ends a command within two seconds, keeps what was measured, and `--resume` makes it whole."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saten_runtime.records.folders import MARK
from saten_runtime.records.jsonl import read_lines

SEED = 20240607
# CPython ends by the signal itself where the interrupt met an import.
INTERRUPTED = (130, -signal.SIGINT)
PATIENCE_S = 120.0


def limit_s() -> float:
    """Two seconds on a quiet machine; on a busy one, as much longer as it takes to get a turn."""
    return 2.0 * max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


@contextlib.contextmanager
def started(module: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, as a shell starts it; none is left behind."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(command, text=True, start_new_session=True, env=environment, **pipes)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def press(process: subprocess.Popen[str], *, whole_group: bool = True) -> str:
    """What a terminal does, how long it takes, and what the command said."""
    pressed = time.monotonic()
    allowed = limit_s()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    taken = time.monotonic() - pressed
    assert taken <= allowed, f"took {taken:.1f} s of {allowed:.1f}"
    assert "Traceback" not in stderr or is_of_the_start(stderr), stderr[-1000:]
    return stderr


def is_of_the_start(stderr: str) -> bool:
    """Whether Python was interrupted before it came to our `main`, which says in one line that it was."""
    ours = re.findall(r'File "[^"]*/saten_\w+/([\w/]+)\.py"', stderr)
    return stderr.endswith("KeyboardInterrupt\n") and set(ours) <= {"__init__", "registration"}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def is_running(process: subprocess.Popen[str]) -> bool:
    """Whether its own code runs: Python has set its handler of Ctrl-C."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    return caught is not None and bool(int(caught[1], 16) & 1 << (signal.SIGINT - 1))


def bench_arguments(bundle: Path, out: Path) -> list[object]:
    plan = ("-s", "4,8", "--rounds", "4", "--min-time", "0.2", "--no-floor")
    return ["bench", bundle, *plan, "-o", out, "--quiet"]


def cells(out: Path) -> dict[tuple[Any, ...], list[int]]:
    """What was measured: samples by bundle, size and round."""
    rows = read_lines(out / "samples.jsonl")
    return {(row["bundle"], row["tokens"], row["round"]): row["samples_ns"] for row in rows if row["kind"] == "samples"}


@pytest.fixture(scope="module")
def whole(lookup_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> set[tuple[Any, ...]]:
    """The cells of a benchmark that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with started("saten_runtime", *bench_arguments(lookup_bundle, out)) as process:
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (0, 4)
    return set(cells(out))


@pytest.mark.parametrize(
    ("file", "expected"),
    [("saten_edge/__init__", True), ("lib/runpy", True), ("saten_edge/stages", False), ("saten_runtime/cli", False)],
)
def test_only_the_start_may_have_a_traceback(file: str, expected: bool) -> None:
    """The twin of what `press` looks at."""
    trace = (
        f'Traceback:\n  File "/a/saten_edge/__init__.py", line 1\n  File "/a/{file}.py", line 7\nKeyboardInterrupt\n'
    )
    assert is_of_the_start(trace) == expected
    assert not is_of_the_start(trace.replace("KeyboardInterrupt", "KeyError: 1"))


MOMENTS = [random.Random(SEED + k).uniform(0.0, 6.0) for k in range(12)]


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=[pytest.mark.slow] if k >= 3 else []) for k, moment in enumerate(MOMENTS)]
)
def test_an_interrupted_benchmark_keeps_its_cells_and_resumes(
    moment: float, lookup_bundle: Path, whole: set[tuple[Any, ...]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with started("saten_runtime", *bench_arguments(lookup_bundle, out)) as process:
        wait_for(lambda: is_running(process), process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is None:
            press(process)
            assert process.returncode in INTERRUPTED
    kept = cells(out) if (out / "samples.jsonl").exists() else {}
    assert set(kept) <= whole
    if (out / "bench.json").exists() and set(kept) != whole:
        assert json.loads((out / "bench.json").read_text())["verdict"]["reasons"][0] == "interrupted"
    with started("saten_runtime", *bench_arguments(lookup_bundle, out), "--resume") as process:
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (0, 4)
    resumed = cells(out)
    assert set(resumed) == whole
    assert {key: resumed[key] for key in kept} == kept
    assert json.loads((out / "bench.json").read_text())["verdict"]["reasons"][:1] != ["interrupted"]
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "samples.jsonl"]


@pytest.fixture(scope="module")
def data(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("moment", [random.Random(SEED + k).uniform(0.0, 12.0) for k in range(4)])
def test_an_interrupted_training_resumes_to_the_same_weights(
    moment: float, tiny_saten: Path, tiny_bert: Path, data: Path, tmp_path: Path
) -> None:
    """Nothing half-written is at the output, and it goes on to what an uninterrupted one gives."""
    common = ("--teacher", tiny_bert, "--data", data, "--max-length", 16, "--fp32", "--batch-size", 8)
    steps = ("--steps", 60, "--save-every", 10, "--quiet")
    outs = [tmp_path / "cut" / "out", tmp_path / "uncut" / "out"]
    with started("saten_edge", "finetune", tiny_saten, "-o", outs[0], *common, *steps) as process:
        wait_for(lambda: is_running(process), process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is None:
            press(process)
    if not outs[0].exists():
        assert [path.name for path in outs[0].parent.glob("*")] in ([], [".out.training"])
        with started("saten_edge", "finetune", tiny_saten, "-o", outs[0], *common, *steps, "--resume") as process:
            assert process.communicate(timeout=PATIENCE_S)[1] == ""
    with started("saten_edge", "finetune", tiny_saten, "-o", outs[1], *common, *steps) as process:
        process.communicate(timeout=PATIENCE_S)
    weights = [(out / "model.safetensors").read_bytes() for out in outs]
    assert weights[0] == weights[1]
    assert [path.name for path in outs[0].parent.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", [random.Random(SEED + k).uniform(0.0, 40.0) for k in range(5)])
def test_an_interrupted_demo_leaves_only_what_is_whole(moment: float, tiny_bert: Path, tmp_path: Path) -> None:
    """What it leaves is whole: folders appear complete, and no report is there before its numbers are."""
    out = tmp_path / "demo"
    arguments = ("demo", "-o", out, "--model", tiny_bert, "--steps", 500, "--rounds", 1, "--quiet")
    with started("saten_edge", *arguments) as process:
        wait_for(lambda: is_running(process), process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is None:
            press(process)
            assert process.returncode in INTERRUPTED
            assert not (out / "report.html").exists()
    assert (out / "demo.json").is_file() or not out.exists()  # the next one takes the folder for its own
    assert not [path for path in out.rglob("*") if ".partial-" in path.name]
    for config in out.glob("*/config.json"):
        json.loads(config.read_text())


@pytest.mark.parametrize("command", ["export", pytest.param("compress", marks=[pytest.mark.slow])])
@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=[pytest.mark.slow] if k else []) for k, m in enumerate((6.0, 1.0, 3.0, 8.0))]
)
def test_an_interrupted_command_says_one_line_and_leaves_nothing(
    command: str, moment: float, tiny_bert: Path, tmp_path: Path
) -> None:
    """Not even the folder around its output, for which the same command would be refused."""
    out = tmp_path / "new" / "out"
    with started("saten_edge", command, tiny_bert, "-o", out, "--quiet") as process:
        wait_for(lambda: is_running(process), process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is None:
            stderr = press(process)
            assert process.returncode in INTERRUPTED
            assert re.fullmatch(r"saten-edge: interrupted(; --resume goes on .*)?\n", stderr) or is_of_the_start(stderr)
            left = [path for path in (tmp_path / "new").glob("*") if path != out or not (out / MARK).is_file()]
            assert [path.name for path in left] == [".out.compression"] * ("--resume" in stderr)


@pytest.fixture(scope="module")
def exported(tiny_bundle: Callable[[str], Path]) -> Path:
    """A bundle that can be served: it carries what its page compares with."""
    return tiny_bundle("dense-fp32")


@pytest.mark.slow
@pytest.mark.parametrize("moment", [random.Random(SEED + k).uniform(0.0, 6.0) for k in range(4)])
def test_an_interrupted_server_writes_nothing(moment: float, exported: Path, tmp_path: Path) -> None:
    """Before a page was opened; what came from one is kept, see tests/saten_edge/phone/test_server.py."""
    arguments = ("phone", exported, "-o", tmp_path / "out", "--host", "127.0.0.1", "-s", "8", "--quiet")
    with started("saten_edge", *arguments) as process:
        wait_for(lambda: is_running(process), process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is not None:
            assert "onnxruntime-web" in process.communicate()[1]
            pytest.skip("onnxruntime-web is not fetched: make web")
        press(process)
        assert process.returncode in (0, *INTERRUPTED)
    assert not (tmp_path / "out").exists()
