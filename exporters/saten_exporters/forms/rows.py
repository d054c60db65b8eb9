"""Residuals of embedding tables: a lookup gathers the few residual entries of the rows it reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saten_exporters.forms.form import Form, Weights
from saten_exporters.parts import LayerParts
from saten_exporters.quantize import quantize_int8

__all__ = ["ROWS_EMBEDDING", "ROWS_EMBEDDING_INT8", "SPARSE_EMBEDDING", "SPARSE_EMBEDDING_INT8"]

_LARGEST_U16 = 1 << 16


def _slots(parts: LayerParts) -> NDArray[np.generic]:
    """For each row of the table the place of its residual row, 0 (a row of zeros) where it has none."""
    kept = parts.indices["rows"]
    slots = np.zeros(parts.shape[0], np.uint16 if parts.shape[0] + 1 <= _LARGEST_U16 else np.int32)
    slots[kept] = np.arange(1, len(kept) + 1)
    return slots


def _stored_rows(parts: LayerParts) -> NDArray[np.float32]:
    """(kept + 1, width), the row of zeros first."""
    return np.concatenate([np.zeros((1, parts.shape[1]), np.float32), parts.values])


def _whole_rows(parts: LayerParts) -> Weights:
    return {"slots": _slots(parts), "rows": _stored_rows(parts)}


def _whole_rows_int8(parts: LayerParts) -> Weights:
    codes, scale = quantize_int8(_stored_rows(parts), axis=1)
    return {"slots": _slots(parts), "codes": codes, "scale": scale}


def _entries(parts: LayerParts) -> Weights:
    width = np.array([parts.shape[1]], np.int64)
    return {"columns": parts.indices["indices"], "entries": parts.values, "width": width}


def _entries_int8(parts: LayerParts) -> Weights:
    codes, scale = quantize_int8(parts.values, axis=1)
    width = np.array([parts.shape[1]], np.int64)
    return {"columns": parts.indices["indices"], "codes": codes, "scale": scale, "width": width}


def _no_macs(parts: LayerParts) -> int:
    return 0


_FIND_SLOT = """
        short = Gather <axis = 0> (slots, x)
        slot = Cast <to = 7> (short)"""

_SCATTER_ADD = """
        short = Gather <axis = 0> (columns, x)
        where = Cast <to = 7> (short)
        lead = Shape (x)
        shape = Concat <axis = 0> (lead, width)
        empty = ConstantOfShape <value = float[1] {0}> (shape)
        y = ScatterElements <axis = -1, reduction = "add"> (empty, where, picked)"""

ROWS_EMBEDDING = Form(
    "Rows",
    "embedding",
    "fp32",
    ("slots", "rows"),
    _FIND_SLOT
    + """
        y = Gather <axis = 0> (rows, slot)""",
    _whole_rows,
    _no_macs,
)

ROWS_EMBEDDING_INT8 = Form(
    "Rows",
    "embedding",
    "int8",
    ("slots", "codes", "scale"),
    _FIND_SLOT
    + """
        picked = Gather <axis = 0> (codes, slot)
        numbers = Cast <to = 1> (picked)
        scales = Gather <axis = 0> (scale, slot)
        y = Mul (numbers, scales)""",
    _whole_rows_int8,
    _no_macs,
)

SPARSE_EMBEDDING = Form(
    "Sparse",
    "embedding",
    "fp32",
    ("columns", "entries", "width"),
    """
        picked = Gather <axis = 0> (entries, x)"""
    + _SCATTER_ADD,
    _entries,
    _no_macs,
)

SPARSE_EMBEDDING_INT8 = Form(
    "Sparse",
    "embedding",
    "int8",
    ("columns", "codes", "scale", "width"),
    """
        coded = Gather <axis = 0> (codes, x)
        numbers = Cast <to = 1> (coded)
        scales = Gather <axis = 0> (scale, x)
        picked = Mul (numbers, scales)"""
    + _SCATTER_ADD,
    _entries_int8,
    _no_macs,
)
