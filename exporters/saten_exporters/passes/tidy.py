"""Names for people, and nothing of the machine that exported: no stack traces, no local paths."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

__all__ = ["TidyPass"]

DIM_NAMES = ("batch", "sequence")


class TidyPass(ir.passes.InPlacePass):
    """Strips metadata and renames the inputs' symbolic dims to `batch` and `sequence` everywhere.

    Requires graph inputs of shape (batch, sequence). Does nothing to a graph that is already tidy.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Strip and rename."""
        stripped = common.ClearMetadataAndDocStringPass()(model).modified
        names = {
            str(dim): name
            for value in model.graph.inputs
            for dim, name in zip(value.shape or (), DIM_NAMES, strict=False)
            if isinstance(dim, ir.SymbolicDim) and str(dim) != name
        }
        values = [*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)]
        for value in values:
            _rename_dims(value, names)
        return ir.passes.PassResult(model, modified=stripped or bool(names))


def _rename_dims(value: ir.Value, names: dict[str, str]) -> None:
    if value.shape is None:
        return
    dims = [names.get(str(dim), dim) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
    if dims != list(value.shape):
        value.shape = ir.Shape(dims)
