"""Bytes and time of a candidate before anything is computed: from the shapes of the layers and the cost model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from saten_edge.checkpoints.compress import compressible_layers
from saten_edge.checkpoints.models import load_model
from saten_edge.checkpoints.selection import EVERYTHING
from saten_edge.decomposition.fitting import fitting
from saten_edge.decomposition.residual import VALUE_BYTES, Pattern, pattern_named
from saten_edge.optimize.space import Candidate
from saten_edge.options import CompressOptions
from saten_exporters.choice.cost import predicted_us
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import DENSE_FORMS, LOWERINGS
from saten_exporters.quantize import PRECISIONS
from saten_runtime.errors import ExportError

__all__ = ["Estimate", "Layers", "estimate", "layers_of"]

# Of the bytes of a layer, where each layer measures the split itself.
USUAL_SHARE = 0.5
SCALE_BYTES = 4


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


def estimate(candidate: Candidate, layers: Layers, target: str, rows: int) -> Estimate:
    """What a candidate is predicted to take."""
    size, us, options = layers.others * VALUE_BYTES, 0.0, candidate.compress
    for name, (kind, inputs, outputs) in layers.matrices.items():
        shape = (inputs, outputs)
        if options is not None and options.selection.takes(name, torch.empty(shape, device="meta")):
            parts, stored = _parts(name, kind, shape, options)
            us += _fastest_us(parts, candidate, rows, target)
            size += _stored_bytes(parts, stored, candidate.precision)
        else:
            dense = _whole(name, kind, shape)
            us += predicted_us(DENSE_FORMS[kind, candidate.precision], dense, rows, target)
            size += _bytes_of(prod(shape), outputs, candidate.precision)
    return Estimate(size, us)


def _described(module: Any) -> tuple[str, int, int]:
    rows, columns = module.weight.shape
    if isinstance(module, nn.Embedding):
        return "embedding", rows, columns
    return ("linear", columns, rows) if isinstance(module, nn.Linear) else ("linear", rows, columns)


def _parts(name: str, kind: str, shape: tuple[int, int], options: CompressOptions) -> tuple[LayerParts, int]:
    """Parts of the right shapes, and the bytes of the residual's indices; their numbers are nothing."""
    pattern_name, group = fitting(options.pattern, kind, group=options.group, width=shape[1])
    pattern = pattern_named(pattern_name, kind, group=group, width=shape[1])
    size = prod(shape) * VALUE_BYTES * (options.share or 1.0)
    share = options.recipe.share
    if share is None:
        share = 1.0 if pattern.layout == "none" else USUAL_SHARE
    rank = max(1, int(size * share / (VALUE_BYTES * sum(shape)))) if share else 0
    count = pattern.affordable(shape, int(size * (1 - share)))
    values = _zeros(LAYOUTS[pattern.layout](pattern, shape, count)) if count else _zeros((0,))
    indices = max(0, pattern.bytes(shape, count) - VALUE_BYTES * count) if count else 0
    a, b = _zeros((shape[0], rank)), _zeros((rank, shape[1]))
    layout = pattern.layout if count else "none"
    named = {"numbers": np.array([2, 4])} if layout == "n:m" else {}
    return LayerParts(name, kind, shape, [1, rank, 1], a, b, layout, values, named), indices


def _whole(name: str, kind: str, shape: tuple[int, int]) -> LayerParts:
    a, b = _zeros((shape[0], 0)), _zeros((0, shape[1]))
    return LayerParts(name, kind, shape, [1, 0, 1], a, b, "none", _zeros((0,)))


def _zeros(shape: tuple[int, ...]) -> Any:
    """Zeros that take no memory, for their shape."""
    return np.broadcast_to(np.float32(0), shape)


# layout of a residual → the shape of its values for so many entries
LAYOUTS: Mapping[str, Callable[[Pattern, tuple[int, int], int], tuple[int, ...]]] = {
    "none": lambda pattern, shape, count: (0,),
    "grouped": lambda pattern, shape, count: (
        shape[1] // getattr(pattern, "size", 1),
        getattr(pattern, "size", 1),
        count // shape[1],
    ),
    "csr": lambda pattern, shape, count: (count,),
    "n:m": lambda pattern, shape, count: (max(1, count // max(1, shape[0] // 2)), max(1, shape[0] // 2)),
    "rows": lambda pattern, shape, count: (count // shape[1], shape[1]),
    "ell": lambda pattern, shape, count: (shape[0], count // shape[0]),
}


def _fastest_us(parts: LayerParts, candidate: Candidate, rows: int, target: str) -> float:
    """Of the ways to keep a layer in parts, the asked one where it is among them."""
    fitting_names = [name for name, row in LOWERINGS.items() if name != "dense" and not row.refusal(parts)]
    names = [candidate.lowering] if candidate.lowering in fitting_names else fitting_names
    times = []
    for name in names:
        try:
            times.append(predicted_us(LOWERINGS[name].form(parts, candidate.precision), parts, rows, target))
        except ExportError:  # neither a train nor a residual: too small a budget, as compression will say
            times.append(0.0)
    return min(times, default=0.0)


# layout of single entries → what they are kept at below 8 bits
SINGLE = {"csr": "int8", "n:m": "int4"}


def _stored_bytes(parts: LayerParts, indices: int, precision: str) -> int:
    rank = parts.a.shape[1]
    train = _bytes_of(rank * sum(parts.shape), rank + parts.shape[1], precision)
    kept_as = SINGLE.get(parts.layout, precision) if PRECISIONS[precision].bits < 8 else precision
    return train + _bytes_of(parts.values.size, parts.shape[1], kept_as) + indices


def _bytes_of(values: int, columns: int, precision: str) -> int:
    """Of so many stored values, and their scales: one for each block, or each column."""
    how = PRECISIONS[precision]
    scales = 0 if how.bits >= 16 or not values else values // how.block if how.block else columns
    return values * how.bits // 8 + scales * SCALE_BYTES
