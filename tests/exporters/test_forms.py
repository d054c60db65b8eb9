"""Every form computes x (A B + S), within what rounding and 8-bit steps allow.

The bounds follow from the arithmetic. float32: Higham, "Accuracy and Stability of Numerical Algorithms", §3.5,
|error| ≤ γ_k |x| |M|, γ_k = k u / (1 − k u). 8 bit: a weight moves by at most half its scale; an activation by at
most half of (max − min) / 255, both ranges widened to hold 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters import LayerParts
from saten_exporters.forms import RESIDUAL_FORMS, TRAIN_FORMS, Form, form_of
from saten_runtime.errors import ExportError

Array = np.ndarray
MakeParts = Callable[..., LayerParts]
OneForm = Callable[[Form, LayerParts], ir.Model]
RunOrt = Callable[..., list[Array]]

UNIT = float(np.finfo(np.float32).eps) / 2
# Half a step; dividing by a rounded step moves a number by a few roundings of at most 255 steps.
HALF = 0.5 + 255 * 4 * UNIT

PARTS = [*((None, *row) for row in TRAIN_FORMS), *RESIDUAL_FORMS]  # (layout or None, kind, precision)
LAYERS = [row for row in PARTS if row[0]]
SIZES = ("usual", "smallest", "primes", "full")
SHAPES = ((1, 1), (2, 7), (3, 1), (1, 33))


def form_row(layout: str | None, kind: str, precision: str) -> Form:
    return TRAIN_FORMS[kind, precision] if layout is None else RESIDUAL_FORMS[layout, kind, precision]


def gamma(k: int) -> float:
    return k * UNIT / (1 - k * UNIT)


# --- the oracle: loops and float64, nothing of the exporter's ---------------------------------------------------


def dense_residual(parts: LayerParts) -> Array:
    """S (in, out) in float64."""
    table = np.zeros(parts.shape)
    if parts.values.size == 0:
        return table
    if parts.layout == "rows":
        for row, values in zip(parts.indices["rows"], parts.values, strict=True):
            table[row] = values
        return table
    indices = parts.indices["indices"].astype(np.int64)
    if parts.layout == "csr":
        for row, (start, end) in enumerate(zip(parts.indices["indptr"][:-1], parts.indices["indptr"][1:], strict=True)):
            for k in range(start, end):
                table[indices[k], row] = parts.values[k]
    elif parts.layout == "ell":
        for row, columns in enumerate(indices):
            for column, value in zip(columns, parts.values[row], strict=True):
                table[row, column] = value
    else:
        size = parts.values.shape[1]
        for group, blocks in enumerate(parts.values):
            for output, values in enumerate(blocks):
                for where, value in zip(indices[group], values, strict=True):
                    table[where, group * size + output] = value
    return table


def apply(x: Array, matrix: Array) -> Array:
    """A lookup for ids, else a product."""
    return matrix[x] if x.dtype.kind == "i" else x.astype(np.float64) @ matrix


def wanted(x: Array, parts: LayerParts, *, train: bool, residual: bool) -> Array:
    low = parts.a.astype(np.float64) @ parts.b.astype(np.float64)
    return apply(x, train * low + residual * dense_residual(parts))


# --- what may be the difference ----------------------------------------------------------------------------------


def scale_of(weights: Array, axis: int) -> Array:
    return np.abs(weights).max(axis=axis, keepdims=True) / 127


def dynamic_product(x: Array, x_error: Array | float, weights: Array, scale: Array) -> Array:
    """Bound of DynamicQuantizeMatMul, whose x was already off by `x_error`, element by element."""
    low, high = min(0.0, (x - x_error).min()), max(0.0, (x + x_error).max())
    x_moved = x_error + np.full(x.shape, HALF * (high - low) / 255)
    weights_moved = np.broadcast_to(HALF * scale, weights.shape)
    products = (np.abs(x) + x_moved) @ (np.abs(weights) + weights_moved)
    return np.abs(x) @ weights_moved + x_moved @ (np.abs(weights) + weights_moved) + gamma(4) * products


def low_rank(x: Array, parts: LayerParts) -> Array:
    a, b = np.abs(parts.a.astype(np.float64)), np.abs(parts.b.astype(np.float64))
    if parts.kind == "embedding":
        return gamma(parts.b.shape[0]) * (a[x] @ b)
    return gamma(sum(parts.a.shape)) * (np.abs(x) @ a @ b)


def low_rank_int8(x: Array, parts: LayerParts) -> Array:
    a, b = parts.a.astype(np.float64), parts.b.astype(np.float64)
    if parts.kind == "embedding":
        inner, moved = a[x], HALF * scale_of(a, axis=1)[x]
    else:
        inner, moved = x @ a, dynamic_product(x.astype(np.float64), 0.0, a, scale_of(a, axis=0))
    return dynamic_product(inner, moved, b, scale_of(b, axis=0))


def grouped(x: Array, parts: LayerParts) -> Array:
    return gamma(parts.values.shape[2]) * (np.abs(x) @ np.abs(dense_residual(parts)))


def grouped_int8(x: Array, parts: LayerParts) -> Array:
    residual = dense_residual(parts)
    moved = HALF * scale_of(residual, axis=0) * stored(parts)
    return np.abs(x) @ moved + gamma(parts.values.shape[2] + 2) * (np.abs(x) @ (np.abs(residual) + moved))


def csr(x: Array, parts: LayerParts) -> Array:
    return gamma(parts.shape[0]) * (np.abs(x) @ np.abs(dense_residual(parts)))


def csr_int8(x: Array, parts: LayerParts) -> Array:
    residual = dense_residual(parts)
    return dynamic_product(x.astype(np.float64), 0.0, residual, scale_of(residual, axis=0))


def rows(x: Array, parts: LayerParts) -> Array:
    return np.zeros((*x.shape, parts.shape[1]))  # a lookup rounds nothing


def rows_int8(x: Array, parts: LayerParts) -> Array:
    residual = dense_residual(parts)
    return (HALF * scale_of(residual, axis=1) * stored(parts))[x]


def stored(parts: LayerParts) -> Array:
    """1 where the residual has an entry, (in, out)."""
    return dense_residual(dataclasses.replace(parts, values=np.ones_like(parts.values)))


# op type → bound; a new row of the tables needs one here
BOUNDS = {
    "LowRankLinear": low_rank,
    "LowRankLinearInt8": low_rank_int8,
    "LowRankEmbedding": low_rank,
    "LowRankEmbeddingInt8": low_rank_int8,
    "GroupedLinear": grouped,
    "GroupedLinearInt8": grouped_int8,
    "CsrLinear": csr,
    "CsrLinearInt8": csr_int8,
    "RowsEmbedding": rows,
    "RowsEmbeddingInt8": rows_int8,
    "SparseEmbedding": rows,
    "SparseEmbeddingInt8": rows_int8,
}


def allowed(x: Array, parts: LayerParts, forms: tuple[Form, ...]) -> Array:
    """The bound of one form, or of the sum of two."""
    moved = sum(BOUNDS[form.op_type](x, parts) for form in forms)
    if len(forms) == 1:
        return moved
    terms = np.abs(wanted(x, parts, train=True, residual=False)) + np.abs(wanted(x, parts, train=False, residual=True))
    return moved + UNIT * (terms + moved)


def same(got: Array, expected: Array, bound: Array) -> bool:
    """The check that every test and every twin goes through."""
    return got.shape == expected.shape and bool((np.abs(got - expected) <= bound).all())


# --- inputs --------------------------------------------------------------------------------------------------------


def make_x(parts: LayerParts, shape: tuple[int, int]) -> Array:
    random = np.random.default_rng(sum(shape))
    if parts.kind == "linear":
        return random.standard_normal((*shape, parts.shape[0])).astype(np.float32)
    return random.integers(0, parts.shape[0], shape)


def forms_at(layout: str | None, kind: str, precision: str, *, whole: bool) -> tuple[Form, ...]:
    own = form_row(layout, kind, precision)
    return (form_row(None, kind, precision), own) if whole else (own,)


# --- tests ---------------------------------------------------------------------------------------------------------


def test_every_form_has_a_bound() -> None:
    ops = {form.op_type for form in (*TRAIN_FORMS.values(), *RESIDUAL_FORMS.values())}
    assert ops == set(BOUNDS)


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("layout", "kind", "precision"), PARTS)
def test_a_part(
    layout: str | None,
    kind: str,
    precision: str,
    size: str,
    optimized: bool,
    make_parts: MakeParts,
    one_form: OneForm,
    run_ort: RunOrt,
) -> None:
    parts, form = make_parts(kind, layout, size), form_row(layout, kind, precision)
    model = one_form(form, parts)
    for shape in SHAPES:
        x = make_x(parts, shape)
        (got,) = run_ort(model, {"x": x}, optimized=optimized)
        expected = wanted(x, parts, train=layout is None, residual=layout is not None)
        assert got.dtype == np.float32
        assert same(got, expected, allowed(x, parts, (form,))), (shape, np.abs(got - expected).max())


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("layout", "kind", "precision"), LAYERS)
def test_a_whole_layer(
    layout: str,
    kind: str,
    precision: str,
    size: str,
    optimized: bool,
    make_parts: MakeParts,
    one_form: OneForm,
    run_ort: RunOrt,
) -> None:
    parts = make_parts(kind, layout, size)
    forms = forms_at(layout, kind, precision, whole=True)
    model = one_form(form_of(parts, precision), parts)
    for shape in SHAPES:
        x = make_x(parts, shape)
        (got,) = run_ort(model, {"x": x}, optimized=optimized)
        expected = wanted(x, parts, train=True, residual=True)
        assert same(got, expected, allowed(x, parts, forms)), (shape, np.abs(got - expected).max())


@pytest.mark.parametrize(("kind", "precision"), TRAIN_FORMS)
def test_a_layer_whose_residual_kept_nothing_is_its_train(kind: str, precision: str, make_parts: MakeParts) -> None:
    assert form_of(make_parts(kind, None), precision) is TRAIN_FORMS[kind, precision]


@pytest.mark.parametrize(("layout", "kind", "precision"), LAYERS)
def test_a_layer_without_train_is_its_residual(
    layout: str, kind: str, precision: str, make_parts: MakeParts, one_form: OneForm, run_ort: RunOrt
) -> None:
    parts = make_parts(kind, layout)
    alone = dataclasses.replace(parts, a=parts.a[:, :0], b=parts.b[:0])
    form = form_of(alone, precision)
    assert form is RESIDUAL_FORMS[layout, kind, precision]
    x = make_x(parts, (2, 7))
    (got,) = run_ort(one_form(form, alone), {"x": x})
    assert same(got, wanted(x, parts, train=False, residual=True), allowed(x, parts, (form,)))


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_a_layer_of_nothing_is_refused(kind: str, make_parts: MakeParts) -> None:
    parts = make_parts(kind, None)
    with pytest.raises(ExportError, match="layer: has neither a tensor train nor a residual"):
        form_of(dataclasses.replace(parts, a=parts.a[:, :0], b=parts.b[:0]), "fp32")


@pytest.mark.parametrize(("layout", "kind", "precision"), [row for row in LAYERS if row[1] == "embedding"])
def test_the_rows_of_a_table(
    layout: str, kind: str, precision: str, make_parts: MakeParts, one_form: OneForm, run_ort: RunOrt
) -> None:
    parts = make_parts(kind, layout)
    residual = dense_residual(parts)
    has_entries = residual.any(axis=1)
    with_entries, last = int(np.flatnonzero(has_entries)[0]), parts.shape[0] - 1
    x = np.array([[0, last, with_entries, with_entries]])
    if layout == "rows":  # whole rows: some rows have none
        x[0, 3] = np.flatnonzero(~has_entries)[0]
    (got,) = run_ort(one_form(form_row(layout, kind, precision), parts), {"x": x})
    for k, row in enumerate(x[0]):
        assert same(got[0, k], residual[row], allowed(x, parts, (form_row(layout, kind, precision),))[0, k]), row
    if layout == "rows":
        assert not got[0, 3].any()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_table_too_long_for_two_byte_slots(
    precision: str, make_parts: MakeParts, one_form: OneForm, run_ort: RunOrt
) -> None:
    """Row 65535 needs slot 65536, which two bytes do not hold."""
    rows_number, random = 1 << 16, np.random.default_rng(2)
    parts = dataclasses.replace(
        make_parts("embedding", "rows", "smallest"),
        shape=(rows_number, 2),
        a=random.standard_normal((rows_number, 1)).astype(np.float32),
        values=random.standard_normal((rows_number, 2)).astype(np.float32),
        indices={"rows": np.arange(rows_number, dtype=np.int32)},
    )
    form = form_row("rows", "embedding", precision)
    x = np.array([[0, rows_number - 1, rows_number - 2]])
    (got,) = run_ort(one_form(form, parts), {"x": x})
    assert same(got, wanted(x, parts, train=False, residual=True), allowed(x, parts, (form,)))
    assert form.pack(parts)["slots"].dtype == np.int32
    few = {"values": parts.values[:5], "indices": {"rows": np.arange(5, dtype=np.int32)}}
    shorter = dataclasses.replace(parts, shape=(rows_number - 1, 2), **few)
    assert form.pack(shorter)["slots"].dtype == np.uint16


def test_an_index_beyond_int16(make_parts: MakeParts, one_form: OneForm, run_ort: RunOrt) -> None:
    """Column numbers are unsigned: 40000 must not come out negative."""
    inputs = 40_001
    parts = dataclasses.replace(
        make_parts("linear", "csr", "smallest"),
        shape=(inputs, 2),
        a=np.zeros((inputs, 1), np.float32),
        values=np.array([3, 5], np.float32),
        indices={"indptr": np.array([0, 1, 2], np.int32), "indices": np.array([inputs - 1, 7], np.uint16)},
    )
    x = make_x(parts, (1, 1))
    form = form_row("csr", "linear", "fp32")
    (got,) = run_ort(one_form(form, parts), {"x": x})
    assert same(got, wanted(x, parts, train=False, residual=True), allowed(x, parts, (form,)))


# --- twins: what is wrong must be seen --------------------------------------------------------------------------


def drop_one_value(parts: LayerParts, x: Array) -> LayerParts:
    """Without the stored value that adds most to the result."""
    reach = np.abs(x).reshape(-1, parts.shape[0]).max(axis=0)[:, None] if parts.kind == "linear" else seen(parts, x)
    reached = np.abs(dense_residual(parts)) * reach
    lost = dense_residual(parts).flat[reached.argmax()].astype(np.float32)
    return dataclasses.replace(parts, values=np.where(parts.values == lost, 0, parts.values).astype(np.float32))


def seen(parts: LayerParts, x: Array) -> Array:
    return np.isin(np.arange(parts.shape[0]), x)[:, None]


def shift_indices(parts: LayerParts, x: Array) -> LayerParts:
    key = "rows" if parts.layout == "rows" else "indices"
    ends = parts.shape[1] if parts.layout == "ell" else parts.shape[0]
    moved = ((parts.indices[key].astype(np.int64) + 1) % ends).astype(parts.indices[key].dtype)
    return dataclasses.replace(parts, indices={**parts.indices, key: moved})


def permute_values(parts: LayerParts, x: Array) -> LayerParts:
    return dataclasses.replace(parts, values=np.flip(parts.values).copy())


def lose_a_rank(parts: LayerParts, x: Array) -> LayerParts:
    b = parts.b.copy()
    b[np.abs(b).sum(axis=1).argmax()] = 0
    return dataclasses.replace(parts, b=b)


def swap_factor_axes(parts: LayerParts, x: Array) -> LayerParts:
    return dataclasses.replace(parts, a=np.ascontiguousarray(parts.a.T).reshape(parts.a.shape))


OF_RESIDUALS = (drop_one_value, shift_indices, permute_values)
OF_TRAINS = (lose_a_rank, swap_factor_axes)
OF_OUTPUTS = {
    "zeroed": np.zeros_like,
    "batch and sequence swapped": lambda y: y.swapaxes(0, 1).reshape(y.shape),
    "outputs reversed": lambda y: y[..., ::-1],
    "one element off": lambda y: y + (np.arange(y.size).reshape(y.shape) == 0) * np.float32(10 * np.abs(y).max()),
    "NaN": lambda y: np.full_like(y, np.nan),
    "flattened": lambda y: y.reshape(-1, y.shape[-1]),
}

DAMAGES = [
    (row, whole, damage)
    for row in PARTS
    for whole in ((False, True) if row[0] else (False,))
    for damage in ((OF_RESIDUALS if row[0] else ()) + (OF_TRAINS if whole or not row[0] else ()))
]


@pytest.mark.parametrize(
    ("row", "whole", "damage"), DAMAGES, ids=[f"{'-'.join(map(str, r))}-{w}-{d.__name__}" for r, w, d in DAMAGES]
)
def test_damaged_weights_are_seen(
    row: tuple[str | None, str, str],
    whole: bool,
    damage: Callable[[LayerParts, Array], LayerParts],
    make_parts: MakeParts,
    one_form: OneForm,
    run_ort: RunOrt,
) -> None:
    layout, kind, precision = row
    parts = make_parts(kind, layout)
    x = make_x(parts, (2, 7))
    form = form_of(parts, precision) if whole else form_row(*row)
    expected = wanted(x, parts, train=whole or layout is None, residual=layout is not None)
    bound = allowed(x, parts, forms_at(*row, whole=whole))
    (right,) = run_ort(one_form(form, parts), {"x": x})
    (wrong,) = run_ort(one_form(form, damage(parts, x)), {"x": x})
    assert same(right, expected, bound)
    assert not same(wrong, expected, bound)


@pytest.mark.parametrize("damage", OF_OUTPUTS)
@pytest.mark.parametrize(("layout", "kind", "precision"), PARTS)
def test_wrong_outputs_are_seen(
    layout: str | None,
    kind: str,
    precision: str,
    damage: str,
    make_parts: MakeParts,
    one_form: OneForm,
    run_ort: RunOrt,
) -> None:
    parts, form = make_parts(kind, layout), form_row(layout, kind, precision)
    x = make_x(parts, (2, 7))
    (got,) = run_ort(one_form(form, parts), {"x": x})
    expected = wanted(x, parts, train=layout is None, residual=layout is not None)
    assert not same(OF_OUTPUTS[damage](got), expected, allowed(x, parts, (form,)))
