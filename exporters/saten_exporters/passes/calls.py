"""Calls of forms in a graph: the node, the functions it needs, and the body itself where a form has no node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from saten_exporters.forms import DENSE_FORMS, Form
from saten_runtime.vocabulary.operators import DOMAIN, DOMAIN_VERSION

__all__ = ["add_functions", "call", "expand_dense"]

_DENSE = {form.op_type for form in DENSE_FORMS.values()}


def add_functions(model: ir.Model, functions: Iterable[ir.Function]) -> None:
    """Give `model` functions, and the operator sets they use."""
    for function in functions:
        model.functions[function.identifier()] = function
        model.opset_imports.update({k: v for k, v in function.opset_imports.items() if k})
    model.opset_imports[DOMAIN] = DOMAIN_VERSION


def call(
    model: ir.Model,
    old: ir.Node,
    form: Form,
    inputs: Sequence[ir.Value | None],
    sizes: Mapping[str, int],
    name: str | None,
) -> None:
    """Replace `old`, a node of the main graph, by a call of `form`."""
    attributes = [ir.AttrInt64(key, value) for key, value in sizes.items()]
    new = ir.Node(DOMAIN, form.op_type, inputs, attributes, name=name)
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], [new], old.outputs, new.outputs)


def expand_dense(model: ir.Model) -> None:
    """Put the bodies of dense forms in place of their calls: a dense layer needs no function."""
    names = {
        node.outputs[0].name: node.name for node in model.graph if node.domain == DOMAIN and node.op_type in _DENSE
    }
    common.InlinePass(criteria=lambda function: function.domain == DOMAIN and function.name in _DENSE)(model)
    for node in model.graph:  # inlining numbers the nodes; what makes the result is called as before
        if (value := node.outputs[0].name) in names:
            node.name = names[value]
