"""Partial tensorization: layers are compressed one after another while the model's output stays within a bound.

After "PTNN" (arXiv 2310.20077): a layer stays compressed only if the output's error on texts that nothing else reads
is within the bound; there is no training. A table is a layer as any other. How a layer is compressed is the recipe's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saten_edge.checkpoints.checkpoint import attach_config, share_heads
from saten_edge.checkpoints.compress import (
    CompressedLayer,
    compressible_layers,
    kind_of,
    matrices,
    refuse_odd_numbers,
    replace_layer,
    tied_head,
)
from saten_edge.checkpoints.layers import LayerTask, decompose_layer
from saten_edge.console import told
from saten_edge.decomposition.decompose import Decomposition, check_sizes
from saten_edge.decomposition.fitting import fitting
from saten_edge.decomposition.residual import VALUE_BYTES, pattern_named, scatter
from saten_edge.decomposition.sensitivity import model_output
from saten_edge.methods.calibrate import BATCH, batches_of, calibrate, described, rows_at_once
from saten_edge.methods.method import Job, Method
from saten_edge.options import CompressOptions
from saten_runtime.bundle.recipe import Stage, options_of, versions_here
from saten_runtime.errors import BudgetError, DataError, UsageError

__all__ = ["PTNN"]

# Shares of a layer's bytes that are tried.
SHARES = (0.15, 0.25, 0.4, 0.6)
# Of the texts or images, the part that only judges, and the most of them.
JUDGES, MOST_JUDGES = 0.25, 2 * BATCH


@dataclass(frozen=True)
class _Trial:
    """A layer in parts, and the relative error of the output with it alone."""

    name: str
    how: tuple[str, int]
    parts: Decomposition
    error: float
    saved: int

    @property
    def price(self) -> float:
        """Error for each byte saved."""
        return self.error / self.saved


def check(options: CompressOptions, calibrated: bool) -> None:
    """Refuse a bound without texts, and a recipe whose sizes are no shares of bytes.

    Raises:
        UsageError: naming the option.
    """
    if not calibrated:
        raise UsageError("--method ptnn judges by texts or images; pass --calibration FILE.jsonl")
    if options.recipe.sized:
        raise UsageError("--method ptnn tries shares of each layer's bytes; leave out --eps or --density")
    check_sizes(1, pattern_named(options.pattern, "linear", group=options.group, width=options.group), options.recipe)


def run(job: Job) -> list[CompressedLayer]:
    """Compress the layers that the bound allows; no row where there is none, and the model is as it was."""
    model = job.loaded.model
    layers, head = compressible_layers(model, job.options.selection), tied_head(model)
    refuse_odd_numbers(model)
    work = _Work(job, matrices(layers))
    with torch.no_grad():
        trials = work.trials()
        kept = work.kept(trials)
    rows = [replace_layer(model, name, layers[name], trial.parts, *trial.how) for name, trial in kept.items()]
    if rows:
        share_heads(model, {name: table for name, table in head.items() if table in kept})
        attach_config(model, job.loaded.source, _stage(job, work))
    return rows


class _Work:
    """The model's matrices (in, out), which are changed in place and put back, and what judges them."""

    def __init__(self, job: Job, found: Mapping[str, Tensor]) -> None:
        self.job, self.matrices = job, found
        self._exact = {name: matrix.clone() for name, matrix in found.items()}
        self.fitting, self.judging = split(job.items)
        self.error = 0.0
        rows = rows_at_once(job.loaded)
        with torch.no_grad():
            self._batches = list(batches_of(job.loaded, self.judging, rows))
            if not self._batches:
                raise DataError("--method ptnn: every fourth calibration text judges, and none of them makes a token")
            self._wanted = [model_output(job.loaded.model, batch) for batch in self._batches]

    def trials(self) -> list[_Trial]:
        """Every layer at every share that saves bytes, alone in the model, the cheapest error for a byte first."""
        layers = {name: self.job.loaded.model.get_submodule(name) for name in self.matrices}
        measured = self.job.kept.measured(
            partial(calibrate, self.job.loaded, layers, self.fitting, None, self.job.progress, bf16=self.job.bf16)
        )
        found = []
        with told(self.job.progress, f"try {len(layers)} matrices at {len(SHARES)} sizes") as advance:
            for done, (name, layer) in enumerate(layers.items()):
                advance(done, len(layers), name)
                found += [self._trial(name, layer, share, measured.moments[name]) for share in SHARES]
        return sorted((trial for trial in found if trial), key=lambda trial: trial.price)

    def kept(self, trials: Sequence[_Trial]) -> dict[str, _Trial]:
        """Those that together stay within the bound; a layer may come to a smaller size later."""
        kept: dict[str, _Trial] = {}
        with told(self.job.progress, f"keep what stays within {self.job.options.tolerance:g}") as advance:
            for done, trial in enumerate(trials):
                advance(done, len(trials), trial.name)
                before = kept.get(trial.name)
                if before and before.saved >= trial.saved:
                    continue
                self._put(trial.name, trial)
                error = self._error()
                if error <= self.job.options.tolerance:
                    kept[trial.name], self.error = trial, error
                else:
                    self._put(trial.name, before)
        for name in self.matrices:
            self._put(name, None)
        return kept

    def _trial(self, name: str, layer: Any, share: float, moments: Tensor) -> _Trial | None:
        """None where the bytes are too few for anything."""
        options, size = self.job.options, self.matrices[name].numel() * VALUE_BYTES
        how = fitting(options.pattern, kind_of(layer), group=options.group, width=self.matrices[name].shape[1])
        task = LayerTask(name, kind_of(layer), int(share * size), *how, options.recipe)
        decompose = partial(decompose_layer, task, self.matrices[name], moments)
        try:
            parts = self.job.kept.layer(f"{name} at {share:g}", decompose)
        except BudgetError:
            return None
        trial = _Trial(name, how, parts, 0.0, size - parts.bytes)
        self._put(name, trial)
        error = self._error()
        self._put(name, None)
        return _Trial(name, how, parts, error, trial.saved)

    def _put(self, name: str, trial: _Trial | None) -> None:
        """A layer in parts as one matrix, or as it was."""
        if trial is None:
            self.matrices[name].copy_(self._exact[name])
            return
        layer = self.job.loaded.model.get_submodule(name)
        shape = (self.matrices[name].shape[0], self.matrices[name].shape[1])
        pattern = pattern_named(trial.how[0], kind_of(layer), group=trial.how[1], width=shape[1])
        residual = trial.parts.residual
        where = pattern.positions(residual.indices, shape)
        self.matrices[name].copy_(trial.parts.train.dense() + scatter(residual.values, where, shape))

    def _error(self) -> float:
        """‖y − ŷ‖ / ‖y‖ of the output on what judges; infinite where it is no number."""
        squares = norms = 0.0
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            squares += float((model_output(self.job.loaded.model, batch) - wanted).square().sum())
            norms += float(wanted.square().sum())
        error = math.sqrt(squares / norms) if norms else math.inf
        return error if math.isfinite(error) else math.inf


def split(items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """What second moments are taken of, and every fourth, up to `MOST_JUDGES` of them, that only judges.

    Raises:
        UsageError: there are too few for both.
    """
    every = round(1 / JUDGES)
    judging = set(range(every - 1, len(items), every)[:MOST_JUDGES])
    if not judging:
        raise UsageError(f"--method ptnn needs {every} calibration texts or images at least, found {len(items)}")
    return [item for at, item in enumerate(items) if at not in judging], [items[at] for at in sorted(judging)]


def _stage(job: Job, work: _Work) -> Stage:
    options = job.options
    given = options_of(
        options.recipe, options.selection, tolerance=options.tolerance, pattern=options.pattern, group=options.group
    )
    inputs = {
        "model": options_of(**job.loaded.source),
        "calibration": described(work.fitting, bf16=job.bf16),
        "judge": described(work.judging),
    }
    return Stage(
        "ptnn", {**given, "train": options.recipe.method}, inputs, options_of(error=work.error), versions_here()
    )


PTNN = Method(check, run)
