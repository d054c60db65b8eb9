"""What follows a compressed layer and fits its node: the bias, or the bias and GELU.

In a function body they are the operators they were; a native kernel adds them while its result is near.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["Epilogue", "epilogue_of"]

# (domain, operator) → its name as an epilogue
_OPERATORS = {("", "Add"): "Bias", ("com.microsoft", "BiasGelu"): "BiasGelu"}


@dataclass(frozen=True)
class Epilogue:
    """name: one of `forms.EPILOGUES`; bias: a constant (outputs); node: what the call takes the place of."""

    name: str
    bias: ir.Value
    node: ir.Node


def epilogue_of(model: ir.Model, layer: ir.Node, *, split: bool) -> Epilogue | None:
    """What may go into the node of `layer`: a sum with a constant of one axis, which alone reads what it makes.

    split: take the bias out of a sum of three, too; the other two are added as before.
    """
    product = layer.outputs[0]
    readers = [use.node for use in product.uses()]
    if len(readers) != 1 or product.is_graph_output():
        return None
    reader = readers[0]
    biases = [value for value in reader.inputs if value is not None and _is_bias(value, product)]
    if len(biases) != 1:
        return None
    if (reader.domain, reader.op_type) == ("", "Sum") and len(reader.inputs) == 3 and split:
        return Epilogue("Bias", biases[0], _apart(model, reader, product, biases[0]))
    name = _OPERATORS.get((reader.domain, reader.op_type))
    return Epilogue(name, biases[0], reader) if name else None


def _is_bias(value: ir.Value, product: ir.Value) -> bool:
    if value is product or value.const_value is None or value.is_graph_input():
        return False
    shape = value.const_value.shape
    width = product.shape[-1] if product.shape is not None else None
    return value.const_value.dtype == ir.DataType.FLOAT and len(shape) == 1 and (width is None or shape[0] == width)


def _apart(model: ir.Model, whole: ir.Node, product: ir.Value, bias: ir.Value) -> ir.Node:
    """Sum(product, other, bias) → Add(product, bias) and Sum of both; the Add."""
    first = ir.Node("", "Add", [product, bias])
    first.outputs[0].shape, first.outputs[0].type = product.shape, product.type
    others = [value for value in whole.inputs if value is not product and value is not bias]
    second = ir.Node("", "Sum", [first.outputs[0], *others], name=whole.name)
    nodes = [first, second]
    ir.convenience.replace_nodes_and_values(model.graph, whole, [whole], nodes, whole.outputs, second.outputs)
    return first
