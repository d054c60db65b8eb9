"""A residual in blocks of consecutive outputs × 1 input: gather the inputs, multiply in batch.

x is transposed so that one input is one contiguous row; each group of outputs gathers the rows it
reads and multiplies them by its dense block. Indices are int32 because ONNX Runtime would widen anything
smaller at load.
"""

from __future__ import annotations

import numpy as np

from saten_exporters.forms.form import Form, Weights
from saten_exporters.parts import LayerParts
from saten_exporters.quantize import quantize_int8

__all__ = ["GROUPED_LINEAR", "GROUPED_LINEAR_INT8"]

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

# The codes become numbers at every call: a product folded at load would take four times their memory.
_DEQUANTIZE = """
        one = Constant <value_float = 1.0> ()
        numbers = DequantizeLinear (codes, one)
        blocks = Mul (numbers, scale)"""


def _blocks(parts: LayerParts) -> Weights:
    return {"indices": parts.indices["indices"].astype(np.int32), "blocks": parts.values}


def _blocks_int8(parts: LayerParts) -> Weights:
    codes, scale = quantize_int8(parts.values, axis=2)  # a scale per output
    return {"indices": parts.indices["indices"].astype(np.int32), "codes": codes, "scale": scale}


def _macs(parts: LayerParts) -> int:
    return parts.values.size


GROUPED_LINEAR = Form("Grouped", "linear", "fp32", ("indices", "blocks"), _GATHER_AND_MULTIPLY, _blocks, _macs)

GROUPED_LINEAR_INT8 = Form(
    "Grouped",
    "linear",
    "int8",
    ("indices", "codes", "scale"),
    _DEQUANTIZE + _GATHER_AND_MULTIPLY,
    _blocks_int8,
    _macs,
)
