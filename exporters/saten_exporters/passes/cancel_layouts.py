"""Reshapes and Transposes that end where they began → nothing."""

from __future__ import annotations

import onnx_ir as ir

from saten_exporters.passes.shapes import same_shape

__all__ = ["CancelLayoutsPass"]


class CancelLayoutsPass(ir.passes.InPlacePass):
    """Lets readers of a Reshape or a Transpose read the value that it only gives back.

    A Reshape gives back a value that Reshapes alone lie behind and that has its shape: they keep the order of the
    numbers. An axis without a number or a name is like no other. Outputs of the graph stay as they are, and so do
    the nodes, which nobody reads any more.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """In the order of the main graph, so that a chain is seen when all before it has been cancelled."""
        cancelled = [node for node in model.graph if node.op_type in _ORIGINS and _cancel(node)]
        return ir.passes.PassResult(model, modified=bool(cancelled))


def _cancel(node: ir.Node) -> bool:
    result = node.outputs[0]
    origin = _ORIGINS[node.op_type](node) if node.domain == "" and result.uses() else None
    if origin is None or result.is_graph_output():
        return False
    ir.convenience.replace_all_uses_with(result, origin)
    return True


def _reshaped(node: ir.Node) -> ir.Value | None:
    before: ir.Node | None = node
    while before is not None and (before.domain, before.op_type) == ("", "Reshape"):
        value = before.inputs[0]
        if value is None or same_shape(value.shape, node.outputs[0].shape):
            return value
        before = value.producer()
    return None


def _transposed(node: ir.Node) -> ir.Value | None:
    first = node.inputs[0].producer() if node.inputs[0] is not None else None
    if first is None or (first.domain, first.op_type) != ("", "Transpose"):
        return None
    inner, outer = (each.attributes.get_ints("perm", ()) for each in (first, node))
    return first.inputs[0] if inner and [inner[axis] for axis in outer] == sorted(inner) else None


_ORIGINS = {"Reshape": _reshaped, "Transpose": _transposed}
