"""SimplifiedLayerNormalization → the operators it is made of.

ONNX Runtime keeps this operator of its own in ONNX' domain, where no other reader, `onnx.checker` among them, finds
it. It makes it again at load, from just these operators.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from saten_exporters.passes.initializers import constant

__all__ = ["ExpandRmsNormPass"]


class ExpandRmsNormPass(ir.passes.InPlacePass):
    """Expands every SimplifiedLayerNormalization over the last axis: x / √(mean(x²) + ε) · scale.

    Does nothing to `com.microsoft`'s SkipSimplifiedLayerNormalization, nor to one whose deviation is read.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand what can be, in the main graph."""
        fused = [node for node in model.graph if node.op_type == "SimplifiedLayerNormalization" and _expandable(node)]
        for node in fused:
            _expand(model, node)
        return ir.passes.PassResult(model, modified=bool(fused))


def _expandable(node: ir.Node) -> bool:
    unread = not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    return node.domain == "" and node.attributes.get_int("axis", -1) == -1 and unread


def _expand(model: ir.Model, node: ir.Node) -> None:
    x, scale = node.inputs
    epsilon = np.array(node.attributes.get_float("epsilon", 1e-5), np.float32)
    two, axes, small = (
        constant(model, name, value)
        for name, value in (
            ("rms_norm.exponent", np.array(2, np.float32)),
            ("rms_norm.axes", np.array([-1], np.int64)),
            (f"rms_norm.epsilon_{epsilon:g}", epsilon),
        )
    )
    square = ir.Node("", "Pow", [x, two])
    mean = ir.Node("", "ReduceMean", [square.outputs[0], axes], [ir.AttrInt64("keepdims", 1)])
    positive = ir.Node("", "Add", [mean.outputs[0], small])
    root = ir.Node("", "Sqrt", positive.outputs)
    unit = ir.Node("", "Div", [x, root.outputs[0]])
    scaled = ir.Node("", "Mul", [unit.outputs[0], scale], name=node.name)
    nodes = [square, mean, positive, root, unit, scaled]
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs[:1], scaled.outputs)
