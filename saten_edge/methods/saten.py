"""Saten: every matrix becomes tensor train + sparse residual, within a byte budget."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from saten_edge.checkpoints import compress as compression
from saten_edge.checkpoints.bundle_bytes import bytes_beside, least_bytes, whole_bytes
from saten_edge.checkpoints.compress import CompressedLayer, compressible_layers, matrices
from saten_edge.checkpoints.stored import Stored
from saten_edge.console import told
from saten_edge.decomposition.allocation import Measured
from saten_edge.decomposition.residual import VALUE_BYTES
from saten_edge.methods.calibrate import calibrate, calibrate_by_blocks, described
from saten_edge.methods.method import Job, Method
from saten_edge.options import CompressOptions
from saten_edge.units import megabytes
from saten_runtime.errors import BudgetError, UsageError

__all__ = ["SATEN"]

# Stands for that of a size, which the model's other bytes decide, where no model is at hand.
SOME_SHARE = 0.5


def check(options: CompressOptions, calibrated: bool) -> None:
    """As `check_options` of the compression."""
    if options.bf16 is not None and not calibrated:
        raise UsageError(f"--{'bf16' if options.bf16 else 'fp32'}: says how calibration multiplies; add --calibration")
    share = SOME_SHARE if options.size is not None else options.share
    compression.check_options(
        share,
        options.pattern,
        options.group,
        _allocation(options, calibrated),
        options.recipe,
        calibrated=calibrated,
        tables=options.tables,
        precision=options.counted,
    )


def run(job: Job) -> list[CompressedLayer]:
    """Decompose every matrix that the options select."""
    options, layers = job.options, compressible_layers(job.loaded.model, job.options.selection)
    count, (budget, stored) = len(layers), _bytes_of(job, layers)
    allocation = _allocation(options, bool(job.items))
    how = (options.pattern, options.group, allocation, options.recipe, options.tables)
    compression.check_layers(job.loaded.model, layers, budget, *how, stored.precision)
    measured = _measured(job, layers, budget)
    del layers  # `compression.compress` frees each dense weight in its turn
    goal = "" if budget is None else f" to {budget:g} of their bytes"
    with told(job.progress, f"compress {count} matrices{goal}") as advance:
        return compression.compress(
            job.loaded,
            budget,
            pattern=options.pattern,
            group=options.group,
            allocation=allocation,
            recipe=options.recipe,
            measured=measured,
            selection=options.selection,
            tables=options.tables,
            stored=stored,
            progress=lambda name, done, total: advance(done, total, name),
            kept=job.kept,
            engine=job.engine,
        )


def whole(options: CompressOptions, calibrated: bool) -> bool:
    """Whether sensitivities are measured, by a backward pass through the model."""
    return calibrated and _allocation(options, calibrated) == "sensitivity"


def follow(job: Job) -> None:
    """Give the leader this process's part of the second moments, as it asks for them."""
    layers = compressible_layers(job.loaded.model, job.options.selection)
    if whole(job.options, True):
        for _ in job.ranks.follow():
            calibrate(job.loaded, layers, job.items, None, None, ranks=job.ranks)
        return
    with tempfile.TemporaryDirectory() as folder:
        calibrate_by_blocks(job.loaded, layers, job.items, Path(folder), job.ranks).follow()


def _measured(job: Job, layers: Mapping[str, nn.Module], budget: float | None) -> Measured | None:
    if not job.items:
        return None
    if not whole(job.options, True) and job.kept.folder:
        folder = job.kept.folder / "states"
        moments = calibrate_by_blocks(job.loaded, layers, job.items, folder, job.ranks, bf16=job.bf16)
        return Measured(moments, {}, described(job.items, bf16=job.bf16))
    weighed = budget * job.options.narrower if budget is not None and whole(job.options, True) else None
    measure = partial(calibrate, job.loaded, layers, job.items, weighed, job.progress, ranks=job.ranks, bf16=job.bf16)
    return replace(job.kept.measured(measure), texts=described(job.items, bf16=job.bf16))


def _allocation(options: CompressOptions, calibrated: bool) -> str:
    return options.allocation or ("sensitivity" if calibrated else "uniform")


def _bytes_of(job: Job, layers: Mapping[str, nn.Module]) -> tuple[float | None, Stored]:
    """The budget, a share of what the matrices take in float32, and how bytes are counted.

    Raises:
        BudgetError: the layers have less room than any parts take.
        UsageError: they have as much as they take dense, or `_budget` refuses it.
    """
    options = job.options
    if options.counted is None:
        return _budget(job), Stored()
    dense = sum(matrix.numel() for matrix in matrices(layers).values()) * VALUE_BYTES
    if options.size_bytes is None:
        budget = _budget(job)
        asked = {} if job.before else options.asked  # of what the method before left, another share
        stored, room = Stored(options.counted, asked=asked), None if budget is None else int(budget * dense)
    else:
        room = options.size_bytes - bytes_beside(job.loaded, layers, options.counted)
        budget, stored = room / dense, Stored(options.counted, room, options.asked)
    if room is not None:
        _refuse_room(options, room, options.size_bytes, layers)
    return budget, stored


def _refuse_room(options: CompressOptions, room: int, size: int | None, layers: Mapping[str, nn.Module]) -> None:
    """Refuse bytes for the layers that are too few for the smallest parts, or as many as the dense layers take."""
    precision = options.counted or ""
    named = _named(options)
    beside = 0 if size is None else size - room
    words = f", and {megabytes(beside)} are beside them" if beside else ""
    least = least_bytes(layers, precision, options.pattern, options.group, options.recipe.share)
    most = sum(whole_bytes(layer, precision) for layer in layers.values())
    if room < least:
        raise BudgetError(
            f"{named}: the layers take {megabytes(least)} at least at {precision}{words}; the smallest that can be "
            f"asked for is {megabytes(least + beside)}"
        )
    if room >= most:
        raise UsageError(
            f"{named}: the layers take {megabytes(most)} dense at {precision}{words}; ask for less than "
            f"{megabytes(most + beside)}, or export the dense model"
        )


def _named(options: CompressOptions) -> str:
    """The option that says the bytes, as it was given."""
    ((name, value),) = options.asked.items()
    return f"--{name} {value if isinstance(value, str) else f'{value:g}'}"


def _budget(job: Job) -> float | None:
    """The budget as a share of what the matrices have now; it is one of what all changed ones had at first.

    Raises:
        UsageError: they are within it already, or those that no longer are of a size to be decomposed take all of it.
    """
    share = job.options.share
    if share is None or not job.before:
        return share
    found = matrices(compressible_layers(job.loaded.model, job.options.selection))
    now = {name: matrix.numel() * VALUE_BYTES for name, matrix in found.items()}
    left = [row for row in job.before if row.name not in now]
    first = sum(job.dense_bytes(name, size) for name, size in now.items()) + sum(row.dense_bytes for row in left)
    model, precision = job.loaded.model, job.options.counted
    stays = sum(
        row.bytes if precision is None else whole_bytes(model.get_submodule(row.name), precision) for row in left
    )
    scaled = (share * first - stays) / sum(now.values())
    if not 0 < scaled < 1:
        alone = (sum(now.values()) + stays) / first
        raise UsageError(
            f"{_named(job.options)}: --method {job.options.method} alone leaves {alone:.3f} of the bytes, and what the "
            f"next method does not take {stays / first:.3f}; choose a budget between the two, or leave out --then"
        )
    return scaled


SATEN = Method(check, run, whole, follow)
