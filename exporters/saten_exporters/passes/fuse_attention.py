"""Placeholders of attention behind a cache → GroupQueryAttention, which appends to the cache and repeats no head.

A token of a small decoder costs what its operators cost, and attention in single steps is most of them. The rotary
embedding stays outside: in a first run ONNX Runtime's operator counts positions from 0, whatever `position_ids` say,
and those of a text with padding on the left do not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from saten_exporters.passes.initializers import constant
from saten_runtime.errors import ExportError
from saten_runtime.vocabulary.operators import CACHED_ATTENTION, DOMAIN

__all__ = ["FuseAttentionPass"]


class _Lengths(NamedTuple):
    """last: index of the last key of each text, (batch,) int32. total: keys, () int32."""

    last: ir.Value
    total: ir.Value


class _Appended(NamedTuple):
    """concat: what puts `new` keys or values behind those of the `past`."""

    concat: ir.Node
    past: ir.Value
    new: ir.Value


class FuseAttentionPass(ir.passes.InPlacePass):
    """Replaces every `saten::CachedAttention` and the two Concats that make its keys and values.

    Every text is as long as the batch, and padding is what is added to the scores: so padding may be anywhere.

    Raises:
        ExportError: keys or values are no cache of that layer alone with the new ones behind it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse all of the main graph; what they share is computed before the first."""
        found = [node for node in model.graph if node.domain == DOMAIN and node.op_type == CACHED_ATTENTION]
        lengths: dict[ir.Value | None, _Lengths] = {}
        for node in found:
            padding = node.inputs[3]
            if padding not in lengths:
                lengths[padding] = _add_lengths(model, node, padding)
            _fuse(model, node, lengths[padding])
        return ir.passes.PassResult(model, modified=bool(found))


def _add_lengths(model: ir.Model, node: ir.Node, padding: ir.Value | None) -> _Lengths:
    """Computed from the shape of what is added to the scores, (batch, 1, new, total)."""
    one = constant(model, "attention.one", np.array([1], np.int32))
    total = ir.Node("", "Shape", [padding], [ir.AttrInt64("start", 3)])
    narrow = ir.Node("", "Cast", total.outputs, [ir.AttrInt64("to", ir.DataType.INT32)])
    scalar = ir.Node("", "Squeeze", narrow.outputs)
    index = ir.Node("", "Sub", [narrow.outputs[0], one])
    batch = ir.Node("", "Shape", [padding], [ir.AttrInt64("end", 1)])
    last = ir.Node("", "Expand", [index.outputs[0], batch.outputs[0]])
    model.graph.insert_before(node, [total, narrow, scalar, index, batch, last])
    return _Lengths(last.outputs[0], scalar.outputs[0])


def _fuse(model: ir.Model, node: ir.Node, lengths: _Lengths) -> None:
    queries, _, _, padding = node.inputs
    keys, values = (_appended(node, value) for value in node.inputs[1:3])
    new_keys, new_values = (_rows(model, each.new) for each in (keys, values))
    fused = ir.Node(
        "com.microsoft",
        "GroupQueryAttention",
        [
            queries,
            new_keys[-1].outputs[0],
            new_values[-1].outputs[0],
            keys.past,
            values.past,
            *lengths,
            *[None] * 3,  # no rotary embedding
            padding,
        ],
        node.attributes.values(),
        num_outputs=3,
        name=node.name,
    )
    ir.convenience.replace_nodes_and_values(
        model.graph,
        node,
        [node, keys.concat, values.concat],
        [*new_keys, *new_values, fused],
        [node.outputs[0], keys.concat.outputs[0], values.concat.outputs[0]],
        fused.outputs,
    )


def _appended(node: ir.Node, value: ir.Value | None) -> _Appended:
    """How `value` is made, if an attention may make it instead."""
    concat = value.producer() if value is not None else None
    if value is not None and value.is_graph_output() and len(value.uses()) == 1 and concat is not None:
        past, new = (*concat.inputs, None, None)[:2]
        joins = concat.op_type == "Concat" and concat.attributes.get_int("axis", 0) in (2, -2)
        if joins and past is not None and past.is_graph_input() and new is not None and len(concat.inputs) == 2:
            return _Appended(concat, past, new)
    raise ExportError(
        f"{node.name}: an attention reads keys or values that are no cache of its own with new ones behind it; "
        "models whose layers share a cache cannot be expressed"
    )


def _rows(model: ir.Model, states: ir.Value) -> list[ir.Node]:
    """(batch, heads, new, width) → (batch, new, heads · width)."""
    batch, heads, new, width = list(states.shape or ())
    turned = ir.Node("", "Transpose", [states], [ir.AttrInt64s("perm", [0, 2, 1, 3])])
    joined = ir.Node("", "Reshape", [turned.outputs[0], constant(model, "attention.rows", np.array([0, 0, -1]))])
    for each, shape in ((turned, [batch, new, heads, width]), (joined, [batch, new, heads * width])):
        each.outputs[0].shape, each.outputs[0].type = ir.Shape(shape), states.type
    return [turned, joined]
