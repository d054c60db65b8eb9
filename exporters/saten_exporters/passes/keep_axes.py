"""Axes made one for a product and taken apart behind it → the product over all of them, as MatMul takes them.

The tracer writes GPT-2's layers so. Each Reshape costs a token of a small model as much as a product.
"""

from __future__ import annotations

import onnx_ir as ir

from saten_exporters.passes.shapes import same_shape

__all__ = ["KeepAxesPass"]


class KeepAxesPass(ir.passes.InPlacePass):
    """Lets x W, with or without + b, read what a Reshape before it reads, so that those behind it change nothing.

    W (in, out) and b (out,) are constants; every reader is a Reshape to the axes that there were. Leaves the Reshapes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every MatMul of the main graph."""
        products = [node for node in model.graph if (node.domain, node.op_type) == ("", "MatMul") and _keep(node)]
        return ir.passes.PassResult(model, modified=bool(products))


def _keep(node: ir.Node) -> bool:
    x, weight = node.inputs
    flat = x.producer() if x is not None else None
    if flat is None or (flat.domain, flat.op_type) != ("", "Reshape") or weight is None or weight.const_value is None:
        return False
    origin, sizes = flat.inputs[0], weight.const_value.shape.numpy()
    if origin is None or origin.shape is None or len(sizes) != 2 or origin.shape[-1] != sizes[0]:
        return False
    shape, last = ir.Shape([*origin.shape[:-1], sizes[1]]), _with_bias(node)
    if not last.uses() or not all(_restores(user, shape) for user in last.consumers()):
        return False
    node.replace_input_with(0, origin)
    node.outputs[0].type = last.type
    node.outputs[0].shape = last.shape = shape
    return True


def _restores(node: ir.Node, shape: ir.Shape) -> bool:
    return (node.domain, node.op_type) == ("", "Reshape") and same_shape(node.outputs[0].shape, shape)


def _with_bias(node: ir.Node) -> ir.Value:
    """What the product gives, or the Add of a constant row that alone reads it."""
    product = node.outputs[0]
    for user in product.consumers():
        rows = [value for value in user.inputs if value is not None and value is not product]
        constant = len(rows) == 1 and rows[0].const_value is not None and len(rows[0].const_value.shape) == 1
        if (user.domain, user.op_type) == ("", "Add") and len(product.uses()) == 1 and constant:
            return user.outputs[0]
    return product
