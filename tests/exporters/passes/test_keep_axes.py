from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from saten_exporters.passes import CancelLayoutsPass, KeepAxesPass

HEAD = '<ir_version: 10, opset_import: ["" : 18]>'
INPUTS = "float[batch, new, 8] x, float[8, 6] w, float[6] b"
SHAPES = "float[rows, 8] flat, float[rows, 6] moved, float[batch, new, 6] back"


def text(*nodes: str, shapes: str = SHAPES, output: str = "float[batch, new, 6] y") -> str:
    constants = "int64[2] rows8 = {-1, 8}, int64[2] rows6 = {-1, 6}"
    made = "size = Shape <end = 2> (x) six = Constant <value_ints = [6]> () axes = Concat <axis = 0> (size, six)"
    return f"{HEAD} g ({INPUTS}) => ({output}) <{constants}, {shapes}> {{ {made} {' '.join(nodes)} }}"


FLAT, PRODUCT, BIAS = "flat = Reshape (x, rows8)", "product = MatMul (flat, w)", "moved = Add (product, b)"
BACK, LAST = "back = Reshape (moved, axes)", "y = Neg (back)"
WITHOUT = BACK.replace("moved", "product")
KEPT_AXES = {
    "with a bias": text(FLAT, PRODUCT, BIAS, BACK, LAST),
    "with a bias before": text(FLAT, PRODUCT, "moved = Add (b, product)", BACK, LAST),
    "without": text(FLAT, PRODUCT, WITHOUT, LAST, shapes=f"float[rows, 6] product, {SHAPES}"),
}
# Nothing may happen to these.
KEPT = {
    "rows that are read": text(
        FLAT, PRODUCT, WITHOUT, "z = Neg (product)", "w2 = Reshape (z, axes)", "y = Add (back, w2)"
    ),
    "rows that are read before the bias": text(
        FLAT, PRODUCT, BIAS, BACK, "z = Neg (product)", "w2 = Reshape (z, axes)", "y = Add (back, w2)"
    ),
    "rows that go out": text(FLAT, PRODUCT, "y = Add (product, b)", output="float[rows, 6] y"),
    "other axes behind": text(FLAT, PRODUCT, WITHOUT, LAST, shapes=SHAPES.replace("batch, new, 6", "new, batch, 6")),
    "an unknown axis": text(FLAT, PRODUCT, WITHOUT, LAST, shapes=SHAPES.replace("batch, new, 6", "batch, ?, 6")),
    "another width before": text(FLAT, PRODUCT, WITHOUT, LAST).replace(
        "float[batch, new, 8] x", "float[batch, new, 4] x"
    ),
    "another bias": text(FLAT, PRODUCT, "moved = Add (product, made)", BACK, LAST).replace(
        "size =", "made = Neg (b) size ="
    ),
    "a computed weight": text("v = Neg (w)", FLAT, "product = MatMul (flat, v)", WITHOUT, LAST),
    "nothing before": text("flat = Neg (x)", "y = MatMul (flat, w)", shapes="float[batch, new, 8] flat"),
    "another operator behind": text(FLAT, PRODUCT, "back = Expand (product, rows6)", "y = Neg (back)"),
}
RANDOM = np.random.default_rng(2)
WEIGHTS = {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in (("w", (8, 6)), ("b", (6,)))}

Parse = Callable[..., ir.Model]


@pytest.mark.parametrize("case", KEPT_AXES)
def test_it_computes_the_same(case: str, parse_model: Parse, run_ort: Callable[..., list[np.ndarray]]) -> None:
    before, model = (parse_model(KEPT_AXES[case], **WEIGHTS) for _ in range(2))
    assert KeepAxesPass()(model).modified
    CancelLayoutsPass()(model)
    common.RemoveUnusedNodesPass()(model)
    kinds = ["MatMul", "Neg"] if case == "without" else ["MatMul", "Add", "Neg"]
    assert [node.op_type for node in model.graph] == kinds
    assert not KeepAxesPass()(model).modified
    for value in (output for node in model.graph for output in node.outputs):
        assert [str(dim) for dim in value.shape or ()] == ["batch", "new", "6"]
        assert value.type is not None
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    (expected,), (got,) = (run_ort(each, {"x": x}, optimized=False) for each in (before, model))
    bound = 10 * float(np.finfo(np.float32).eps) * (np.abs(x) @ np.abs(WEIGHTS["w"]) + np.abs(WEIGHTS["b"]))
    assert (np.abs(got - expected) <= bound).all()
    assert not (np.abs(got[:, ::-1] - expected) <= bound).all()


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case: str, parse_model: Parse) -> None:
    model = parse_model(KEPT[case], **WEIGHTS)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not KeepAxesPass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
