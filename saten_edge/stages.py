"""The stages from weights to a measured report: what each command does, and the demo does in a row."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from saten_edge.checkpoints.compress import (
    EVERYTHING,
    CompressedLayer,
    Selection,
    compress,
    compressible_layers,
    dense_layers,
    matrices,
    tied_head,
)
from saten_edge.checkpoints.models import LoadedModel, load_model, resolve_model, save_model
from saten_edge.console import Talk
from saten_edge.decomposition.allocation import Measured
from saten_edge.decomposition.calibration import output_sensitivities, second_moments
from saten_edge.decomposition.decompose import Recipe
from saten_exporters import export
from saten_runtime.bench.measure import Plan, bench
from saten_runtime.bench.results import BenchResult
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.recipe import options_of
from saten_runtime.errors import SatenError, UsageError
from saten_runtime.records.files import digest_of, refuse_existing
from saten_runtime.records.plain_text import last_line

if TYPE_CHECKING:
    from saten_edge.training import Distillation, Examples, Schedule

__all__ = ["bench_stage", "compress_stage", "eval_stage", "export_stage", "finetune_stage", "import_stage"]

LAYERS_FILE = "saten_layers.json"
METRICS_FILE = "metrics.json"
CALIBRATION_BATCH = 32
# The budget at which sensitivities are measured where none is given.
SHARE_FOR_SENSITIVITY = 0.25
CALIBRATION_TOKENS = 128


def compress_stage(
    model: str | Path,
    out: Path,
    *,
    budget: float | None,
    pattern: str,
    group: int,
    allocation: str | None,
    recipe: Recipe,
    calibration: Sequence[str],
    talk: Talk,
    overwrite: bool,
    selection: Selection = EVERYTHING,
) -> dict[str, Any]:
    """Compress a model folder into a Saten checkpoint at `out`.

    budget: None where eps and density of the recipe say every size. allocation: a name in `ALLOCATIONS`; None is
    "sensitivity" with calibration texts and "uniform" without.
    """
    if not overwrite:
        refuse_existing(out)
    loaded = load_model(model, dtype=torch.float32 if calibration else "auto")
    if calibration and loaded.processor is not None:
        raise UsageError(f"{model}: takes images, and --calibration gives texts; leave it out")
    layers = compressible_layers(loaded.model, selection)
    count = len(layers)
    share = SHARE_FOR_SENSITIVITY if budget is None else budget
    measured = _calibrate(loaded, layers, calibration, share, talk) if calibration else None
    del layers  # `compress` frees each dense weight in its turn
    goal = "" if budget is None else f" to {budget:g} of their bytes"
    with talk.stage(f"compress {count} matrices{goal}") as advance:
        rows = compress(
            loaded,
            budget,
            pattern=pattern,
            group=group,
            allocation=allocation or ("sensitivity" if measured else "uniform"),
            recipe=recipe,
            measured=measured,
            selection=selection,
            progress=lambda name, done, total: advance(done, total, name),
        )
    return _save_compressed(loaded, rows, out, overwrite=overwrite)


def import_stage(
    src: Path, base: str | Path, out: Path, *, task: str | None, talk: Talk, overwrite: bool
) -> dict[str, Any]:
    """Read a checkpoint of the authors' code into a Saten checkpoint at `out`; returns what `compress_stage` does."""
    from saten_edge.checkpoints.authors import import_checkpoint

    if not overwrite:
        refuse_existing(out)
    with talk.stage(f"import {src.name}"):
        loaded, rows = import_checkpoint(src, base, task)
    return _save_compressed(loaded, rows, out, overwrite=overwrite)


def finetune_stage(
    model: str | Path,
    out: Path,
    *,
    data: str | Examples,
    task: str | None = None,
    split: str = "train",
    teacher: str | Path | None = None,
    judged_on: str | None = None,
    judged_split: str = "validation",
    schedule: Schedule,
    distillation: Distillation | None = None,
    resume: bool = False,
    talk: Talk,
    overwrite: bool,
) -> dict[str, Any]:
    """Fine-tune a dense or Saten model; the result goes to `out`, and `metrics.json` in it is returned.

    task: a name in `saten_edge.training.TRAININGS`; None reads it off model and data. judged_on: data that only judges.
    resume: go on where an interrupted run of the same settings stopped, if there is one.
    """
    from saten_edge.training import prepare  # the Trainer takes seconds to import

    if not overwrite:
        refuse_existing(out)
    job = prepare(model, data, task, split, teacher, judged_on, judged_split, schedule, distillation)
    with job.keeping(out, resume=resume, overwrite=overwrite) as folder:
        try:
            with talk.stage(f"fine-tune {Path(model).name} on {len(job.examples.inputs)} examples") as advance:
                metrics = job.run(
                    folder,
                    resume=resume,
                    report=lambda step: advance(step.done, 1.0, f"step {step.step}, loss {step.loss:.3f}"),
                )
        except KeyboardInterrupt:
            talk.say(job.interrupted(folder))
            raise
        extra = {METRICS_FILE: metrics}
        layers = job.student.folder / LAYERS_FILE
        if layers.is_file():
            extra[LAYERS_FILE] = json.loads(layers.read_text("utf-8"))
        if job.writes:
            save_model(job.student, out, extra=extra, overwrite=overwrite)
    return metrics


