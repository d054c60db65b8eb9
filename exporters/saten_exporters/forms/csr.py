"""An unstructured residual in compressed sparse rows.

The file holds the compressed rows; ONNX Runtime has no fast product for them, so the body rebuilds the
matrix, which is folded once at load. A kernel of the same name can multiply the rows as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saten_exporters.exportable import LayerParts
from saten_exporters.forms.form import NATIVE, Form, Weights, Work, product
from saten_exporters.forms.storage import INT64_BYTES, Storage
from saten_exporters.quantize import SCALE_BYTES, quantize_int8

__all__ = ["csr_linear"]

# indptr (out + 1), indices (nnz), stored (nnz), shape [out, in] → table (out, in). The row of value k is the
# number of row ends at or before k: mark each end, sum the marks.
_REBUILD = """
        one = Constant <value_ints = [1]> ()
        zero = Constant <value_ints = [0]> ()
        minus_one = Constant <value_ints = [-1]> ()
        pointers = Cast <to = 7> (indptr)
        most = Constant <value_ints = [9223372036854775807]> ()
        ends = Slice (pointers, one, most)
        end_count = Shape (ends)
        value_count = Shape (stored)
        mark_count = Add (value_count, one)
        no_marks = ConstantOfShape <value = int64[1] {0}> (mark_count)
        ones = ConstantOfShape <value = int64[1] {1}> (end_count)
        marks = ScatterElements <axis = 0, reduction = "add"> (no_marks, ends, ones)
        first_axis = Constant <value_int = 0> ()
        counted = CumSum (marks, first_axis)
        row = Slice (counted, zero, value_count)
        inputs = Slice (shape, one, most)
        row_start = Mul (row, inputs)
        column = Cast <to = 7> (indices)
        position = Add (row_start, column)
        cells = ReduceProd <keepdims = 1> (shape)"""

_SCATTER = """
        flat = ScatterElements <axis = 0> (empty, position, stored)
        table = Reshape (flat, shape)
        matrix = Transpose <perm = [1, 0]> (table)"""

# precision → the type of what is scattered
_TYPES = {"fp32": "float", "fp16": "float16", "int8": "int8"}


def csr_linear(storage: Storage) -> Form:
    """X (…, in) → x S; one scale per output where values are 8-bit codes."""
    name = storage.precision.name
    stored = storage.names("stored", "scale")

    def pack(parts: LayerParts) -> Weights:
        packed = _int8_rows(parts) if storage.scaled else storage.pack_table(parts.values)
        shape = np.array([parts.shape[1], parts.shape[0]], np.int64)
        return {**parts.indices, **dict(zip(stored, packed, strict=True)), "shape": shape}

    def stored_bytes(parts: LayerParts) -> int:
        places = sum(index.nbytes for index in parts.indices.values()) + len(parts.shape) * INT64_BYTES
        return places + storage.precision.bits // 8 * parts.values.size + storage.scaled * SCALE_BYTES * parts.shape[1]

    def native(parts: LayerParts) -> tuple[Work, ...]:
        values = parts.values.size
        return (Work("native-blocks-1", values, values, sum(parts.shape)),)

    empty = f"""
        empty = ConstantOfShape <value = {_TYPES[name]}[1] {{0}}> (cells)"""
    return Form(
        "Csr",
        "linear",
        name,
        ("indptr", "indices", *stored, "shape"),
        _REBUILD + empty + _SCATTER + storage.multiply("x", "y", "matrix", "scale"),
        pack,
        stored_bytes,
        lambda parts: (product(parts.shape),),  # the body multiplies the rebuilt matrix
        native=native if name in NATIVE else None,
    )


def _int8_rows(parts: LayerParts) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    starts = parts.indices["indptr"]
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    peaks = np.zeros(len(starts) - 1, np.float32)
    np.maximum.at(peaks, rows, np.abs(parts.values))
    _, scale = quantize_int8(peaks[:, None], axis=1)
    return np.rint(parts.values / scale[rows, 0]).astype(np.int8), scale[:, 0]
