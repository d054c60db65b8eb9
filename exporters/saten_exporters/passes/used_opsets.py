"""Only the operator sets that a graph or one of its functions uses."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["UsedOpsetsPass"]


class UsedOpsetsPass(ir.passes.InPlacePass):
    """Drops every import that neither the graph nor a function needs.

    onnx_ir's own pass drops what only functions use, too; a file must name that as well.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop them from the model."""
        used = {node.domain for node in model.graph.all_nodes()}
        used = used.union({""}, *(function.opset_imports for function in model.functions.values()))
        unused = set(model.opset_imports) - used
        for domain in unused:
            del model.opset_imports[domain]
        return ir.passes.PassResult(model, modified=bool(unused))
