from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from saten_exporters.passes import ExpandRmsNormPass

HEAD = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>'
FUSED = (
    HEAD
    + """
    g (float[batch, tokens, 8] x, float[8] scale) => (float[batch, tokens, 8] y) {
        y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.001> (x, scale)
    }"""
)
TWICE = FUSED.replace(
    "y = Simpl", "half = SimplifiedLayerNormalization <axis = -1, epsilon = 0.001> (x, scale)\n        y = Simpl"
).replace("0.001> (x, scale)\n    }", "0.001> (half, scale)\n    }")
# Nothing may happen to these.
KEPT = {
    "another axis": FUSED.replace("axis = -1", "axis = 1"),
    "a deviation that is read": FUSED.replace("y = Simpl", "y, deviation = Simpl").replace(
        "8] y) {", "8] y, float[batch, tokens, 1] deviation) {"
    ),
    "another domain": FUSED.replace("y = Simpl", "y = com.microsoft.Simpl"),
    "none": FUSED.replace("SimplifiedLayerNormalization <axis = -1, epsilon = 0.001>", "Mul"),
}
SCALE = np.linspace(0.5, 2, 8).astype(np.float32)
UNIT = float(np.finfo(np.float32).eps) / 2

Parse = Callable[..., ir.Model]


def wanted(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.001) * SCALE


@pytest.mark.parametrize(("text", "times"), [(FUSED, 1), (TWICE, 2)])
def test_it_computes_the_same(
    text: str, times: int, parse_model: Parse, run_ort: Callable[..., list[np.ndarray]]
) -> None:
    model = parse_model(text, scale=SCALE)
    assert ExpandRmsNormPass()(model).modified
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"] * times
    onnx.checker.check_model(ir.to_proto(model))
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    expected = wanted(x) if times == 1 else wanted(wanted(x))
    for optimized in (False, True):
        (got,) = run_ort(model, {"x": x}, optimized=optimized)
        bound = times * (8 + 8) * UNIT * np.abs(expected)  # 8 squares summed, and the steps around them
        assert (np.abs(got - expected) <= bound).all()
        assert not (np.abs(got[..., ::-1] - expected) <= bound).all()


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(name: str, parse_model: Parse) -> None:
    model = parse_model(KEPT[name], scale=SCALE)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not ExpandRmsNormPass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_onnxruntime_makes_it_again(parse_model: Parse, tmp_path: Path) -> None:
    model = parse_model(FUSED, scale=SCALE)
    ExpandRmsNormPass()(model)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    found = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert found == ["SimplifiedLayerNormalization"]
