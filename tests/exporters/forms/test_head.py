"""A head that shares a table: y = x Mᵀ from the weights of the lookup, stored once, within derived bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from form_oracle import BY_STEPS

from saten_exporters import LayerParts
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.forms import DENSE_FORMS, RESIDUAL_FORMS, TRAIN_FORMS, form_of
from saten_exporters.forms.head import HEAD_FORMS, head_of
from saten_exporters.passes import LowerPass
from saten_exporters.quantize import PRECISIONS
from saten_runtime.errors import ExportError

Array = np.ndarray
TABLES = {form.op_type for form in (*TRAIN_FORMS.values(), *RESIDUAL_FORMS.values()) if form.kind == "embedding"}
LAYOUTS = (None, "rows", "ell")
UNIT = float(np.finfo(np.float32).eps) / 2
HALF = 0.5 + 255 * 4 * UNIT  # half a step, and what dividing by a rounded step moves

SHARED = """<ir_version: 10, opset_import: ["" : 18, "saten" : 1]>
    g (int64[batch, sequence] ids, float[batch, sequence, 64] x)
    => (float[batch, sequence, 64] found, float[batch, sequence, 48] y) {
        found = saten.Embedding <layer = "layer"> (ids)
        y = saten.Head <layer = "layer"> (x)
    }"""


def residual(parts: LayerParts) -> Array:
    table = np.zeros(parts.shape)
    if parts.layout == "rows":
        table[parts.indices["rows"]] = parts.values
    if parts.layout == "ell":
        np.put_along_axis(table, parts.indices["indices"].astype(int), parts.values.astype(float), axis=1)
    return table


def wanted(x: Array, parts: LayerParts) -> Array:
    return x.astype(np.float64) @ (parts.a.astype(np.float64) @ parts.b + residual(parts)).T


def allowed(x: Array, parts: LayerParts, precision: str) -> Array:
    """Higham's γ_k of every product; in 8 bits, half a step of every weight and activation besides."""
    terms = parts.shape[1] + parts.a.shape[1] + 4
    a, b, s = np.abs(parts.a).astype(np.float64), np.abs(parts.b).astype(np.float64), np.abs(residual(parts))
    low = np.abs(x) @ b.T
    rounding = terms * UNIT / (1 - terms * UNIT) * (low @ a.T + np.abs(x) @ s.T)
    if precision == "fp32":
        return rounding
    if precision != "int8":
        return blockwise(x, parts, precision) + 2 * rounding
    b_scale, a_scale = b.max(axis=0) / 127, a.max(axis=1, keepdims=True) / 127  # of a column of B, of a row of A
    scaled, inner = x * b_scale, x.astype(np.float64) @ parts.b.T
    inner_moved = HALF * np.abs(x) @ np.tile(b_scale, (len(b), 1)).T + step(scaled) * (b / b_scale + HALF).sum(axis=1)
    inner_moved = inner_moved + step(inner) + 2 * inner_moved.max() / 255
    train = np.abs(inner) @ np.broadcast_to(HALF * a_scale, a.shape).T + inner_moved @ (a + HALF * a_scale).T
    s_moved = HALF * s.max(axis=1, keepdims=True) / 127 * (s > 0)
    x_moved = step(x) * (parts.layout == "rows") * np.ones_like(x)  # the other layout multiplies in float32
    return train + np.abs(x) @ s_moved.T + x_moved @ (s + s_moved).T + 2 * rounding


def blockwise(x: Array, parts: LayerParts, precision: str) -> Array:
    """Stored values move; where a product takes 8-bit activations, those do, too, block by block."""
    coded = precision == "int8-block"
    a, b, x = parts.a.astype(np.float64), parts.b.astype(np.float64), x.astype(np.float64)
    a_moved, b_moved = moved(a, precision, 1), moved(b, precision, 0)
    inner, inner_moved = x @ b.T, np.abs(x) @ b_moved.T
    inner_moved = inner_moved + coded * moved(np.abs(inner) + inner_moved, "int8-block", -1)
    train = np.abs(inner) @ a_moved.T + inner_moved @ (np.abs(a) + a_moved).T
    changed = dataclasses.replace(parts, values=moved(parts.values.astype(np.float64), precision, -1))
    s, s_moved = np.abs(residual(parts)), residual(changed)
    x_moved = coded * (parts.layout == "rows") * moved(x, "int8-block", -1)
    return (train + np.abs(x) @ s_moved.T + x_moved @ (s + s_moved).T) * (1 + 1e-5)


def moved(weights: Array, precision: str, axis: int) -> Array:
    """How far halves, or codes whose blocks run along `axis`, are from the weights."""
    if precision == "fp16":
        return 2.0**-11 * np.abs(weights) + 2.0**-25
    row = PRECISIONS[precision]
    peaks = np.moveaxis(np.abs(weights), axis, -1)
    peaks = np.concatenate(
        [
            np.broadcast_to(part.max(axis=-1, keepdims=True, initial=0), part.shape)
            for part in np.split(peaks, range(row.block, peaks.shape[-1], row.block), axis=-1)
        ],
        axis=-1,
    )
    return np.moveaxis(HALF * peaks / (2 ** (row.bits - 1) - 1), -1, axis)


