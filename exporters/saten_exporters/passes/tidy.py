"""Nothing of the machine that exported: no stack traces, no local paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

__all__ = ["TidyPass"]


class TidyPass(ir.passes.InPlacePass):
    """Strips metadata and doc strings. Does nothing to a graph that has none."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Strip everything."""
        return ir.passes.PassResult(model, modified=_strip(model))


def _strip(model: ir.Model) -> bool:
    """Clear what onnx_ir's own pass clears, and the metadata of values, weights and the model besides."""
    found = False
    for thing in _described(model):
        found = found or bool(thing.metadata_props or thing.doc_string)
        thing.metadata_props.clear()
        thing.doc_string = None
    return found


def _described(model: ir.Model) -> Iterator[Any]:
    """Everything of a model that carries metadata and a doc string."""
    yield model
    for graph in (model.graph, *model.graph.subgraphs()):
        weights = graph.initializers.values()
        yield from (
            graph,
            *graph.inputs,
            *weights,
            *(value.const_value for value in weights if value.const_value is not None),
        )
    owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for owner in owners:
        yield owner
        for node in owner.all_nodes():
            yield from (node, *node.outputs)
