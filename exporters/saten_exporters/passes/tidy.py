"""Names for people, and nothing of the machine that exported: no stack traces, no local paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

__all__ = ["TidyPass"]

DIM_NAMES = ("batch", "sequence")


class TidyPass(ir.passes.InPlacePass):
    """Strips metadata and renames the inputs' symbolic dims to `batch` and `sequence` everywhere.

    Requires graph inputs of shape (batch, sequence). Does nothing to a graph that is already tidy.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Strip and rename."""
        stripped = _strip(model)
        names = {
            str(dim): name
            for value in model.graph.inputs
            for dim, name in zip(value.shape or (), DIM_NAMES, strict=False)
            if isinstance(dim, ir.SymbolicDim) and str(dim) != name
        }
        values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
        for value in values:
            _rename_dims(value, names)
        return ir.passes.PassResult(model, modified=stripped or bool(names))


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


def _rename_dims(value: ir.Value, names: dict[str, str]) -> None:
    if value.shape is None:
        return
    dims = [names.get(str(dim), dim) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
    if dims != list(value.shape):
        value.shape = ir.Shape(dims)