def step(x: Array) -> float:
    """What a number of a tensor in 8 bits may be off."""
    return HALF * (max(0.0, float(x.max())) - min(0.0, float(x.min()))) / 255


def lowered(parts: LayerParts, precision: str, parse_model: Callable[..., ir.Model]) -> tuple[ir.Model, LowerPass]:
    model, lower = parse_model(SHARED), LowerPass({"layer": parts}, ExportSettings(precision, lowering="low-rank"))
    assert lower(model).modified
    return model, lower


def inputs(shape: tuple[int, int]) -> dict[str, Array]:
    random = np.random.default_rng(sum(shape))
    x = random.standard_normal((*shape, 64)).astype(np.float32)
    return {"ids": random.integers(0, 48, shape), "x": x}


def test_every_form_of_a_table_has_a_head() -> None:
    assert set(HEAD_FORMS) == TABLES | {form.op_type for form in DENSE_FORMS.values() if form.kind == "embedding"}


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("precision", BY_STEPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_head_multiplies_by_the_table(
    layout: str | None,
    precision: str,
    optimized: bool,
    parse_model: Callable[..., ir.Model],
    make_parts: Callable[..., LayerParts],
    run_ort: Callable[..., list[Array]],
) -> None:
    parts = make_parts("embedding", layout)
    model, _ = lowered(parts, precision, parse_model)
    for shape in ((1, 1), (2, 7), (3, 1)):
        feeds = inputs(shape)
        _, y = run_ort(model, feeds, optimized=optimized)
        expected, bound = wanted(feeds["x"], parts), allowed(feeds["x"], parts, precision)
        assert y.shape == expected.shape
        assert (np.abs(y - expected) <= bound).all()
    alone = {**feeds, "x": np.eye(64, dtype=np.float32)[None]}  # one input at a time: no sum hides an error
    _, y = run_ort(model, alone, optimized=optimized)
    expected, bound = wanted(alone["x"], parts), allowed(alone["x"], parts, precision)
    assert (np.abs(y - expected) <= bound).all()
    assert not (np.abs(np.roll(y, 1, axis=-1) - expected) <= bound).all()
    assert not (np.abs(expected) <= bound).all()  # zeros would be seen


@pytest.mark.parametrize("precision", BY_STEPS)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("without", ["train", "residual"])
def test_each_part_is_seen(
    layout: str,
    precision: str,
    without: str,
    parse_model: Callable[..., ir.Model],
    make_parts: Callable[..., LayerParts],
    run_ort: Callable[..., list[Array]],
) -> None:
    parts, feeds = make_parts("embedding", layout), {**inputs((1, 64)), "x": np.eye(64, dtype=np.float32)[None]}
    less = (
        dataclasses.replace(parts, a=parts.a * 0)
        if without == "train"
        else dataclasses.replace(parts, values=parts.values * 0)
    )
    _, y = run_ort(lowered(less, precision, parse_model)[0], feeds)
    assert not (np.abs(y - wanted(feeds["x"], parts)) <= allowed(feeds["x"], parts, precision)).all()


@pytest.mark.parametrize("precision", BY_STEPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_stored_once_and_never_as_a_dense_matrix(
    layout: str | None,
    precision: str,
    parse_model: Callable[..., ir.Model],
    make_parts: Callable[..., LayerParts],
    tmp_path: Path,
) -> None:
    parts = make_parts("embedding", layout)
    model, lower = lowered(parts, precision, parse_model)
    table = form_of(parts, precision)
    assert list(model.graph.initializers) == [f"layer.{name}" for name in table.inputs]
    assert [node.op_type for node in model.graph] == [table.op_type, head_of(table).op_type]
    assert [node.name for node in model.graph] == ["layer", "layer#2"]
    (row,) = lower.layers
    assert row.form == table.op_type
    assert row.macs_per_row == table.macs(parts) + head_of(table).macs(parts)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    stored = [value.const_value.nbytes for value in model.graph.initializers.values()]
    optimized = ir.load(tmp_path / "optimized.onnx")
    sizes = [value.const_value.nbytes for value in optimized.graph.initializers.values()]
    assert max(sizes) <= max(*stored, (len(parts.a) + 1) * PRECISIONS[precision].block)
    assert max(sizes) < parts.shape[0] * parts.shape[1] * 4
    # codes are turned once, or their blocks filled up; slots are widened to the indices ONNX Runtime gathers by
    row = PRECISIONS[precision]
    turned = sum(stored) + 2 * (len(parts.a) + 1) * row.block * row.bits // 8 if row.bits <= 8 else 0
    assert sum(sizes) <= sum(stored) + turned + 8 * parts.shape[0] + 64


def test_a_table_whose_form_has_no_head() -> None:
    form = dataclasses.replace(next(form for form in TRAIN_FORMS.values() if form.kind == "embedding"), stem="Round")
    with pytest.raises(ExportError, match="RoundEmbedding has no form"):
        head_of(form)
