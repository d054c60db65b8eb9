"""Residuals of embedding tables: a lookup gathers the few residual entries of the rows it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saten_exporters.exportable import LayerParts
from saten_exporters.forms.form import Form, Weights, Work
from saten_exporters.forms.storage import INT64_BYTES, Storage

__all__ = ["rows_embedding", "sparse_embedding"]

_LARGEST_U16 = 1 << 16

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


def rows_embedding(storage: Storage) -> Form:
    """Ids (…) → S[ids], where some rows of the table have a residual."""
    stored = storage.table_names("rows")

    def pack(parts: LayerParts) -> Weights:
        return {"slots": _slots(parts), **dict(zip(stored, storage.pack_whole(_stored_rows(parts)), strict=True))}

    return Form(
        "Rows",
        "embedding",
        storage.precision.name,
        ("slots", *stored),
        _FIND_SLOT + storage.look_up_whole("slot", "y", *stored),
        pack,
        lambda parts: (
            _slots_type(parts)().nbytes * parts.shape[0] + storage.whole_bytes((len(parts.values) + 1, parts.shape[1]))
        ),
        lambda parts: (Work("lookup", moved=parts.shape[1]),),
    )


def sparse_embedding(storage: Storage) -> Form:
    """Ids (…) → S[ids], where every row of the table has as many entries."""
    stored = storage.names("codes", "scale", plain="entries")

    def pack(parts: LayerParts) -> Weights:
        entries = storage.widened(parts.values)  # an entry that is added names the last column once more, and adds 0
        missing = entries.shape[1] - parts.values.shape[1]
        return {
            "columns": np.pad(parts.indices["indices"], ((0, 0), (0, missing)), mode="edge"),
            **dict(zip(stored, storage.pack_table(entries), strict=True)),
            "width": np.array([parts.shape[1]], np.int64),
        }

    def stored_bytes(parts: LayerParts) -> int:
        rows, kept = map(int, parts.values.shape)
        columns = rows * storage.wide(kept) * int(parts.indices["indices"].itemsize)
        return columns + storage.table_bytes(parts.values.shape) + INT64_BYTES

    return Form(
        "Sparse",
        "embedding",
        storage.precision.name,
        ("columns", *stored, "width"),
        storage.look_up("x", "picked", *stored) + _SCATTER_ADD,
        pack,
        stored_bytes,
        lambda parts: (Work("lookup", moved=2 * parts.values.shape[1] + parts.shape[1]),),
    )


def _slots(parts: LayerParts) -> NDArray[np.generic]:
    """For each row of the table the place of its residual row, 0 (a row of zeros) where it has none."""
    kept = parts.indices["rows"]
    slots = np.zeros(parts.shape[0], _slots_type(parts))
    slots[kept] = np.arange(1, len(kept) + 1)
    return slots


def _slots_type(parts: LayerParts) -> type[np.integer[Any]]:
    return np.uint16 if parts.shape[0] + 1 <= _LARGEST_U16 else np.int32


def _stored_rows(parts: LayerParts) -> NDArray[np.float32]:
    """(kept + 1, width), the row of zeros first."""
    return np.concatenate([np.zeros((1, parts.shape[1]), np.float32), parts.values])
