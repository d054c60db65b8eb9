"""`saten-edge demo` from end to end, on a tiny model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import UsageError

Command = Callable[..., subprocess.CompletedProcess[str]]

BUNDLES = ["dense-fp32", "dense-int8", "saten-int8", "saten-int4"]
KEYS = ["name", "bytes", "p50_ms", "peak_anon_mib", "recall_at_1", "recall_at_10", "cosine"]
WRITTEN = {
    *("demo.json", "train.jsonl", "held_out.jsonl", "compressed", "finetuned", "bundles", "bench", "eval.json"),
    *("report.html", "summary.json"),
}


STALE = "left-by-an-earlier-run"


@dataclass(frozen=True)
class Demo:
    out: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def demo(saten_edge: Command, long_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The command's result; it found the folder of an earlier demo in its place."""
    out = tmp_path_factory.mktemp("demo") / "demo-out"
    for folder in ("compressed", "finetuned", "bundles/saten-int8", "bench"):
        (out / folder).mkdir(parents=True)
        if folder != "bench":
            (out / folder / STALE).touch()
    for name in ("demo.json", "train.jsonl", "bench/bench.json", "eval.json", "report.html", "summary.json"):
        (out / name).write_text(json.dumps(STALE))
    settings = ("--steps", 2, "--rounds", 2, "--budget", 0.5, "--tables", 0.5)
    done = saten_edge("demo", "-o", out, "--model", long_bert, *settings)
    assert done.returncode == 0, done.stderr
    return Demo(out, done)


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_it_writes(demo: Demo) -> None:
    with_kernels = {"bench-operators"}
    assert {path.name for path in demo.out.iterdir()} - with_kernels == WRITTEN
    assert {path.name for path in (demo.out / "bundles").iterdir()} == set(BUNDLES)
    assert [path.name for path in demo.out.parent.iterdir()] == [demo.out.name]


def test_the_summary(demo: Demo) -> None:
    summary = json.loads((demo.out / "summary.json").read_text())
    assert [row["name"] for row in summary if row["name"] in BUNDLES] == BUNDLES
    for row in summary:
        assert list(row) == KEYS
        assert set(row["p50_ms"]) == {"32", "128"}
        assert 0 < row["p50_ms"]["32"] < row["p50_ms"]["128"]
        assert row["bytes"] == Bundle.open(demo.out / "bundles" / row["name"].partition(" @ ")[0]).size_bytes
        assert row["peak_anon_mib"] > 1
        if row["name"] not in BUNDLES:
            continue  # the fast one again, without the kernels: measured, not asked again
        assert 0 <= row["recall_at_1"] <= row["recall_at_10"] <= 1
        assert -1 <= row["cosine"] <= 1 + 1e-6
    assert summary[0]["cosine"] == pytest.approx(1, abs=1e-6)


def test_the_numbers_are_those_measured(demo: Demo) -> None:
    summary = {row["name"]: row for row in json.loads((demo.out / "summary.json").read_text())}
    bench = json.loads((demo.out / "bench" / "bench.json").read_text())
    for cell in bench["cells"]:
        assert summary[cell["bundle"]]["p50_ms"][str(cell["tokens"])] == cell["p50_ms"]
        assert (cell["threads"], cell["batch"]) == (1, 1)
    for row in json.loads((demo.out / "eval.json").read_text())["rows"]:
        assert {key: summary[row["bundle"]][key] for key in row["metrics"] if key in KEYS} == {
            key: value for key, value in row["metrics"].items() if key in KEYS
        }


def test_the_corpus(demo: Demo) -> None:
    train, held_out = lines(demo.out / "train.jsonl"), lines(demo.out / "held_out.jsonl")
    assert len(train) + len(held_out) >= 5000
    assert len(held_out) == 1000
    for key in ("query", "answer"):
        assert not {row[key] for row in train} & {row[key] for row in held_out}


def test_the_bundles(demo: Demo) -> None:
    for name in BUNDLES:
        manifest = Bundle.open(demo.out / "bundles" / name).manifest
        assert manifest.name == name
        assert manifest.precision == name.partition("-")[2]
        stored, dense = (sum(getattr(layer, key) for layer in manifest.layers) for key in ("bytes", "dense_fp32_bytes"))
        assert bool(manifest.layers) == name.startswith("saten")
        assert stored <= 0.5 * dense


def test_what_it_says(demo: Demo) -> None:
    stdout, stderr = demo.done.stdout, demo.done.stderr
    assert all(name in stdout for name in BUNDLES)
    assert stdout.endswith(f"report: {demo.out / 'report.html'}\nsummary: {demo.out / 'summary.json'}\n")
    assert "\x1b" not in stdout + stderr
    assert "Traceback" not in stderr


def test_the_page_stands_alone(demo: Demo) -> None:
    page = (demo.out / "report.html").read_text()
    assert all(name in page for name in BUNDLES)
    assert "<svg" in page
    for loaded in ("<script src", "<link", "@import", "src=", "url(http"):
        assert loaded not in page


def test_nothing_of_an_earlier_run_is_left(demo: Demo) -> None:
    for path in demo.out.rglob("*"):
        assert path.name != STALE
        assert not path.is_file() or STALE.encode() not in path.read_bytes()


def test_a_folder_of_somebody_else_is_refused(saten_edge: Command, long_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("precious")
    done = saten_edge("demo", "-o", out, "--model", long_bert, "--steps", 2)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"saten-edge: error: {out}: already exists")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_an_empty_folder_or_a_file_is_refused_too(long_bert: Path, tmp_path: Path) -> None:
    from saten_edge.console import Talk
    from saten_edge.demo import run_demo
    from saten_edge.options import DemoOptions

    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    for out in (folder, file):
        with pytest.raises(UsageError, match="already exists"):
            run_demo(out, DemoOptions(), Talk(quiet=True), model=long_bert)
    assert list(folder.iterdir()) == []
    assert file.read_bytes() == b""
