"""8-bit codes for the weights that stayed dense: linear layers and embedding tables alike."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from saten_exporters.passes.initializers import new_initializer
from saten_exporters.quantize import quantize_int8

__all__ = ["QuantizeDensePass"]

# Smaller than this, the scales and the extra nodes outweigh what is saved.
SMALLEST_WEIGHT = 4096
# What is set on a FusedMatMul that only transposes its weight.
_TURNED = {"alpha": 1.0, "transB": 1}


class QuantizeDensePass(ir.passes.InPlacePass):
    """MatMul by a constant (in, out) → DynamicQuantizeMatMul; Gather from a constant table → 8-bit rows.

    A head that multiplies by the transpose of a table (FusedMatMul) shares the table's codes.

    Does nothing to activations times activations, to small weights, and to anything already quantized.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize every dense weight of the main graph."""
        rewrites = {
            ("", "MatMul"): _quantize_matmul,
            ("", "Gather"): _quantize_gather,
            ("com.microsoft", "FusedMatMul"): _quantize_head,
        }
        modified = False
        for node in list(model.graph):
            rewrite = rewrites.get((node.domain, node.op_type))
            modified |= rewrite is not None and rewrite(model, node)
        if modified:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _quantize_matmul(model: ir.Model, node: ir.Node) -> bool:
    x, weight = node.inputs
    dense = _dense_weight(weight)
    if weight is None or dense is None:
        return False
    codes, scales = quantize_int8(dense, axis=0)
    model.opset_imports.setdefault("com.microsoft", 1)
    stored = _stored(model, weight, codes, scales.reshape(-1))
    return _put(model, node, [ir.Node("com.microsoft", "DynamicQuantizeMatMul", [x, *stored], name=node.name)])


def _quantize_gather(model: ir.Model, node: ir.Node) -> bool:
    table, indices = node.inputs
    dense = _dense_weight(table)
    if table is None or dense is None or node.attributes.get_int("axis", 0) != 0:
        return False
    stored = _stored(model, table, *quantize_int8(dense, axis=1))
    rows, scale = (ir.Node("", "Gather", [value, indices], [ir.AttrInt64("axis", 0)]) for value in stored)
    numbers = ir.Node("", "Cast", rows.outputs, [ir.AttrInt64("to", int(ir.DataType.FLOAT))])
    product = ir.Node("", "Mul", [numbers.outputs[0], scale.outputs[0]], name=node.name)
    return _put(model, node, [rows, scale, numbers, product])


def _quantize_head(model: ir.Model, node: ir.Node) -> bool:
    x, table = node.inputs
    dense = _dense_weight(table)
    options = {"alpha": 1.0, **{name: attribute.value for name, attribute in node.attributes.items()}}
    if table is None or dense is None or {name: value for name, value in options.items() if value} != _TURNED:
        return False
    codes, scale = _stored(model, table, *quantize_int8(dense, axis=1))
    turned = ir.Node("", "Transpose", [codes], [ir.AttrInt64s("perm", [1, 0])])
    flat = ir.Node("", "Squeeze", [scale])
    inputs = [x, turned.outputs[0], flat.outputs[0]]
    return _put(model, node, [turned, flat, ir.Node("com.microsoft", "DynamicQuantizeMatMul", inputs, name=node.name)])


def _dense_weight(value: ir.Value | None) -> np.ndarray | None:
    """The float32 matrix behind a constant, or None where there is none worth quantizing."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or tensor.size < SMALLEST_WEIGHT:
        return None
    return np.asarray(tensor.numpy())


def _stored(model: ir.Model, weight: ir.Value, codes: np.ndarray, scales: np.ndarray) -> list[ir.Value]:
    """The initializers of a weight's codes and scales, made once however many nodes read it."""
    arrays = {f"{weight.name}.codes": codes, f"{weight.name}.scale": scales}
    known = model.graph.initializers
    return [known[name] if name in known else new_initializer(model, name, array) for name, array in arrays.items()]


def _put(model: ir.Model, old: ir.Node, new: list[ir.Node]) -> bool:
    before, after = old.outputs[0], new[-1].outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], new, [before], [after])
    return True
