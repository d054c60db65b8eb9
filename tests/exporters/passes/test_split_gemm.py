from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters.passes import SplitGemmPass

HEAD = '<ir_version: 10, opset_import: ["" : 18]>'
PLAIN = (
    HEAD
    + """
    g (float[rows, 3] x, float[3, 5] w, float[5] b) => (float[rows, 5] y) {
        y = Gemm (x, w, b)
    }"""
)
TURNED = PLAIN.replace("float[3, 5] w", "float[5, 3] w").replace("Gemm", "Gemm <transB = 1>")
WITHOUT_BIAS = PLAIN.replace("(x, w, b)", "(x, w)").replace(", float[5] b", "")
# Nothing may happen to these.
KEPT = {
    "another factor": PLAIN.replace("Gemm", "Gemm <alpha = 2.0>"),
    "another factor of the bias": PLAIN.replace("Gemm", "Gemm <beta = 0.5>"),
    "a transposed x": PLAIN.replace("float[rows, 3] x", "float[3, rows] x").replace("Gemm", "Gemm <transA = 1>"),
    "a weight read twice": TURNED.replace("y = Gemm", "twice = Neg (w)\n        y = Gemm"),
    "none": PLAIN.replace("y = Gemm (x, w, b)", "y = MatMul (x, w)"),
}
B = np.linspace(-1, 1, 5).astype(np.float32)

Parse = Callable[..., ir.Model]


def weight(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("text", [PLAIN, TURNED, WITHOUT_BIAS], ids=["plain", "turned", "without bias"])
def test_it_computes_the_same(text: str, parse_model: Parse, run_ort: Callable[..., list[np.ndarray]]) -> None:
    w = weight((5, 3) if text is TURNED else (3, 5))
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    given = {"w": w} if text is WITHOUT_BIAS else {"w": w, "b": B}
    before, model = parse_model(text, **given), parse_model(text, **given)
    assert SplitGemmPass()(model).modified
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"][: 1 if text is WITHOUT_BIAS else 2]
    (expected,), (got,) = (run_ort(each, {"x": x}, optimized=False) for each in (before, model))
    bound = 5 * float(np.finfo(np.float32).eps) * (np.abs(x) @ np.abs(w.T if text is TURNED else w) + 1)
    assert (np.abs(got - expected) <= bound).all()
    assert not (np.abs(got[:, ::-1] - expected) <= bound).all()


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(name: str, parse_model: Parse) -> None:
    model = parse_model(KEPT[name], w=weight((5, 3) if name == "a weight read twice" else (3, 5)), b=B)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not SplitGemmPass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_product_of_activations_stays(parse_model: Parse) -> None:
    assert not SplitGemmPass()(parse_model(PLAIN)).modified
