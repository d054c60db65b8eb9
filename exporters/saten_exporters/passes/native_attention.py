"""Placeholders of attention between layers → one node, for which the native library has a kernel.

The kernel reads what layers give and gives what they read: heads are neither turned nor their scores written to memory.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from saten_exporters.forms.form import function
from saten_exporters.passes.calls import add_functions
from saten_exporters.passes.shapes import same_shape
from saten_runtime.vocabulary.operators import ATTENTION, DOMAIN

__all__ = ["NativeAttentionPass"]

_TURNED = [0, 2, 1, 3]

_HEADS = """
        number = Constant <value_int: int = @heads> ()
        rest = Constant <value_ints = [-1]> ()
        kept = Constant <value_ints = [0, 0]> ()
        heads_axis = Reshape (number, rest)
        split = Concat <axis = 0> (kept, heads_axis, rest)
        joined = Concat <axis = 0> (kept, rest)"""
_TURN = """
        {name}_heads = Reshape ({name}, split)
        {name}_turned = Transpose <perm = [0, 2, 1, 3]> ({name}_heads)"""
_SCORES = """
        scores = com.microsoft.FusedMatMul <alpha: float = @scale, transB = 1> (queries_turned, keys_turned)"""
_MASK = """
        masked = Add (scores, mask)"""
_RESULT = """
        weights = Softmax <axis = -1> ({scores})
        attended = MatMul (weights, values_turned)
        turned_back = Transpose <perm = [0, 2, 1, 3]> (attended)
        y = Reshape (turned_back, joined)"""


class _Place(NamedTuple):
    """flat: queries, keys and values as layers give them; result: what makes the one that a layer reads; heads."""

    flat: list[ir.Value]
    result: list[ir.Node]
    heads: int


class NativeAttentionPass(ir.passes.InPlacePass):
    """Replaces a `saten::Attention` whose inputs are (batch, tokens, heads · width), turned, and whose output is, too.

    Leaves others as they are. A mask that was repeated for every query is read as it was before. narrow: the kernel may
    round what its products take to bfloat16, where the processor multiplies that.
    """

    def __init__(self, *, narrow: bool = False) -> None:
        super().__init__()
        self.suffix = "Bf16" if narrow else ""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace all that can be in the main graph."""
        found = [node for node in model.graph if node.domain == DOMAIN and node.op_type == ATTENTION]
        places = [(node, place) for node in found if (place := _place(node)) is not None]
        for node, place in places:
            _replace(model, node, place, self.suffix)
        return ir.passes.PassResult(model, modified=bool(places))


def _place(node: ir.Node) -> _Place | None:
    turned = [value for value in node.inputs[:3] if value is not None]
    flat = [value for value in map(_flat, turned) if value is not None]
    heads = {value.shape[1] for value in turned if value.shape is not None and isinstance(value.shape[1], int)}
    result = _joined(node)
    if len(flat) < 3 or len(heads) != 1 or result is None:
        return None
    return _Place(flat, result, heads.pop())


def _flat(turned: ir.Value) -> ir.Value | None:
    """The value (batch, tokens, heads · width) that `turned` (batch, heads, tokens, width) is made of."""
    transpose = _made_by(turned, "Transpose")
    split = _made_by(transpose.inputs[0], "Reshape") if transpose is not None and _turns(transpose) else None
    if split is None or split.inputs[0] is None:
        return None
    return split.inputs[0] if same_shape(_joined_shape(split.outputs[0].shape), split.inputs[0].shape) else None


def _joined(node: ir.Node) -> list[ir.Node] | None:
    """The two nodes that turn what `node` gives and join its heads, if nothing else reads it."""
    transpose = _only_reader(node, "Transpose")
    reshape = _only_reader(transpose, "Reshape") if transpose is not None and _turns(transpose) else None
    if transpose is None or reshape is None:
        return None
    joined = same_shape(_joined_shape(transpose.outputs[0].shape), reshape.outputs[0].shape)
    return [transpose, reshape] if joined else None


def _joined_shape(shape: ir.Shape | None) -> ir.Shape | None:
    """(batch, tokens, heads, width) → (batch, tokens, heads · width), if heads and width are numbers."""
    if shape is None or len(shape) != 4:
        return None
    *front, heads, width = shape
    return ir.Shape([*front, heads * width]) if isinstance(heads, int) and isinstance(width, int) else None


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    maker = value.producer() if value is not None else None
    return maker if maker is not None and (maker.domain, maker.op_type) == ("", op_type) else None


def _only_reader(node: ir.Node, op_type: str) -> ir.Node | None:
    result = node.outputs[0]
    readers = [use.node for use in result.uses()]
    if len(readers) != 1 or result.is_graph_output() or (readers[0].domain, readers[0].op_type) != ("", op_type):
        return None
    return readers[0]


def _turns(node: ir.Node) -> bool:
    return list(node.attributes.get_ints("perm", ())) == _TURNED


def _replace(model: ir.Model, node: ir.Node, place: _Place, suffix: str) -> None:
    masks = [_as_before(mask, _scores_shape(node)) for mask in node.inputs[3:] if mask is not None]
    name = f"{'Masked' if masks else ''}MultiHeadAttention{suffix}"
    attributes = [
        ir.AttrInt64("heads", place.heads),
        ir.AttrFloat32("scale", node.attributes.get_float("scale", 1.0)),
    ]
    new = ir.Node(DOMAIN, name, [*place.flat, *masks], attributes, name=node.name)
    add_functions(model, [_function(name, model.opset_imports[""], masked=bool(masks))])
    old = [node, *place.result]
    ir.convenience.replace_nodes_and_values(model.graph, node, old, [new], old[-1].outputs, new.outputs)


def _scores_shape(node: ir.Node) -> ir.Shape | None:
    queries, keys = (value.shape if value is not None else None for value in node.inputs[:2])
    return ir.Shape([*queries[:3], keys[2]]) if queries is not None and keys is not None else None


def _as_before(mask: ir.Value, scores: ir.Shape | None) -> ir.Value:
    """What a mask was before it was repeated, if no sum with the scores can tell."""
    expand, shape = _made_by(mask, "Expand"), mask.shape
    if expand is None or expand.inputs[0] is None or shape is None or scores is None or len(shape) != len(scores):
        return mask
    axes = zip(shape, scores, strict=True)
    spread = all(axis == 1 or same_shape(ir.Shape([axis]), ir.Shape([whole])) for axis, whole in axes)
    return expand.inputs[0] if spread else mask


def _function(name: str, opset: int, *, masked: bool) -> ir.Function:
    inputs = ("queries", "keys", "values")
    turned = "".join(_TURN.format(name=each) for each in inputs)
    result = _RESULT.format(scores="masked" if masked else "scores")
    body = _HEADS + turned + _SCORES + (_MASK if masked else "") + result
    return function(name, (*inputs, *(["mask"] if masked else [])), body, opset, attributes=("heads", "scale"))
