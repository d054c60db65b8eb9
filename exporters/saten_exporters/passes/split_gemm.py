"""Gemm with a constant weight → MatMul and Add, so that every dense product is the same operator.

The tracer writes Gemm where the rows of x are one axis, as in GPT-2's layers and in classifiers of one token.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from saten_exporters.passes.initializers import new_initializer

__all__ = ["SplitGemmPass"]


class SplitGemmPass(ir.passes.InPlacePass):
    """Splits α x W + β b, α = β = 1, W a constant that nothing else reads where it is transposed.

    Does nothing to other factors, to a transposed x, and to products of activations.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split every such Gemm of the main graph."""
        found = [node for node in model.graph if node.domain == "" and node.op_type == "Gemm"]
        split = [_split(model, node) for node in found]
        return ir.passes.PassResult(model, modified=any(split))


def _split(model: ir.Model, node: ir.Node) -> bool:
    x, weight, *bias = node.inputs
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    turned = bool(node.attributes.get_int("transB", False))
    if not plain or node.attributes.get_int("transA", False) or weight is None or weight.const_value is None:
        return False
    if turned and len(weight.uses()) > 1:
        return False
    if turned:
        weight = new_initializer(model, f"{weight.name}.turned", np.asarray(weight.const_value.numpy()).T)
    nodes = [ir.Node("", "MatMul", [x, weight], name=node.name)]
    if bias and bias[0] is not None:
        nodes.append(ir.Node("", "Add", [nodes[0].outputs[0], bias[0]]))
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
    return True
