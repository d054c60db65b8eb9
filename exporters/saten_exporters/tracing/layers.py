"""The modules whose products are quantized, and how their matrices are found again in the graph.

A trace gives matrices other names, and packs those that read the same input into one; each output keeps its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from saten_exporters.exportable import Exportable
from saten_exporters.quantize import SMALLEST_WEIGHT

__all__ = ["column_of", "columns_of", "layers_of", "stored_name"]

Array = NDArray[np.float32]


def layers_of(source: Exportable) -> dict[str, Any]:
    """Linear layers that are worth quantizing, and heads that share a table, by the modules' names."""
    linear = {name for name, parts in source.layer_parts().items() if parts.kind == "linear"}
    return {
        name: module
        for name, module in source.model.named_modules()
        if name in linear
        or _table(module) is not None
        or (isinstance(module, torch.nn.Linear | Conv1D) and module.weight.numel() >= SMALLEST_WEIGHT)
    }


def stored_name(name: str, layer: Any) -> str:
    """The layer whose numbers a module multiplies by: of a head that shares a compressed table, the table."""
    table = _table(layer)
    return name if table is None else str(table)


def column_of(layer: Any) -> bytes | None:
    """What the weights of one output of a dense layer hash to, the first that are not all zero; None of others."""
    if not isinstance(layer, torch.nn.Linear | Conv1D):
        return None
    weight = layer.weight.detach().numpy()
    columns = weight.T if isinstance(layer, Conv1D) else weight
    return _digest(columns[int((columns != 0).any(axis=1).argmax())])


def columns_of(matrix: Array) -> Iterator[bytes]:
    """The same of every output of a matrix (in, out)."""
    return (_digest(column) for column in matrix.T)


def _table(layer: Any) -> str | None:
    return getattr(getattr(layer, "table", None), "layer_name", None)


def _digest(column: Array) -> bytes:
    return hashlib.sha256(column.tobytes()).digest()
