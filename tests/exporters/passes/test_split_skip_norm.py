from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from saten_exporters.passes import SplitSkipNormPass

WIDTH = 48
EPSILON = 1e-3
UNIT = float(np.finfo(np.float32).eps) / 2

HEAD = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>'
INPUTS = ", ".join(
    [
        *(f"float[2, 3, {WIDTH}] {name}" for name in ("x", "skip")),
        *(f"float[{WIDTH}] {name}" for name in ("scale", "offset", "bias")),
    ]
)
OUT = f"float[2, 3, {WIDTH}] y"

Parse = Callable[..., ir.Model]
RunOrt = Callable[..., list[np.ndarray]]


def text(
    inputs: str, outputs: str = "y", more: str = "", graph_outputs: str = OUT, domain: str = "com.microsoft."
) -> str:
    node = f"{outputs} = {domain}SkipLayerNormalization <epsilon = {EPSILON}> ({inputs})"
    return f"{HEAD} g ({INPUTS}) => ({graph_outputs}) {{ {node} {more} }}"


def feeds() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    shapes = {"x": (2, 3, WIDTH), "skip": (2, 3, WIDTH), "scale": WIDTH, "offset": WIDTH, "bias": WIDTH}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def oracle(inputs: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Layer norm of the sum in float64, and what rounding may do to it.

    With every term of a sum of n off by δ = γ_n max|s|, the mean and each deviation d are off by at most δ, so is
    the standard deviation σ (it is 1-Lipschitz in the deviations), and rounding in Σ d² adds γ_n Σ s² / n.
    """
    given = {name: array.astype(np.float64) for name, array in feeds().items() if name in inputs}
    summed = given["x"] + given["skip"] + given.get("bias", 0)
    deviation = summed - summed.mean(axis=-1, keepdims=True)
    sigma = np.sqrt((deviation**2).mean(axis=-1, keepdims=True) + EPSILON)
    scaled = given["scale"] * deviation / sigma
    gamma = (WIDTH + 8) * UNIT
    delta = gamma * np.abs(summed).max(axis=-1, keepdims=True)
    relative = delta / sigma + gamma * (summed**2).mean(axis=-1, keepdims=True) / sigma**2
    offset = given.get("offset", np.zeros(WIDTH))
    bound = (
        np.abs(given["scale"]) * delta / sigma + np.abs(scaled) * relative + gamma * (np.abs(scaled) + np.abs(offset))
    )
    return scaled + offset, bound


def run(model: ir.Model, run_ort: RunOrt) -> list[np.ndarray]:
    needed = {value.name for value in model.graph.inputs}
    return run_ort(model, {name: array for name, array in feeds().items() if name in needed})


INPUT_LISTS = ["x, skip, scale, offset, bias", "x, skip, scale, offset", "x, skip, scale, , bias", "x, skip, scale"]


@pytest.mark.parametrize("inputs", INPUT_LISTS)
def test_it_is_split(inputs: str, parse_model: Parse, run_ort: RunOrt) -> None:
    model = parse_model(text(inputs))
    before = run(model, run_ort)
    assert SplitSkipNormPass()(model).modified
    assert [(node.domain, node.op_type) for node in model.graph] == [("", "Sum"), ("", "LayerNormalization")]
    after = run(model, run_ort)
    expected, bound = oracle(tuple(name.strip() for name in inputs.split(",")))
    for got in (*before, *after):
        assert (np.abs(got - expected) <= bound).all()
    for wrong in (np.zeros_like(expected), expected[::-1], expected * (1 + 1e-3)):
        assert not (np.abs(wrong - expected) <= bound).all()


def test_epsilon_is_kept(parse_model: Parse) -> None:
    model = parse_model(text("x, skip, scale, offset"))
    SplitSkipNormPass()(model)
    assert model.graph[1].attributes.get_float("epsilon") == pytest.approx(EPSILON, rel=1e-6)
    assert model.graph[1].attributes.get_int("axis") == -1


@pytest.mark.parametrize("inputs", INPUT_LISTS[:2])
def test_the_sum_may_be_read(inputs: str, parse_model: Parse, run_ort: RunOrt) -> None:
    more = "z = Relu (summed)"
    model = parse_model(text(inputs, "y, , , summed", more, f"{OUT}, float[2, 3, {WIDTH}] z"))
    before = run(model, run_ort)
    assert SplitSkipNormPass()(model).modified
    assert [node.op_type for node in model.graph] == ["Sum", "LayerNormalization", "Relu"]
    after = run(model, run_ort)
    np.testing.assert_allclose(after[1], before[1], rtol=4 * UNIT, atol=8 * UNIT * np.abs(before[1]).max())
    assert after[1].any()


def test_the_sum_may_be_an_output(parse_model: Parse, run_ort: RunOrt) -> None:
    model = parse_model(text("x, skip, scale", "y, , , summed", "", f"{OUT}, float[2, 3, {WIDTH}] summed"))
    assert SplitSkipNormPass()(model).modified
    _, summed = run(model, run_ort)
    np.testing.assert_allclose(summed, feeds()["x"] + feeds()["skip"], rtol=4 * UNIT)
    assert [value.name for value in model.graph.outputs] == ["y", "summed"]


@pytest.mark.parametrize(
    ("outputs", "more", "graph_outputs"),
    [
        ("y, mean", "z = Relu (mean)", f"{OUT}, float[2, 3, 1] z"),
        ("y, mean", "", f"{OUT}, float[2, 3, 1] mean"),
        ("y, , inverse", "z = Relu (inverse)", f"{OUT}, float[2, 3, 1] z"),
        ("y, , inverse", "", f"{OUT}, float[2, 3, 1] inverse"),
    ],
)
def test_not_where_mean_or_variance_is_read(outputs: str, more: str, graph_outputs: str, parse_model: Parse) -> None:
    model = parse_model(text("x, skip, scale, offset", outputs, more, graph_outputs))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not SplitSkipNormPass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "other", [text("x, skip, scale", domain=""), f"{HEAD} g ({INPUTS}) => ({OUT}) {{ y = Add (x, skip) }}"]
)
def test_not_another_operator(other: str, parse_model: Parse) -> None:
    assert not SplitSkipNormPass()(parse_model(other)).modified


def test_two_of_them_in_a_row(parse_model: Parse, run_ort: RunOrt) -> None:
    more = "y = com.microsoft.SkipLayerNormalization (first, skip, scale, offset)"
    model = parse_model(text("x, skip, scale, offset", "first", more))
    (before,) = run(model, run_ort)
    assert SplitSkipNormPass()(model).modified
    assert [node.op_type for node in model.graph] == ["Sum", "LayerNormalization"] * 2
    (after,) = run(model, run_ort)
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert not SplitSkipNormPass()(model).modified


def test_onnx_runtime_does_not_fuse_it_again(parse_model: Parse, tmp_path: Path) -> None:
    model = parse_model(text("x, skip, scale, offset", graph_outputs=OUT))
    SplitSkipNormPass()(model)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert "SkipLayerNormalization" not in {node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph}
