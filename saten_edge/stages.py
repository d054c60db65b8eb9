"""The stages from weights to a measured report: what each command does, and the demo does in a row."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from saten_edge.allocation import Measured
from saten_edge.calibration import output_sensitivities, second_moments
from saten_edge.compress import CompressedLayer, compress, compressible_layers, dense_layers, matrices
from saten_edge.console import Talk
from saten_edge.decompose import Recipe
from saten_edge.finetune import Progress, Schedule, distill
from saten_edge.models import LoadedModel, load_model, save_model
from saten_exporters import export
from saten_runtime.bench import Plan, bench
from saten_runtime.bundle import Bundle
from saten_runtime.errors import SatenError, UsageError
from saten_runtime.files import refuse_existing
from saten_runtime.results import BenchResult

__all__ = ["bench_stage", "compress_stage", "eval_stage", "export_stage", "finetune_stage"]

LAYERS_FILE = "saten_layers.json"
HISTORY_FILE = "saten_history.json"
CALIBRATION_BATCH = 32
CALIBRATION_TOKENS = 128


def compress_stage(
    model: str | Path,
    out: Path,
    *,
    budget: float,
    pattern: str,
    group: int,
    allocation: str | None,
    recipe: Recipe,
    calibration: Sequence[str],
    talk: Talk,
    overwrite: bool,
) -> list[CompressedLayer]:
    """Compress a model folder into a Saten checkpoint at `out`.

    allocation: a name in `ALLOCATIONS`; None is "sensitivity" with calibration texts and "uniform" without.
    """
    if not overwrite:
        refuse_existing(out)
    loaded = load_model(model)
    layers = compressible_layers(loaded.model)
    measured = _calibrate(loaded, layers, calibration, budget, talk) if calibration else None
    with talk.stage(f"compress {len(layers)} matrices to {budget:g} of their bytes") as advance:
        rows = compress(
            loaded,
            budget,
            pattern=pattern,
            group=group,
            allocation=allocation or ("sensitivity" if measured else "uniform"),
            recipe=recipe,
            measured=measured,
            progress=lambda name, done, total: advance(done, total, name),
        )
    table = {"layers": [dataclasses.asdict(row) for row in rows], "dense": dense_layers(loaded.model)}
    save_model(loaded, out, extra={LAYERS_FILE: table}, overwrite=overwrite)
    return rows


def finetune_stage(
    student: Path,
    out: Path,
    *,
    teacher: str | Path,
    texts: list[str],
    schedule: Schedule,
    talk: Talk,
    overwrite: bool,
) -> list[Progress]:
    """Distil the teacher into a Saten checkpoint; the result goes to `out`."""
    if not overwrite:
        refuse_existing(out)
    pupil, master = load_model(student), load_model(teacher)
    if not pupil.layer_parts():
        raise UsageError(f"{student}: has no compressed layer; run `saten-edge compress` first")
    with talk.stage(f"fine-tune on {len(texts)} texts") as advance:
        history = distill(
            pupil,
            master,
            texts,
            schedule,
            lambda step: advance(step.done, 1.0, f"step {step.step}, loss {step.loss:.3f}"),
        )
    extra = {HISTORY_FILE: [dataclasses.asdict(step) for step in history]}
    if (student / LAYERS_FILE).is_file():
        extra[LAYERS_FILE] = json.loads((student / LAYERS_FILE).read_text("utf-8"))
    save_model(pupil, out, extra=extra, overwrite=overwrite)
    return history


def export_stage(
    model: str | Path, out: Path, *, name: str | None, precision: str, target: str, talk: Talk, overwrite: bool
) -> Bundle:
    """Export a dense or Saten model folder to a verified bundle."""
    if not overwrite:
        refuse_existing(out)
    with talk.stage(f"export {name or out.name}"):
        return export(load_model(model), out, name=name, precision=precision, target=target, overwrite=overwrite)


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
    lines = stderr.strip().splitlines() or [f"saten-run ended with code {code}"]
    error = SatenError(lines[-1].removeprefix("saten-run: error: "))
    error.exit_code = code
    return error


def _calibrate(
    loaded: LoadedModel,
    layers: dict[str, nn.Linear | nn.Embedding],
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

        moments = second_moments(loaded.model, layers, batches())
        done = itertools.count(len(starts))
        sensitivities = output_sensitivities(
            loaded.model,
            matrices(layers),
            moments,
            loaded.encode(list(texts[:CALIBRATION_BATCH]), CALIBRATION_TOKENS),
            budget,
            lambda name: advance(next(done), steps, name),
        )
    return Measured(moments, sensitivities)
