from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters.choice.settings import ExportSettings
from saten_exporters.passes import QuantizeDensePass
from saten_exporters.quantize import PRECISIONS

INT8 = ExportSettings("int8")

HEAD = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>'
LINEAR = (
    HEAD
    + """
    g (float[batch, sequence, 64] x, float[64, 96] w) => (float[batch, sequence, 96] y) {
        product = MatMul (x, w)
        y = Relu (product)
    }"""
)
LOOKUP = (
    HEAD
    + """
    g (int64[batch, sequence] x, float[100, 48] w) => (float[batch, sequence, 48] y) {
        y = Gather (w, x)
    }"""
)
SHARED = (
    HEAD
    + """
    g (int64[batch, sequence] x, float[100, 48] w) => (float[batch, sequence, 48] y) {
        first = Gather <axis = 0> (w, x)
        second = Gather <axis = 0> (w, x)
        y = Add (first, second)
    }"""
)
TIED = (
    HEAD
    + """
    g (float[batch, sequence, 64] x, float[64, 64] w) => (float[batch, sequence, 64] y) {
        inner = MatMul (x, w)
        y = MatMul (inner, w)
    }"""
)
# What must stay as it is: name → (text, shapes of the weights)
LEFT_ALONE = {
    "activation times activation": (
        "g (float[2, 64, 64] x, float[2, 64, 64] w) => (y) { y = MatMul (x, w) }",
        {},
    ),
    "weight times activation": ("g (float[64, 64] x, float[64, 64] w) => (y) { y = MatMul (w, x) }", {"w": (64, 64)}),
    "one weight less than the smallest": (
        "g (float[2, 63] x, float[63, 65] w) => (y) { y = MatMul (x, w) }",
        {"w": (63, 65)},
    ),
    "three axes": ("g (float[2, 64, 64] x, float[2, 64, 64] w) => (y) { y = MatMul (x, w) }", {"w": (2, 64, 64)}),
    "a small table": ("g (int64[2, 3] x, float[10, 48] w) => (y) { y = Gather (w, x) }", {"w": (10, 48)}),
    "a lookup along the other axis": (
        "g (int64[2, 3] x, float[100, 48] w) => (y) { y = Gather <axis = 1> (w, x) }",
        {"w": (100, 48)},
    ),
    "another domain": (
        "g (float[2, 64] x, float[64, 64] w) => (y) { y = com.microsoft.MatMul (x, w) }",
        {"w": (64, 64)},
    ),
    "another operator": ("g (float[2, 64] x, float[64, 64] w) => (y) { y = Gemm (x, w) }", {"w": (64, 64)}),
}

