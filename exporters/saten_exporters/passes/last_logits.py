"""Logits of the last tokens only, where a program asks for them: a prompt is read for what follows its last token.

The head of a small language model is its largest product, and in a prompt all its rows but one are made for nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from saten_exporters.passes.initializers import constant, new_initializer
from saten_runtime.vocabulary.operators import DOMAIN, HEAD, LINEAR, LOGITS_TO_KEEP

__all__ = ["LastLogitsPass"]

_PRODUCTS = {("", "MatMul"), ("com.microsoft", "FusedMatMul"), (DOMAIN, HEAD), (DOMAIN, LINEAR)}
_END = np.iinfo(np.int64).max


class LastLogitsPass(ir.passes.InPlacePass):
    """Cuts what the head of a decoder reads to as many last tokens as the input `LOGITS_TO_KEEP` says; 0 keeps all.

    The input has a default, 0, so that a program that does not know it need not give it. Does nothing to a model
    without a cache, and where one product does not make the logits alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look for the output `logits` (batch, new, vocabulary)."""
        cached = any("past_key_values" in (value.name or "") for value in model.graph.inputs)
        logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
        head = logits.producer() if cached and logits is not None else None
        read = head.inputs[0] if head is not None and head.op_identifier()[:2] in _PRODUCTS else None
        if head is None or read is None or read.shape is None or len(read.shape) != 3:
            return ir.passes.PassResult(model, modified=False)
        _cut(model, head, read)
        return ir.passes.PassResult(model, modified=True)


def _cut(model: ir.Model, head: ir.Node, read: ir.Value) -> None:
    asked = new_initializer(model, LOGITS_TO_KEEP, np.array([0], np.int64))
    model.graph.inputs.append(asked)
    end = constant(model, "logits.end", np.array([_END], np.int64))
    axis = constant(model, "logits.axis", np.array([1], np.int64))
    start = ir.Node("", "Neg", [asked])
    last = ir.Node("", "Slice", [read, start.outputs[0], end, axis])
    last.outputs[0].type = read.type
    model.graph.insert_before(head, [start, last])
    head.replace_input_with(0, last.outputs[0])
    for value in (last.outputs[0], head.outputs[0]):  # of as many tokens as are kept, which has no name in the inputs
        shape = read.shape if value is last.outputs[0] else value.shape
        value.shape = ir.Shape([*shape[:1], "kept", *shape[2:]]) if shape is not None else None
