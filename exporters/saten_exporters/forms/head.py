"""A lookup table used again as the output layer: y = (x Bᵀ) Aᵀ + x Sᵀ.

A head owns no weights: its function takes those of the table, as the table's form packed them. Gemm multiplies by
the transpose of a float32 factor without making one. 8-bit codes ONNX Runtime turns once at load, in 8 bits, where
it would repack them for the product anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import reduce

from saten_exporters.forms.form import Form, sum_of
from saten_exporters.forms.low_rank import LOW_RANK_EMBEDDING, LOW_RANK_EMBEDDING_INT8
from saten_exporters.forms.rows import ROWS_EMBEDDING, ROWS_EMBEDDING_INT8, SPARSE_EMBEDDING, SPARSE_EMBEDDING_INT8
from saten_exporters.parts import LayerParts
from saten_runtime.errors import ExportError

__all__ = ["HEAD_FORMS", "head_of"]

_FLATTEN = """
        lines = Flatten <axis = -1> (x)"""

# flat (lines, table rows) → y with the leading axes of x
_UNFLATTEN = """
        lead = Shape <start = 0, end = -1> (x)
        rest = Constant <value_ints = [-1]> ()
        shape = Concat <axis = 0> (lead, rest)
        y = Reshape (flat, shape)"""


def _columns(stored: str) -> str:
    """Sums (table rows, lines): step k adds, to all rows at once, the input that each row's k-th entry multiplies.

    A step sees one column of indices and entries, so nothing larger than the output is made, and no index is
    widened but those at hand.
    """
    return (
        _FLATTEN
        + f"""
        inputs = Transpose <perm = [1, 0]> (lines)
        rows = Shape <start = 0, end = 1> (columns)
        count = Shape <start = 0, end = 1> (lines)
        sums_shape = Concat <axis = 0> (rows, count)
        nothing = ConstantOfShape <value = float[1] {{0}}> (sums_shape)
        sums = Scan <num_scan_inputs = 2, scan_input_axes = [1, 1], body = step (before, column, entry) => (after) {{
            where = Cast <to = 7> (column)
            picked = Gather <axis = 0> (inputs, where)
            number = Cast <to = 1> (entry)
            axis = Constant <value_ints = [1]> ()
            factor = Unsqueeze (number, axis)
            product = Mul (picked, factor)
            after = Add (before, product)
        }}> (nothing, columns, {stored})"""
    )


def _factors_macs(parts: LayerParts) -> int:
    return parts.a.size + parts.b.size


def _values_macs(parts: LayerParts) -> int:
    return parts.values.size


def _head(table: Form, body: str, macs: Callable[[LayerParts], int]) -> Form:
    """The head of a table's form: the same inputs, packed the same way."""
    return dataclasses.replace(table, kind="head", body=body, macs=macs)


# op type of the table's form → form of the head
HEAD_FORMS = {
    table.op_type: _head(table, body, macs)
    for table, body, macs in (
        (
            LOW_RANK_EMBEDDING,
            _FLATTEN
            + """
        inner = Gemm <transB = 1> (lines, b)
        flat = Gemm <transB = 1> (inner, a)"""
            + _UNFLATTEN,
            _factors_macs,
        ),
        (
            LOW_RANK_EMBEDDING_INT8,
            """
        scaled = Mul (x, b_scale)
        b_turned = Transpose <perm = [1, 0]> (b)
        one = Constant <value_float = 1.0> ()
        inner = com.microsoft.DynamicQuantizeMatMul (scaled, b_turned, one)
        a_turned = Transpose <perm = [1, 0]> (a)
        all = Constant <value_ints = [-1]> ()
        scale = Reshape (a_scale, all)
        y = com.microsoft.DynamicQuantizeMatMul (inner, a_turned, scale)""",
            _factors_macs,
        ),
        (
            ROWS_EMBEDDING,
            # A row of the table without a residual finds the stored row of zeros.
            _FLATTEN
            + """
        by_row = Gemm <transB = 1> (lines, rows)
        slot = Cast <to = 7> (slots)
        flat = Gather <axis = -1> (by_row, slot)"""
            + _UNFLATTEN,
            _values_macs,
        ),
        (
            ROWS_EMBEDDING_INT8,
            """
        turned = Transpose <perm = [1, 0]> (codes)
        all = Constant <value_ints = [-1]> ()
        scales = Reshape (scale, all)
        by_row = com.microsoft.DynamicQuantizeMatMul (x, turned, scales)
        slot = Cast <to = 7> (slots)
        y = Gather <axis = -1> (by_row, slot)""",
            _values_macs,
        ),
        (
            SPARSE_EMBEDDING,
            _columns("entries")
            + """
        flat = Transpose <perm = [1, 0]> (sums)"""
            + _UNFLATTEN,
            _values_macs,
        ),
        (
            SPARSE_EMBEDDING_INT8,
            _columns("codes")
            + """
        scaled = Mul (sums, scale)
        flat = Transpose <perm = [1, 0]> (scaled)"""
            + _UNFLATTEN,
            _values_macs,
        ),
    )
}


def head_of(table: Form) -> Form:
    """The head that multiplies by the transpose of what the form `table` looks up.

    Raises:
        ExportError: there is none for that form.
    """
    parts = table.parts or (table,)
    if missing := [part.op_type for part in parts if part.op_type not in HEAD_FORMS]:
        raise ExportError(f"a tied head over {missing[0]} has no form; there are heads of {', '.join(HEAD_FORMS)}")
    return reduce(sum_of, [HEAD_FORMS[part.op_type] for part in parts])
