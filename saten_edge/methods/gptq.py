"""GPTQ: linear layers on the grid of a bundle's low precision, each rounding made up for by the weights after it.

The formulas are in `saten_edge.decomposition.gptq`. All moments come from one run of the model as it was. The result is
a dense model, whose weights an export at that precision stores as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from saten_edge.checkpoints.bundle_bytes import whole_bytes
from saten_edge.checkpoints.checkpoint import attach_config, recipe_of
from saten_edge.checkpoints.compress import (
    CompressedLayer,
    compressible_layers,
    kind_of,
    matrices,
    refuse_odd_numbers,
)
from saten_edge.checkpoints.layers import named
from saten_edge.console import told
from saten_edge.decomposition.gptq import Feedback, round_matrix
from saten_edge.decomposition.residual import VALUE_BYTES
from saten_edge.methods.calibrate import calibrate, described
from saten_edge.methods.method import Job, Method
from saten_edge.options import CompressOptions
from saten_exporters.quantize import PRECISIONS, SMALLEST_WEIGHT, storing
from saten_runtime.bundle.recipe import Stage, options_of, versions_here
from saten_runtime.errors import ExportError, UsageError

__all__ = ["GPTQ"]

# Precisions of few bits in blocks; at 8 bits, rounding to the nearest loses next to nothing.
ROUNDED = tuple(name for name, precision in PRECISIONS.items() if precision.block and precision.bits < 8)


def check(options: CompressOptions, calibrated: bool) -> None:
    """Refuse GPTQ without texts or images, and without a precision that it rounds to.

    Raises:
        UsageError: saying what to pass.
    """
    if options.precision not in ROUNDED:
        given = f"--precision {options.precision}" if options.precision else "no --precision"
        raise UsageError(f"--method gptq rounds for one precision, found {given}; pass one of {', '.join(ROUNDED)}")
    if not calibrated:
        raise UsageError("--method gptq weighs errors by texts or images; pass --calibration FILE.jsonl")


def run(job: Job) -> list[CompressedLayer]:
    """Round the linear layers that the options select, in place; one row for each."""
    model, precision = job.loaded.model, job.options.precision or ""
    if any(stage.stage == "gptq" for stage in recipe_of(model).stages):
        raise UsageError("--method gptq: the weights are rounded already; start from the model before it")
    layers = _linear(model, job.options)
    refuse_odd_numbers(model)
    measured = job.kept.measured(partial(calibrate, job.loaded, layers, job.items, None, job.progress, bf16=job.bf16))
    rows, feedback = [], None
    with told(job.progress, f"round {len(layers)} matrices to {precision}") as advance, torch.no_grad():
        for done, (name, matrix) in enumerate(matrices(layers).items()):
            advance(done, len(layers), name)
            with named(name):
                feedback = _feedback(measured.moments[name], feedback)
            rows.append(_round(name, layers[name], matrix, feedback, precision))
    attach_config(model, job.loaded.source, _stage(job))
    return rows


def _linear(model: Any, options: CompressOptions) -> Mapping[str, nn.Module]:
    """The layers that a bundle stores in few bits, without lookup tables, of which no sum is taken.

    Raises:
        ExportError: there is none.
    """
    found = {
        name: layer
        for name, layer in compressible_layers(model, options.selection).items()
        if kind_of(layer) == "linear" and matrices({name: layer})[name].numel() >= SMALLEST_WEIGHT
    }
    if not found:
        raise ExportError(
            f"{type(model).__name__} has no linear layer of at least {SMALLEST_WEIGHT} values that --include and "
            "--exclude leave: nothing to round; lookup tables are rounded by the export"
        )
    return found


def _feedback(moments: Tensor, last: Feedback | None) -> Feedback:
    """That of the layer before, where both read the same."""
    return last if last is not None and last.moments is moments else Feedback(moments)


def _round(name: str, layer: nn.Module, matrix: Tensor, feedback: Feedback, precision: str) -> CompressedLayer:
    """Round a layer's M (in, out), a view of its weight."""
    with storing(name):
        found = round_matrix(matrix, feedback, PRECISIONS[precision])
    error = feedback.metric.relative_error(matrix, found)
    matrix.copy_(found)
    shape, dense = (matrix.shape[0], matrix.shape[1]), matrix.numel() * VALUE_BYTES
    return CompressedLayer(name, "linear", shape, [], 0, whole_bytes(layer, precision), dense, error, "none")


def _stage(job: Job) -> Stage:
    given = options_of(job.options.selection, precision=job.options.precision)
    inputs = {"model": options_of(**job.loaded.source), "calibration": described(job.items, bf16=job.bf16)}
    return Stage("gptq", given, inputs, versions=versions_here())


GPTQ = Method(check, run)