def export_stage(
    model: str | Path,
    out: Path,
    *,
    task: str | None = None,
    name: str | None,
    precision: str,
    target: str,
    dense: str | Path | None = None,
    talk: Talk,
    overwrite: bool,
    rows: int = 128,
    lowering: str | None = None,
) -> Bundle:
    """Export a dense or Saten model folder to a verified bundle.

    task: None reads it from the config. dense: the model it was compressed from, to report how far it is from that.
    """
    if not overwrite:
        refuse_existing(out)
    if dense is not None:
        resolve_model(str(dense))  # before the minutes that the model itself may take
    with talk.stage(f"export {name or out.name}"):
        return export(
            model,
            out,
            task=task,
            name=name,
            precision=precision,
            target=target,
            rows=rows,
            lowering=lowering,
            dense=dense,
            overwrite=overwrite,
        )


def bench_stage(
    bundles: Sequence[Path],
    plan: Plan,
    *,
    baseline: Path | None,
    out: Path | None,
    talk: Talk,
    overwrite: bool,
    resume: bool = False,
) -> BenchResult:
    """Measure bundles on this machine, interleaved, each in processes of its own."""
    with talk.stage(f"measure {len(bundles)} bundles") as advance:
        return bench(bundles, plan, baseline=baseline, output=out, overwrite=overwrite, resume=resume, progress=advance)


def eval_stage(
    bundles: Sequence[Path],
    data: Path,
    *,
    reference: Path | None,
    threads: int,
    talk: Talk,
    examples: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Accuracy of bundles, measured by `saten_runtime` in a process without torch."""
    command = [sys.executable, "-m", "saten_runtime", "eval", *map(str, bundles), "--data", str(data)]
    command += ["--threads", str(threads), "--json", "--quiet"]
    if reference is not None:
        command += ["--reference", str(reference)]
    if examples is not None:
        command += ["--examples", str(examples)]
    command += ["--resume"] * resume + ["--overwrite"] * overwrite
    with talk.stage(f"evaluate {len(bundles)} bundles on {data.name}"):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise _as_error(done.returncode, done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _as_error(code: int, stderr: str) -> SatenError:
    """The one-line error of a `saten-run` process, with its exit code."""
    words = last_line(stderr, f"saten-run ended with code {code}")
    error = SatenError(words.removeprefix("saten-run: error: "))
    error.exit_code = code
    return error


def _save_compressed(loaded: LoadedModel, rows: list[CompressedLayer], out: Path, *, overwrite: bool) -> dict[str, Any]:
    table = {"layers": [dataclasses.asdict(row) for row in rows], "dense": dense_layers(loaded.model)}
    save_model(loaded, out, extra={LAYERS_FILE: table}, overwrite=overwrite)
    return table


def _calibrate(
    loaded: LoadedModel,
    layers: dict[str, nn.Module],
    texts: Sequence[str],
    budget: float,
    talk: Talk,
) -> Measured:
    """Second moments over all texts, sensitivities over the first batch of them."""
    ordered = sorted(texts, key=len)
    starts = range(0, len(ordered), CALIBRATION_BATCH)
    steps = len(starts) + len(layers)
    with talk.stage(f"calibrate on {len(texts)} texts") as advance:

        def batches() -> Iterator[dict[str, Any]]:
            for done, start in enumerate(starts):
                advance(done, steps, "second moments")
                yield loaded.encode(ordered[start : start + CALIBRATION_BATCH], CALIBRATION_TOKENS)

        moments = second_moments(loaded.model, layers, batches(), tied_head(loaded.model).values())
        done = itertools.count(len(starts))
        sensitivities = output_sensitivities(
            loaded.model,
            matrices(layers),
            moments,
            loaded.encode(list(texts[:CALIBRATION_BATCH]), CALIBRATION_TOKENS),
            budget,
            lambda name: advance(next(done), steps, name),
        )
    read = options_of(sha256=digest_of(list(texts)), texts=len(texts), tokens=CALIBRATION_TOKENS)
    return Measured(moments, sensitivities, read)
