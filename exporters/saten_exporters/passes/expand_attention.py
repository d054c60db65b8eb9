"""Placeholders of attention without a cache → softmax(scale · q kᵀ + what is added, if anything is) v.

ONNX Runtime's own operator, MultiHeadAttention, is slower than this where something is added, up to 256 tokens.
"""

from __future__ import annotations

import onnx_ir as ir

from saten_runtime.vocabulary.operators import ATTENTION, DOMAIN

__all__ = ["ExpandAttentionPass"]


class ExpandAttentionPass(ir.passes.InPlacePass):
    """Replaces every `saten::Attention` by two products and what stands between them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand all of the main graph."""
        found = [node for node in model.graph if node.domain == DOMAIN and node.op_type == ATTENTION]
        for node in found:
            _expand(model, node)
        return ir.passes.PassResult(model, modified=bool(found))


def _expand(model: ir.Model, node: ir.Node) -> None:
    queries, keys, values, *added = node.inputs
    scale = node.attributes.get_float("scale", 1.0)
    turned = [ir.AttrFloat32("alpha", scale), ir.AttrInt64("transB", 1)]
    scores = ir.Node("com.microsoft", "FusedMatMul", [queries, keys], turned)
    masked = [ir.Node("", "Add", [scores.outputs[0], each]) for each in added]
    weights = ir.Node("", "Softmax", (masked or [scores])[-1].outputs, [ir.AttrInt64("axis", -1)])
    attended = ir.Node("", "MatMul", [weights.outputs[0], values], name=node.name)
    nodes = [scores, *masked, weights, attended]
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, attended.outputs)
