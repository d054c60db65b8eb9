"""Bytes and time of a candidate before anything is computed: from the shapes of the layers and the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saten_edge.checkpoints.compress import compressible_layers
from saten_edge.checkpoints.models import load_model
from saten_edge.checkpoints.selection import EVERYTHING
from saten_edge.decomposition.fitting import fitting
from saten_edge.decomposition.prices import blank_parts
from saten_edge.decomposition.residual import VALUE_BYTES, NoResidual, pattern_named
from saten_edge.optimize.space import Candidate
from saten_edge.options import CompressOptions
from saten_exporters.choice.cost import predicted_us
from saten_exporters.choice.prices import Prices
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import DENSE_FORMS, LOWERINGS, form_of
from saten_runtime.errors import ExportError

__all__ = ["Estimate", "Layers", "estimate", "layers_of"]

# Of the bytes of a layer, where each layer measures the split itself.
USUAL_SHARE = 0.5


@dataclass(frozen=True)
class Layers:
    """The matrices that can be compressed, (kind, in, out) by name, and the values that always stay in float32."""

    matrices: Mapping[str, tuple[str, int, int]]
    others: int

    @property
    def values(self) -> int:
        """Weights in all."""
        return self.others + sum(inputs * outputs for _, inputs, outputs in self.matrices.values())


@dataclass(frozen=True)
class Estimate:
    """bytes: of the weights. us: microseconds of the matrices for one text, one thread."""

    bytes: int
    us: float


def layers_of(model: Path) -> Layers:
    """The layers of a dense model.

    Raises:
        SatenError: it cannot be read, has nothing to compress, or is compressed already.
    """
    loaded = load_model(model, dtype="auto")
    found = compressible_layers(loaded.model, EVERYTHING)
    matrices = {name: _described(module) for name, module in found.items()}
    compressed = sum(inputs * outputs for _, inputs, outputs in matrices.values())
    return Layers(matrices, sum(each.numel() for each in loaded.model.parameters()) - compressed)


def estimate(candidate: Candidate, layers: Layers, target: str, rows: int, prices: Prices | None = None) -> Estimate:
    """What a candidate is predicted to take; prices: those that ship for the target by default."""
    size, us, options = layers.others * VALUE_BYTES, 0.0, candidate.compress
    for name, (kind, inputs, outputs) in layers.matrices.items():
        shape = (inputs, outputs)
        if options is not None and options.selection.takes(name, torch.empty(shape, device="meta")):
            parts = _parts(name, kind, shape, options)
            us += _fastest_us(parts, candidate, rows, target, prices)
            size += _stored_bytes(parts, candidate.precision)
        else:
            dense, form = _whole(name, kind, shape), DENSE_FORMS[kind, candidate.precision]
            us += predicted_us(form, dense, rows, target, prices)
            size += form.stored_bytes(dense)
    return Estimate(size, us)


def _described(module: Any) -> tuple[str, int, int]:
    rows, columns = module.weight.shape
    if isinstance(module, nn.Embedding):
        return "embedding", rows, columns
    return ("linear", columns, rows) if isinstance(module, nn.Linear) else ("linear", rows, columns)


def _parts(name: str, kind: str, shape: tuple[int, int], options: CompressOptions) -> LayerParts:
    """Parts of the right shapes; their numbers are nothing."""
    pattern_name, group = fitting(options.pattern, kind, group=options.group, width=shape[1])
    pattern = pattern_named(pattern_name, kind, group=group, width=shape[1])
    size = prod(shape) * VALUE_BYTES * (options.share or 1.0)
    share = options.recipe.share
    if share is None:
        share = 1.0 if pattern.layout == "none" else USUAL_SHARE
    rank = max(1, int(size * share / (VALUE_BYTES * sum(shape)))) if share else 0
    return blank_parts(kind, shape, rank, pattern, pattern.affordable(shape, int(size * (1 - share))), name)


def _whole(name: str, kind: str, shape: tuple[int, int]) -> LayerParts:
    return blank_parts(kind, shape, 0, NoResidual(), 0, name)


def _fastest_us(parts: LayerParts, candidate: Candidate, rows: int, target: str, prices: Prices | None) -> float:
    """Of the ways to keep a layer in parts, the asked one where it is among them."""
    fitting_names = [name for name, row in LOWERINGS.items() if name != "dense" and not row.refusal(parts)]
    names = [candidate.lowering] if candidate.lowering in fitting_names else fitting_names
    times = []
    for name in names:
        try:
            form = LOWERINGS[name].form(parts, candidate.precision)
            times.append(predicted_us(form, parts, rows, target, prices))
        except ExportError:  # neither a train nor a residual: too small a budget, as compression will say
            times.append(0.0)
    return min(times, default=0.0)


def _stored_bytes(parts: LayerParts, precision: str) -> int:
    """Of a layer in parts, as factors; nothing of one that has neither train nor residual."""
    if not parts.a.shape[1] and not parts.values.size:
        return 0
    return form_of(parts, precision).stored_bytes(parts)
