"""Equal weights of a graph become one."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

__all__ = ["MergeWeightsPass"]


class MergeWeightsPass(ir.passes.InPlacePass):
    """Merges equal initializers, but for the defaults of inputs: a program may give those another value.

    onnx-ir leaves them alone, too, and warns of each; so it is not shown them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take the defaults out, and put them back."""
        known = model.graph.initializers
        defaults = [known.pop(name) for name, value in list(known.items()) if value.is_graph_input()]
        result = common.DeduplicateInitializersPass()(model)
        for value in defaults:
            known.add(value)
        return result
