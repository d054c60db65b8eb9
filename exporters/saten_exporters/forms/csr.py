"""An unstructured residual in compressed sparse rows.

The file holds the compressed rows; ONNX Runtime has no fast product for them, so the body rebuilds the
matrix, which is folded once at load. A kernel of the same name can multiply the rows as they are.
"""

from __future__ import annotations

import numpy as np

from saten_exporters.forms.form import Form, Weights
from saten_exporters.parts import LayerParts
from saten_exporters.quantize import quantize_int8

__all__ = ["CSR_LINEAR", "CSR_LINEAR_INT8"]

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


def _shape(parts: LayerParts) -> Weights:
    return {"shape": np.array([parts.shape[1], parts.shape[0]], np.int64)}


def _rows(parts: LayerParts) -> Weights:
    return {**parts.indices, "stored": parts.values, **_shape(parts)}


def _rows_int8(parts: LayerParts) -> Weights:
    starts = parts.indices["indptr"]
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    peaks = np.zeros(len(starts) - 1, np.float32)
    np.maximum.at(peaks, rows, np.abs(parts.values))
    _, scale = quantize_int8(peaks[:, None], axis=1)
    codes = np.rint(parts.values / scale[rows, 0]).astype(np.int8)
    return {**parts.indices, "stored": codes, "scale": scale[:, 0], **_shape(parts)}


def _macs(parts: LayerParts) -> int:
    return parts.shape[0] * parts.shape[1]  # the body multiplies the rebuilt matrix


CSR_LINEAR = Form(
    "Csr",
    "linear",
    "fp32",
    ("indptr", "indices", "stored", "shape"),
    _REBUILD
    + """
        empty = ConstantOfShape <value = float[1] {0}> (cells)"""
    + _SCATTER
    + """
        y = MatMul (x, matrix)""",
    _rows,
    _macs,
)

CSR_LINEAR_INT8 = Form(
    "Csr",
    "linear",
    "int8",
    ("indptr", "indices", "stored", "scale", "shape"),
    _REBUILD
    + """
        empty = ConstantOfShape <value = int8[1] {0}> (cells)"""
    + _SCATTER
    + """
        y = com.microsoft.DynamicQuantizeMatMul (x, matrix, scale)""",
    _rows_int8,
    _macs,
)
