"""What writes files: each operation, and what may be there when it was cut short."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FIRST", "OPERATIONS", "Operation", "State"]

FIRST = "first"  # beside the bundle: the weights that a training gives without a fault
CELL = {"bundle": "a", "threads": 1, "memory_mode": "fast", "batch": 1, "tokens": 8}


@dataclass(frozen=True)
class State:
    """What the operations need, made once in the process that forks. work: their folder, inputs and outputs."""

    work: Path
    loaded: Any  # a Saten model
    traced: Any  # what `trace` makes of it
    job: Any  # a fine-tuning of it
    report: Any  # of the bundle
    bundle: Path

    @property
    def out(self) -> Path:
        return self.work / "out"


@dataclass(frozen=True)
class Operation:
    """run: does it, replacing what is there. check: raises unless `out` is whole, old or new.

    child: the faults are a child process's, not its own. anew: in `work`, removed before each fault, so that
    everything is done again. keeps: in `work`, may stay after a fault for the next run to go on from.
    """

    run: Callable[[State], Any]
    check: Callable[[State], Any]
    child: bool = False
    anew: str | None = None
    keeps: str | None = None


def compress(state: State) -> None:
    """The writing of a compressed model; `import` ends in the same."""
    from saten_edge.options import CompressOptions
    from saten_edge.stages import _save_compressed

    _save_compressed(state.loaded, [], state.out, CompressOptions(), overwrite=True)


def check_checkpoint(state: State) -> None:
    from saten_edge.checkpoints.checkpoint import verify_files, verify_folder
    from saten_edge.checkpoints.guard import read_headers

    verify_folder(state.out, read_headers(state.out))
    config = json.loads((state.out / "config.json").read_text())
    verify_files(config["quantization_config"]["files"], list(state.out.glob("*.safetensors")))
    for name in ("tokenizer.json", "tokenizer_config.json", "saten_layers.json", "modules.json"):
        json.loads((state.out / name).read_text())


def finetune(state: State) -> None:
    """A training that is prepared, saved after each of its steps; it goes on where the one before was cut short."""
    import saten_edge.training.job

    job = state.job
    saten_edge.training.job.prepare = lambda *_: job
    saten_edge.finetune(job.student.folder, state.out, "", resume=True, overwrite=True)


def check_finetune(state: State) -> None:
    """Whole, after all steps, and the same weights however often it was interrupted."""
    check_checkpoint(state)
    metrics = json.loads((state.out / "metrics.json").read_text())
    assert [step["step"] for step in metrics["history"]] == list(range(1, metrics["steps"] + 1))
    trained = (state.out / "model.safetensors").read_bytes()
    first = state.bundle.with_name(FIRST)
    if not first.exists():
        first.write_bytes(trained)
    assert trained == first.read_bytes()


def export(state: State) -> None:
    """An export whose trace is made already."""
    from saten_exporters.bundles import export as bundle
    from saten_runtime.run.parity import Comparison

    bundle.trace = lambda source, row: state.traced
    # It only reads, and takes longest.
    bundle.check_parity = lambda written: [Comparison("single", "last_hidden_state", True, [1], 0.0, 1.0, 1.0)]
    bundle.export(state.loaded, state.out, overwrite=True)


def check_bundle(state: State) -> None:
    from saten_runtime.bundle.folder import Bundle

    Bundle.open(state.out)


def bench(state: State) -> None:
    """The journal of a benchmark of three cells that resumes."""
    from saten_runtime.bench.journal import Journal
    from saten_runtime.bench.results import BenchResult, Verdict

    with Journal(state.out, resume=True) as journal:
        for cell in range(len(journal.earlier), 3):
            journal.write("samples", {**CELL, "key": str(cell), "round": 0, "samples_ns": list(range(1, 51))})
        journal.finish(BenchResult(1, {}, Verdict(True, []), [], []))


def check_bench(state: State) -> None:
    """What was measured is a beginning of what is measured; a summary stands only beside all of it."""
    from saten_runtime.records.jsonl import read_lines

    rows = read_lines(state.out / "samples.jsonl")
    assert [row["key"] for row in rows] == ["0", "1", "2"][: len(rows)]
    summary = state.out / "bench.json"
    assert not summary.exists() or (json.loads(summary.read_text()) and len(rows) == 3)


def report(state: State) -> None:
    from saten_edge.reports import write_html

    write_html(state.report, state.out)


def check_report(state: State) -> None:
    assert state.out.read_text() == "old" or state.out.read_text().rstrip().endswith("</html>")


def deploy(state: State) -> None:
    """Upload a bundle to a board that is a folder of this machine."""
    from saten_edge.devices.board import Board
    from saten_edge.devices.deploy import Cargo
    from saten_edge.devices.deploy import deploy as send
    from saten_runtime.bundle.folder import Bundle

    with Board(_Here(str(state.out)), "token") as board:
        send(board, _Here(str(state.out)), Cargo([Bundle.open(state.bundle)]), lambda *_: None, print)


@dataclass(frozen=True)
class _Here:
    """This machine, as a board with its own folder and with everything installed."""

    folder: str
    url: str = "here"
    label: str = "here"
    ready: bool = True

    def command(self, bootstrap: str) -> list[str]:
        return ["sh", "-c", bootstrap]

    def explain(self, returncode: int | None, last_words: str) -> str:
        return last_words


def check_deploy(state: State) -> None:
    """Every file that has its name has its content."""
    from saten_runtime.bundle.folder import Bundle

    for folder in (state.out / "bundles").glob("*"):
        for name, entry in Bundle.open(state.bundle).manifest.files.items():
            if (folder / name).exists():
                assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry.sha256
        if (folder / "saten_edge.json").exists():
            Bundle.open(folder)


OPERATIONS = {
    "compress": Operation(compress, check_checkpoint),
    "finetune": Operation(finetune, check_finetune, anew=".out.training", keeps=".out.training"),
    "export": Operation(export, check_bundle),
    "bench": Operation(bench, check_bench),
    "report": Operation(report, check_report),
    "deploy": Operation(deploy, check_deploy, child=True, anew="out"),
}
