"""Bytes and time of a candidate before anything is computed: from the shapes of the layers and the cost model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from saten_edge.checkpoints.bundle_bytes import whole_form
from saten_edge.checkpoints.compress import compressible_layers
from saten_edge.checkpoints.models import load_model
from saten_edge.checkpoints.selection import EVERYTHING
from saten_edge.decomposition.fitting import fitted
from saten_edge.decomposition.prices import blank_parts, bundle_prices
from saten_edge.decomposition.residual import VALUE_BYTES, NoResidual
from saten_edge.optimize.space import Candidate
from saten_edge.options import CompressOptions
from saten_edge.trimming import Rows
from saten_exporters.choice.cost import fastest_us, predicted_us
from saten_exporters.choice.prices import Prices
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import form_of
from saten_runtime.errors import UsageError

__all__ = ["Estimate", "Layers", "estimate", "layers_of"]

# Of the bytes of a layer, where each layer measures the split itself; for speed the fastest, so that no candidate is
# dropped for a time that it need not take.
USUAL_SHARES = {"accuracy": 0.5, "speed": 1.0}


@dataclass(frozen=True)
class Layers:
    """The matrices that can be compressed, (kind, in, out) by name, and the values that always stay in float32.

    trimmed: the same of the model that knows the words of the training texts alone; None where the search has no such
    model, and untrimmed says why.
    """

    matrices: Mapping[str, tuple[str, int, int]]
    others: int
    trimmed: Layers | None = None
    untrimmed: str = ""

    @property
    def trims(self) -> bool:
        """Whether candidates may be trimmed."""
        return self.trimmed is not None

    def of(self, candidate: Candidate) -> Layers:
        """Those of the dense model that a candidate is made from.

        Raises:
            UsageError: a trimmed one, where there is no such model.
        """
        if not candidate.trim:
            return self
        if self.trimmed is None:
            raise UsageError(f"{candidate.label}: no vocabulary is trimmed here: {self.untrimmed}")
        return self.trimmed

    @property
    def values(self) -> int:
        """Weights in all."""
        return self.others + sum(inputs * outputs for _, inputs, outputs in self.matrices.values())


@dataclass(frozen=True)
class Estimate:
    """bytes: of the weights. us: microseconds of the matrices for one text, one thread.

    unpaid: the first layer whose bytes pay for none of its parts, so that compression refuses the budget; it counts
    with the smallest train.
    """

    bytes: int
    us: float
    unpaid: str = ""


def layers_of(model: Path, left: Rows | None = None) -> Layers:
    """The layers of a dense model; left: those of what trimming leaves of it.

    Raises:
        SatenError: it cannot be read, has nothing to compress, or is compressed already.
    """
    loaded = load_model(model, dtype="auto")
    found = compressible_layers(loaded.model, EVERYTHING)
    prefix = f"{loaded.model.base_model_prefix}."

    def shape(name: str, tensor: torch.Tensor) -> Sequence[int]:
        return left.shape(name.removeprefix(prefix), tensor.shape) if left else tensor.shape

    weights = {name: shape(f"{name}.weight", cast(torch.Tensor, module.weight)) for name, module in found.items()}
    matrices = {name: _described(found[name], weight) for name, weight in weights.items()}
    whole = sum(prod(shape(*named)) for named in loaded.model.named_parameters())
    return Layers(matrices, whole - sum(map(prod, weights.values())))


def estimate(candidate: Candidate, layers: Layers, target: str, rows: int, prices: Prices | None = None) -> Estimate:
    """What a candidate is predicted to take; prices: those that ship for the target by default.

    Raises:
        UsageError: as `Layers.of`.
    """
    layers = layers.of(candidate)
    size, us, unpaid = layers.others * VALUE_BYTES, 0.0, ""
    options, precision = candidate.compress, candidate.precision
    settings = ExportSettings(target=target, rows=rows, **candidate.export)
    for name, (kind, inputs, outputs) in layers.matrices.items():
        shape = (inputs, outputs)
        if options is not None and options.selection.takes(name, torch.empty(shape, device="meta")):
            found = _parts(name, kind, shape, precision, options)
            unpaid = unpaid or ("" if found or options.then else name)  # what FLAT leaves is smaller
            parts = found or blank_parts(kind, shape, 1, NoResidual(), 0, name)
            us += fastest_us(parts, settings, prices)
            size += form_of(parts, precision).stored_bytes(parts)
        else:
            dense, form = blank_parts(kind, shape, 0, NoResidual(), 0, name), whole_form(kind, shape, precision)
            us += predicted_us(form, dense, rows, target, prices)
            size += form.stored_bytes(dense)
    return Estimate(size, us, unpaid)


def _described(module: Any, shape: Sequence[int]) -> tuple[str, int, int]:
    rows, columns = shape
    if isinstance(module, nn.Embedding):
        return "embedding", rows, columns
    return ("linear", columns, rows) if isinstance(module, nn.Linear) else ("linear", rows, columns)


def _parts(name: str, kind: str, shape: tuple[int, int], precision: str, options: CompressOptions) -> LayerParts | None:
    """Parts of the right shapes, whose numbers are nothing; None where an equal share of the bytes pays for none."""
    pattern = fitted(options.pattern, kind, group=options.group, width=shape[1])
    counted, asked = bundle_prices(kind, shape, pattern, precision), options.recipe.share
    size = int(prod(shape) * VALUE_BYTES * (options.share or 1.0))
    share = (
        asked if asked is not None else 1.0 if isinstance(pattern, NoResidual) else USUAL_SHARES[options.recipe.prefer]
    )
    bond = counted.bond(int(size * share))
    left = 0 if share == 1 else size - counted.train(bond)
    entries = pattern.affordable(shape, left, counted.residual)
    if not bond and (asked or not entries):
        return None
    return blank_parts(kind, shape, bond, pattern, entries, name)