Parse = Callable[..., ir.Model]
RunOrt = Callable[..., list[np.ndarray]]


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(11).standard_normal(shape).astype(np.float32)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def product_bound(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Half a step of the weights and half a step of the activations; see tests/support/form_oracle.py."""
    half = 0.5 + 1e-4
    w_moved = half * np.abs(w).max(axis=0) / 127
    x_moved = half * (max(x.max(), 0) - min(x.min(), 0)) / 255
    return np.abs(x).sum(axis=-1, keepdims=True) * w_moved + x_moved * (np.abs(w) + w_moved).sum(axis=0)


def close(got: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> bool:
    return got.shape == expected.shape and bool((np.abs(got - expected) <= bound).all())


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
@pytest.mark.parametrize("optimized", [False, True])
def test_a_linear_layer_is_quantized_within_its_bound(
    shape: tuple[int, int], optimized: bool, parse_model: Parse, run_ort: RunOrt
) -> None:
    w, x = weight(64, 96), weight(*shape, 64)
    model = parse_model(LINEAR, w=w)
    (before,) = run_ort(model, {"x": x})
    assert QuantizeDensePass(INT8)(model).modified
    assert operators(model) == {"DynamicQuantizeMatMul": 1, "Relu": 1}
    (after,) = run_ort(model, {"x": x}, optimized=optimized)
    assert close(after, before, product_bound(x, w))
    assert not close(np.zeros_like(after), before, product_bound(x, w))
    stored = {value.name: value.const_value for value in model.graph.initializers.values()}
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()} == {
        "w.codes": (ir.DataType.INT8, (64, 96)),
        "w.scale": (ir.DataType.FLOAT, (96,)),
    }


@pytest.mark.parametrize("rows", [1, 128])
def test_a_matrix_that_had_4_bits_keeps_them_at_int4(rows: int, parse_model: Parse, run_ort: RunOrt) -> None:
    random = np.random.default_rng(5)
    steps = random.integers(0, 16, (96, 2, 32))
    steps[..., :2] = 0, 15
    scale, low = random.uniform(0.5, 1, (2, 96, 2, 1)).astype(np.float32)
    born, x = ((steps - 8 + low) * scale).reshape(96, 64).T.astype(np.float32), weight(3, 5, 64)
    moved = {}
    for name, w in (("born", born), ("other", weight(64, 96))):
        model = parse_model(LINEAR, w=w)
        (before,) = run_ort(model, {"x": x})
        assert QuantizeDensePass(ExportSettings("int4", rows=rows))(model).modified
        (after,) = run_ort(model, {"x": x})
        moved[name] = float(np.linalg.norm(after - before) / np.linalg.norm(before))
        assert operators(model)["ReduceSum"] == (name == "born")
    # What is left is the rounding of x to 8 bits where there are few rows, and that of the offsets.
    assert moved["born"] < (0.02 if rows == 1 else 0.005) < 0.05 < moved["other"]


@pytest.mark.parametrize("text", [LOOKUP, LOOKUP.replace("Gather (", "Gather <axis = 0> (")])
def test_a_table_is_quantized_row_by_row(text: str, parse_model: Parse, run_ort: RunOrt) -> None:
    w, x = weight(100, 48), np.array([[0, 99, 7], [50, 0, 99]])
    model = parse_model(text, w=w)
    assert QuantizeDensePass(INT8)(model).modified
    assert operators(model) == {"Gather": 2, "Cast": 1, "Mul": 1}
    (after,) = run_ort(model, {"x": x})
    bound = (0.5 + 1e-4) * np.abs(w[x]).max(axis=-1, keepdims=True) / 127
    assert close(after, w[x], bound)
    assert not close(after[:, ::-1], w[x], bound)
    assert sum(value.const_value.nbytes for value in model.graph.initializers.values()) == w.size + 4 * len(w)


def test_a_shared_table_is_quantized_once(parse_model: Parse, run_ort: RunOrt) -> None:
    w, x = weight(100, 48), np.array([[0, 99]])
    model = parse_model(SHARED, w=w)
    assert QuantizeDensePass(INT8)(model).modified
    assert operators(model) == {"Gather": 4, "Cast": 2, "Mul": 2, "Add": 1}
    assert set(model.graph.initializers) == {"w.codes", "w.scale"}
    (after,) = run_ort(model, {"x": x})
    assert close(after, 2 * w[x], (1 + 1e-4) * np.abs(w[x]).max(axis=-1, keepdims=True) / 127)


def test_a_shared_weight_is_quantized_once(parse_model: Parse) -> None:
    model = parse_model(TIED, w=weight(64, 64))
    assert QuantizeDensePass(INT8)(model).modified
    assert operators(model) == {"DynamicQuantizeMatMul": 2}
    assert set(model.graph.initializers) == {"w.codes", "w.scale"}


def test_a_weight_that_something_else_reads_too_is_kept(parse_model: Parse) -> None:
    text = LINEAR.replace("y = Relu (product)", "z = MatMul (x, w)\n t = Transpose (w)\n y = Relu (product)")
    model = parse_model(text.replace("96] y)", "96] y, float[96, 64] t)"), w=weight(64, 96))
    assert QuantizeDensePass(INT8)(model).modified
    assert set(model.graph.initializers) == {"w", "w.codes", "w.scale"}


def test_the_smallest_weight_is_quantized(parse_model: Parse) -> None:
    text = HEAD + "g (float[2, 64] x, float[64, 64] w) => (float[2, 64] y) { y = MatMul (x, w) }"
    model = parse_model(text, w=weight(64, 64))
    assert QuantizeDensePass(INT8)(model).modified


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_no_large_weight_of_a_product_or_lookup_is_left_alone(name: str, parse_model: Parse) -> None:
    text, shapes = LEFT_ALONE[name]
    model = parse_model(HEAD + text, **{weight_name: weight(*shape) for weight_name, shape in shapes.items()})
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not QuantizeDensePass(INT8)(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_numbers_that_are_no_float32_are_left_alone(parse_model: Parse) -> None:
    text = HEAD + "g (int64[2, 3] x, int64[100, 48] w) => (int64[2, 3, 48] y) { y = Gather (w, x) }"
    model = parse_model(text, w=np.ones((100, 48), np.int64))
    assert not QuantizeDensePass(INT8)(model).modified


def test_an_initializer_that_a_caller_may_replace_is_left_alone(parse_model: Parse) -> None:
    model = parse_model(LINEAR, w=weight(64, 96))
    model.graph.inputs.append(model.graph.initializers["w"])
    assert not QuantizeDensePass(INT8)(model).modified


@pytest.mark.parametrize("text", [LINEAR, LOOKUP])
def test_again_there_is_nothing_left_to_do(text: str, parse_model: Parse) -> None:
    model = parse_model(text, w=weight(64, 96) if text is LINEAR else weight(100, 48))
    assert QuantizeDensePass(INT8)(model).modified
    assert not QuantizeDensePass(INT8)(model).modified


# --- the other precisions ----------------------------------------------------------------------------------------

OPERATORS = {
    "fp16": ({"Shape", "Constant", "Min", "Add", "Reshape", "Cast", "MatMul", "Relu"}, {"Gather", "Cast"}),
    "int8-block": ({"MatMulNBits", "Relu"}, {"GatherBlockQuantized"}),
    "int4": ({"MatMulNBits", "Relu"}, {"GatherBlockQuantized", "Constant", "Slice"}),
}


def half_step(w: np.ndarray, precision: str, axis: int) -> np.ndarray:
    """Half a step of each weight, whose blocks run along `axis`; 2^-11 of it in half precision."""
    if precision == "fp16":
        return np.abs(w) * 2.0**-11 + 2.0**-25
    row = PRECISIONS[precision]
    parts = np.split(np.moveaxis(np.abs(w), axis, 0), range(row.block, w.shape[axis], row.block))
    peaks = np.concatenate([np.broadcast_to(part.max(axis=0), part.shape) for part in parts])
    return np.moveaxis((0.5 + 1e-4) * peaks / (2 ** (row.bits - 1) - 1), 0, axis)


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("rows", [1, 128])
@pytest.mark.parametrize("precision", OPERATORS)
def test_a_linear_layer_at(precision: str, rows: int, optimized: bool, parse_model: Parse, run_ort: RunOrt) -> None:
    w, x = weight(64, 96), weight(3, 5, 64)
    model = parse_model(LINEAR, w=w)
    (before,) = run_ort(model, {"x": x})
    assert QuantizeDensePass(ExportSettings(precision, rows=rows))(model).modified
    assert set(operators(model)) == OPERATORS[precision][0]
    (after,) = run_ort(model, {"x": x}, optimized=optimized)
    moved = half_step(w, precision, 0)
    coded = precision == "int8-block" or (precision == "int4" and rows == 1)
    x_moved = coded * (0.5 + 1e-4) * np.abs(x).max(axis=-1, keepdims=True) / 127
    bound = np.abs(x) @ moved + x_moved * (np.abs(w) + moved).sum(axis=0) + 1e-5 * (np.abs(x) @ np.abs(w))
    assert close(after, before, bound)
    wrong = after.copy()
    wrong[2, 4, 50] += 10 * np.abs(before).max()
    assert not close(wrong, before, bound)


@pytest.mark.parametrize(("inputs", "rows", "level"), [(64, 1, 4), (64, 128, 0), (128, 1, 4), (128, 128, 4)])
def test_only_many_rows_of_few_inputs_stay_float32_at_int4(
    inputs: int, rows: int, level: int, parse_model: Parse
) -> None:
    model = parse_model(LINEAR.replace("64", str(inputs)), w=weight(inputs, 96))
    assert QuantizeDensePass(ExportSettings("int4", rows=rows))(model).modified
    (product,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert product.attributes.get_int("accuracy_level", -1) == level


@pytest.mark.parametrize("precision", ["int4", "int4-128"])
@pytest.mark.parametrize(
    ("target", "level"), [("x86-64", 0), ("web", 0), ("arm64", 4), ("arm64+kernels", 4), ("mobile", 4)]
)
def test_on_arm_activations_have_8_bits_at_any_number_of_rows(
    target: str, level: int, precision: str, parse_model: Parse
) -> None:
    model = parse_model(LINEAR, w=weight(64, 96))
    assert QuantizeDensePass(ExportSettings(precision, target, rows=128))(model).modified
    (product,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert product.attributes.get_int("accuracy_level", -1) == level


@pytest.mark.parametrize("precision", OPERATORS)
def test_a_table_at(precision: str, parse_model: Parse, run_ort: RunOrt) -> None:
    w, x = weight(100, 48), np.array([[0, 99, 7], [50, 0, 99]])
    model = parse_model(LOOKUP, w=w)
    assert QuantizeDensePass(ExportSettings(precision))(model).modified
    assert set(operators(model)) == OPERATORS[precision][1]
    (after,) = run_ort(model, {"x": x})
    bound = half_step(w, precision, 1)[x]
    assert close(after, w[x], bound)
    assert not close(after[:, ::-1], w[x], bound)
    stored = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    row = PRECISIONS[precision]
    scales = 4 * len(w) * -(-48 // row.block) if row.block else 0
    assert 0 <= stored - (w.size * row.bits // 8 + scales) <= 8  # the width


@pytest.mark.parametrize("text", [LINEAR, LOOKUP])
def test_nothing_changes_at_fp32(text: str, parse_model: Parse) -> None:
    model = parse_model(text, w=weight(64, 96) if text is LINEAR else weight(100, 48))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not QuantizeDensePass(ExportSettings("fp32"))(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("precision", OPERATORS)
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone_at(name: str, precision: str, parse_model: Parse) -> None:
    text, shapes = LEFT_ALONE[name]
    model = parse_model(HEAD + text, **{weight_name: weight(*shape) for weight_name, shape in shapes.items()})
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not QuantizeDensePass(ExportSettings(precision))(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
