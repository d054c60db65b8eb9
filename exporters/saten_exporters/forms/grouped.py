"""A residual in blocks of consecutive outputs × 1 input: gather the inputs, multiply in batch.

x is transposed so that one input is one contiguous row; each group of outputs gathers the rows it
reads and multiplies them by its dense block. Indices are int32 because ONNX Runtime would widen anything
smaller at load.
"""

from __future__ import annotations

import numpy as np

from saten_exporters.exportable import LayerParts
from saten_exporters.forms.form import NATIVE, Form, Weights, Work
from saten_exporters.forms.storage import Storage

__all__ = ["grouped_linear"]

INDEX_BYTES = 4

# x (…, in), indices (groups, kept), blocks (groups, size, kept) → y (…, groups · size)
_GATHER_AND_MULTIPLY = """
        rows = Flatten <axis = -1> (x)
        columns = Transpose <perm = [1, 0]> (rows)
        picked = Gather <axis = 0> (columns, indices)
        products = MatMul (blocks, picked)
        stacked = Flatten <axis = 2> (products)
        outputs = Transpose <perm = [1, 0]> (stacked)
        lead = Shape <start = 0, end = -1> (x)
        width = Constant <value_ints = [-1]> ()
        shape = Concat <axis = 0> (lead, width)
        y = Reshape (outputs, shape)"""


def grouped_linear(storage: Storage) -> Form:
    """X (…, in) → x S."""
    stored = storage.names("codes", "scale", plain="blocks")

    def pack(parts: LayerParts) -> Weights:
        blocks = storage.widened(parts.values)  # a block that is widened reads its last input once more, times 0
        missing = blocks.shape[2] - parts.values.shape[2]
        indices = np.pad(parts.indices["indices"], ((0, 0), (0, missing)), mode="edge").astype(np.int32)
        return {"indices": indices, **dict(zip(stored, storage.pack_blocks(blocks), strict=True))}

    def stored_bytes(parts: LayerParts) -> int:
        groups, _, kept = map(int, parts.values.shape)
        return groups * storage.wide(kept) * INDEX_BYTES + storage.table_bytes(parts.values.shape)

    def native(parts: LayerParts) -> tuple[Work, ...]:
        groups, size, kept = parts.values.shape
        values = parts.values.size
        return (Work(f"native-blocks-{size}", values, values, groups * kept + groups * size),)

    return Form(
        "Grouped",
        "linear",
        storage.precision.name,
        ("indices", *stored),
        storage.decode("blocks", *stored) + _GATHER_AND_MULTIPLY,
        pack,
        stored_bytes,
        _work,
        native=native if storage.precision.name in NATIVE else None,
    )


def _work(parts: LayerParts) -> tuple[Work, ...]:
    groups, size, kept = parts.values.shape
    values = parts.values.size
    moved = 2 * parts.shape[0] + 2 * groups * kept + 3 * groups * size
    return (Work(f"blocks-{size}", values, values, moved),)
