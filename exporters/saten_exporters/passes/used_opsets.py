"""The operator sets that a graph or one of its functions uses, and no others."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["UsedOpsetsPass"]


class UsedOpsetsPass(ir.passes.InPlacePass):
    """Drops every import that neither the graph nor a function needs, and adds those that nodes need.

    onnx_ir's own pass drops what only functions use, too; a file must name that as well. An operator that was traced as
    it is, such as an attention of ONNX Runtime, brings no import where no fusion beside it does.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop and add them."""
        versions = {node.domain: node.version or 1 for node in model.graph.all_nodes()}
        missing = {domain: version for domain, version in versions.items() if domain not in model.opset_imports}
        model.opset_imports.update(missing)
        used = {*versions, ""}.union(*(function.opset_imports for function in model.functions.values()))
        unused = set(model.opset_imports) - used
        for domain in unused:
            del model.opset_imports[domain]
        return ir.passes.PassResult(model, modified=bool(unused or missing))
