"""What a bundle of a model takes on disk at a precision, before there is one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from saten_edge.checkpoints.compress import CompressedLayer, kind_of, matrices
from saten_edge.checkpoints.models import LoadedModel
from saten_edge.checkpoints.modules import saten_layers
from saten_edge.checkpoints.stored import gap_bytes
from saten_edge.decomposition.fitting import fitted
from saten_edge.decomposition.prices import blank_parts, bundle_prices
from saten_edge.decomposition.residual import VALUE_BYTES, NoResidual
from saten_exporters.quantize import SMALLEST_WEIGHT
from saten_runtime.bundle.recipe import Option

if TYPE_CHECKING:
    from saten_exporters.forms import Form

__all__ = ["bytes_beside", "dense_layers", "least_bytes", "reached", "whole_bytes", "whole_form"]

# Of the constants that a traced graph holds beside the parameters and the ids of positions: numbers of axes and shapes.
# The families of `ARCHITECTURES` have 100 to 400 bytes of them.
CONSTANT_BYTES = 4096
_MATRICES = (nn.Linear, nn.Embedding, Conv1D)


def dense_layers(model: nn.Module, precision: str | None = None) -> dict[str, int]:
    """Parameters that stay dense, with their bytes in a bundle of a precision; in float32 without one."""
    layers = {id(module.weight): module for module in model.modules() if isinstance(module, _MATRICES)}
    return {
        name: _bytes_of(parameter, layers.get(id(parameter)), precision)
        for name, parameter in model.named_parameters()
        if ".cores." not in name and ".residual." not in name
    }


def whole_form(kind: str, shape: tuple[int, int], precision: str) -> Form:
    """How the weight of a layer (in, out), or a table, that stays dense is stored."""
    from saten_exporters.forms import DENSE_FORMS  # imports onnx

    return DENSE_FORMS[kind, "fp32" if math.prod(shape) < SMALLEST_WEIGHT else precision]


def whole_bytes(layer: nn.Module, precision: str) -> int:
    """Of the weight of a layer, or of a table, that stays dense."""
    (matrix,), kind = matrices({"": layer}).values(), kind_of(layer)
    shape = (matrix.shape[0], matrix.shape[1])
    return whole_form(kind, shape, precision).stored_bytes(blank_parts(kind, shape, 0, NoResidual(), 0))


def bytes_beside(loaded: LoadedModel, layers: Iterable[str], precision: str) -> int:
    """Of all that a bundle stores beside the weights of `layers`, by name: at most, a few kilobytes more than it is."""
    own = {f"{name}.weight" for name in layers}
    dense = [size for name, size in dense_layers(loaded.model, precision).items() if name not in own]
    ids = [
        buffer.nbytes
        for name, buffer in loaded.model.named_buffers()
        if buffer.dtype == torch.int64 and ".residual." not in name
    ]
    steps = [step.weight.nbytes + step.bias.nbytes for step in loaded.steps]
    return sum((*dense, *ids, *steps)) + gap_bytes(dense) + CONSTANT_BYTES


def least_bytes(layers: Mapping[str, nn.Module], precision: str, pattern: str, group: int, share: float | None) -> int:
    """Of layers that share bytes by their sizes, so that each has the least that it can be stored as.

    pattern, group: of the residual. share: of the train, as in `Recipe`.
    """
    found = {name: (matrix.shape[0], matrix.shape[1]) for name, matrix in matrices(layers).items()}
    each = (
        _least_parts(kind_of(layers[name]), shape, precision, pattern, group, share) / math.prod(shape)
        for name, shape in found.items()
    )
    return math.ceil(max(each) * sum(map(math.prod, found.values())))


def _least_parts(
    kind: str, shape: tuple[int, int], precision: str, pattern: str, group: int, share: float | None
) -> float:
    """Bytes of a train of bond 1, or of the fewest entries of a residual where it may stand alone."""
    chosen = fitted(pattern, kind, group=group, width=shape[1])
    prices = bundle_prices(kind, shape, chosen, precision)
    train = prices.train(1) / (share or 1.0)
    if share or isinstance(chosen, NoResidual):
        return train
    residual = prices.residual(chosen.steps(shape)[0])
    return residual if share == 0 else min(train, residual)


def reached(
    loaded: LoadedModel, rows: Sequence[CompressedLayer], precision: str, asked: Mapping[str, Option]
) -> dict[str, Any]:
    """What a compression came to, as plain JSON data.

    asked: as the options have it. layers: bytes of the compressed layers; bits: of these for each of their weights;
    beside: of all else that the bundle stores, at most; bytes: of both, and of the gaps between tensors.
    """
    parts = saten_layers(loaded.model)
    own = [row for row in rows if row.name in parts]
    layers, beside = sum(row.bytes for row in own), bytes_beside(loaded, (), precision)
    return {
        "precision": precision,
        "asked": dict(asked),
        "layers": layers,
        "bits": 8 * layers / sum(math.prod(row.shape) for row in own),
        "beside": beside,
        "bytes": layers + beside + gap_bytes(row.bytes for row in own),
    }


def _bytes_of(parameter: nn.Parameter, layer: Any, precision: str | None) -> int:
    return parameter.numel() * VALUE_BYTES if precision is None or layer is None else whole_bytes(layer, precision)
