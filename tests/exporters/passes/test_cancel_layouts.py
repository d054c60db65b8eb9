from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from saten_exporters.passes import CancelLayoutsPass

HEAD = '<ir_version: 10, opset_import: ["" : 18]>'
SPLIT = "int64[4] split = {0, 0, 2, 4}, int64[3] flat = {0, 0, -1}"


def text(
    nodes: str, shapes: str, inputs: str = "float[batch, new, 8] x", output: str = "float[batch, new, 8] y"
) -> str:
    return f"{HEAD} g ({inputs}) => ({output}) <{SPLIT}, {shapes}> {{ {nodes} }}"


RESHAPED = text(
    "a = Reshape (x, split) b = Reshape (a, flat) y = Neg (b)", "float[batch, new, 2, 4] a, float[batch, new, 8] b"
)
TURNED = text(
    "a = Transpose <perm = [0, 2, 1]> (x) b = Transpose <perm = [0, 2, 1]> (a) y = Neg (b)",
    "float[batch, 8, new] a, float[batch, new, 8] b",
)
THERE_AND_BACK = text(
    """a = Reshape (x, split) b = Transpose <perm = [0, 2, 1, 3]> (a) c = Transpose <perm = [0, 2, 1, 3]> (b)
       d = Reshape (c, flat) y = Neg (d)""",
    """float[batch, new, 2, 4] a, float[batch, 2, new, 4] b, float[batch, new, 2, 4] c, float[batch, new, 8] d""",
)
AROUND = text(
    "a = Transpose <perm = [1, 2, 0]> (x) b = Transpose <perm = [2, 0, 1]> (a) y = Neg (b)",
    "float[new, 8, batch] a, float[batch, new, 8] b",
)
ONE = text("b = Reshape (x, flat) y = Neg (b)", "float[batch, new, 8] b")
CANCELLED = {
    "reshaped": RESHAPED,
    "turned": TURNED,
    "there and back": THERE_AND_BACK,
    "around": AROUND,
    "one reshape": ONE,
}
WIDE = "float[batch, new, 2, 4]"
# Nothing may happen to these.
KEPT = {
    "another shape": text("b = Reshape (x, split) y = Neg (b)", f"{WIDE} b", output=f"{WIDE} y"),
    "an unknown axis": RESHAPED.replace("float[batch, new, 8]", "float[batch, ?, 8]"),
    "an unknown shape": RESHAPED.replace(", float[batch, new, 8] b", ""),
    "another axis name": RESHAPED.replace("float[batch, new, 8] b", "float[batch, later, 8] b"),
    "turned on": TURNED.replace("[0, 2, 1]", "[1, 2, 0]"),
    "turned once": text("b = Transpose <perm = [1, 0, 2]> (x) y = Neg (b)", "float[new, batch, 8] b"),
    "an output": text("a = Reshape (x, split) y = Reshape (a, flat)", f"{WIDE} a"),
    "an output that is read": text("a = Reshape (x, split) y = Reshape (a, flat) z = Neg (y)", f"{WIDE} a"),
    "numbers that changed between": RESHAPED.replace("b = Reshape (a", "c = Relu (a) b = Reshape (c"),
    "none": text("y = Neg (x)", "float[1] unread"),
}

Parse = Callable[..., ir.Model]


@pytest.mark.parametrize("case", CANCELLED)
def test_it_reads_what_was_there(case: str, parse_model: Parse, run_ort: Callable[..., list[np.ndarray]]) -> None:
    model = parse_model(CANCELLED[case])
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    (before,) = run_ort(model, {"x": x}, optimized=False)
    assert CancelLayoutsPass()(model).modified
    common.RemoveUnusedNodesPass()(model)
    assert [node.op_type for node in model.graph] == ["Neg"]
    (after,) = run_ort(model, {"x": x}, optimized=False)
    np.testing.assert_array_equal(after, before)
    assert not np.array_equal(after, -x.swapaxes(0, 1).reshape(x.shape))
    assert not CancelLayoutsPass()(model).modified


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case: str, parse_model: Parse) -> None:
    model = parse_model(KEPT[case])
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not CancelLayoutsPass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
