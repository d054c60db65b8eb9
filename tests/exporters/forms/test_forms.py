"""Every form computes x (A B + S), within what rounding and 8-bit steps allow.

The bounds follow from the arithmetic. float32: Higham, "Accuracy and Stability of Numerical Algorithms", §3.5,
|error| ≤ γ_k |x| |M|, γ_k = k u / (1 − k u). Stored in half precision a weight moves by 2^-11 of itself; as a code by
half the scale of its output, row or block. An activation that becomes a code moves by at most half of
(max − min) / 255, both ranges widened to hold 0, or, block by block, by half of max / 127.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters import LayerParts
from saten_exporters.forms import DENSE_FORMS, LOWERINGS, RESIDUAL_FORMS, TRAIN_FORMS, Form, form_of
from saten_exporters.quantize import PRECISIONS
from saten_runtime.errors import ExportError

MakeParts = Callable[..., LayerParts]
OneForm = Callable[[Form, LayerParts], ir.Model]
RunOrt = Callable[..., list[np.ndarray]]

Array = np.ndarray
UNIT = float(np.finfo(np.float32).eps) / 2
# Half a step; dividing by a rounded step moves a number by a few roundings of at most 255 steps.
HALF = 0.5 + 255 * 4 * UNIT
HALF_PRECISION = 2.0**-11  # of a number, and 2^-25 where it is too small to be normal
MANY_ROWS = 128

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
    if parts.layout == "n:m":
        return dense_nofm(parts)
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


def dense_nofm(parts: LayerParts) -> Array:
    """Code after code out of one long number."""
    kept, of = map(int, parts.indices["numbers"])
    bits, table = math.ceil(math.log2(of)), np.zeros(parts.shape)
    rest = int.from_bytes(parts.indices["codes"].tobytes(), "little")
    for output, values in zip(parts.indices["outputs"], parts.values, strict=True):
        for k, value in enumerate(values):
            rest, code = divmod(rest, 2**bits)
            table[k // kept * of + code, output] = value
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


def moved(weights: Array, precision: str, axis: int) -> Array:
    """How far storing moves each weight, where `axis` runs along what shares a scale."""
    if precision == "fp32":
        return np.zeros(weights.shape)
    if precision == "fp16":
        return HALF_PRECISION * np.abs(weights) + 2.0**-25
    if precision == "int8":
        return np.broadcast_to(HALF * scale_of(weights, axis), weights.shape)
    row = PRECISIONS[precision]
    along = np.moveaxis(np.abs(weights), axis, -1)
    peaks = along.copy()
    for start in range(0, along.shape[-1], row.block):
        part = slice(start, start + row.block)
        peaks[..., part] = along[..., part].max(axis=-1, keepdims=True)
    return np.moveaxis(HALF * peaks / (2 ** (row.bits - 1) - 1), -1, axis)


def dynamic_product(x: Array, x_error: Array | float, weights: Array, scale: Array) -> Array:
    """Bound of DynamicQuantizeMatMul, whose x was already off by `x_error`, element by element."""
    low, high = min(0.0, (x - x_error).min()), max(0.0, (x + x_error).max())
    x_moved = x_error + np.full(x.shape, HALF * (high - low) / 255)
    weights_moved = np.broadcast_to(HALF * scale, weights.shape)
    products = (np.abs(x) + x_moved) @ (np.abs(weights) + weights_moved)
    return np.abs(x) @ weights_moved + x_moved @ (np.abs(weights) + weights_moved) + gamma(4) * products


def product(x: Array, x_error: Array | float, weights: Array, precision: str, rows: int = MANY_ROWS) -> Array:
    """Bound of x, already off by `x_error`, times weights that are stored at a precision."""
    x, weights = x.astype(np.float64), weights.astype(np.float64)
    if precision == "int8":
        return dynamic_product(x, x_error, weights, scale_of(weights, axis=0))
    x_error = np.broadcast_to(np.asarray(x_error, np.float64), x.shape)
    if precision == "int8-block" or (precision == "int4" and rows == 1):
        as_code = moved(np.abs(x) + x_error, "int8-block", -1) if precision == "int8-block" else coded(x, x_error)
        x_error = x_error + as_code
    weights_moved = moved(weights, precision, 0)
    reach = np.abs(weights) + weights_moved
    return np.abs(x) @ weights_moved + x_error @ reach + gamma(len(weights) + 2) * ((np.abs(x) + x_error) @ reach)


def coded(x: Array, x_error: Array) -> Array:
    """How far activations move that become 8-bit codes in blocks of int4's size."""
    peaks = np.abs(x) + x_error
    for start in range(0, x.shape[-1], PRECISIONS["int4"].block):
        part = slice(start, start + PRECISIONS["int4"].block)
        peaks[..., part] = peaks[..., part].max(axis=-1, keepdims=True)
    return HALF * peaks / 127


def low_rank(x: Array, parts: LayerParts, precision: str) -> Array:
    a, b = parts.a.astype(np.float64), parts.b.astype(np.float64)
    if parts.kind == "embedding":
        return product(a[x], moved(a, precision, 1)[x], b, precision)
    return product(x.astype(np.float64) @ a, product(x, 0.0, a, precision), b, precision)


def residual_moved(parts: LayerParts, precision: str) -> Array:
    """How far storing moves each entry of S, (in, out)."""
    return dense_residual(dataclasses.replace(parts, values=moved(parts.values.astype(np.float64), precision, -1)))


def grouped(x: Array, parts: LayerParts, precision: str) -> Array:
    residual, off = dense_residual(parts), residual_moved(parts, precision)
    return np.abs(x) @ off + gamma(parts.values.shape[2] + 4) * (np.abs(x) @ (np.abs(residual) + off))


def single_entries(x: Array, parts: LayerParts, precision: str) -> Array:
    return product(x, 0.0, dense_residual(parts), precision)


def rows(x: Array, parts: LayerParts, precision: str) -> Array:
    return residual_moved(parts, precision)[x]  # a lookup rounds nothing


# stem and kind of an operator → bound; a new row of the tables needs one here
BOUNDS = {
    "LowRankLinear": low_rank,
    "LowRankEmbedding": low_rank,
    "GroupedLinear": grouped,
    "CsrLinear": single_entries,
    "NOfMLinear": single_entries,
    "RowsEmbedding": rows,
    "SparseEmbedding": rows,
}


def bound_of(form: Form) -> Callable[[Array, LayerParts, str], Array]:
    return BOUNDS[form.stem + form.kind.capitalize()]


def allowed(x: Array, parts: LayerParts, forms: tuple[Form, ...]) -> Array:
    """The bound of one form, or of the sum of two."""
    off = sum(bound_of(form)(x, parts, form.precision) for form in forms)
    if len(forms) == 1:
        return off
    terms = np.abs(wanted(x, parts, train=True, residual=False)) + np.abs(wanted(x, parts, train=False, residual=True))
    return off + UNIT * (terms + off)


def same(got: Array, expected: Array, bound: Array) -> bool:
    """The check that every test and every twin goes through."""
    return got.shape == expected.shape and bool((np.abs(got - expected) <= bound).all())


# --- inputs --------------------------------------------------------------------------------------------------------


def make_x(parts: LayerParts, shape: tuple[int, int]) -> Array:
    random = np.random.default_rng(sum(shape))
    if parts.kind == "linear":
        return random.standard_normal((*shape, parts.shape[0])).astype(np.float32)
    return random.integers(0, parts.shape[0], shape)


def one_at_a_time(parts: LayerParts) -> Array:
    """Every input, or every row, alone: no sum of small errors hides a large one."""
    return np.eye(parts.shape[0], dtype=np.float32)[None] if parts.kind == "linear" else np.arange(parts.shape[0])[None]


def forms_at(layout: str | None, kind: str, precision: str, *, whole: bool) -> tuple[Form, ...]:
    own = form_row(layout, kind, precision)
    return (form_row(None, kind, precision), own) if whole else (own,)


# --- tests ---------------------------------------------------------------------------------------------------------


def test_every_form_has_a_bound() -> None:
    ops = {form.stem + form.kind.capitalize() for form in (*TRAIN_FORMS.values(), *RESIDUAL_FORMS.values())}
    assert ops == set(BOUNDS)


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("layout", "kind", "precision"), PARTS)
def test_a_part_computes_what_its_matrices_do(
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
def test_a_layer_in_one_node_computes_what_its_matrices_do(
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


@pytest.mark.parametrize("precision", PRECISIONS)
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
    key = {"rows": "rows", "n:m": "outputs"}.get(parts.layout, "indices")
    ends = parts.shape[1] if parts.layout in ("ell", "n:m") else parts.shape[0]
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
    x = one_at_a_time(parts)
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


# --- TT chains -----------------------------------------------------------------------------------------------------

# dims of the cores over in and over out, and the ranks between all of them
TRAINS = {
    "two and two": ((6, 8), (8, 8), (4, 7, 5)),
    "three and two": ((4, 3, 4), (16, 4), (3, 9, 7, 2)),
    "one and three": ((48,), (4, 4, 4), (7, 11, 3)),
    "rank one": ((2, 3), (3, 2), (1, 1, 1)),
}


def make_train(make_parts: MakeParts, name: str, layout: str | None = None) -> LayerParts:
    """A layer with the cores of a row above; its factors are contracted from them here, digit by digit."""
    ins, outs, ranks = TRAINS[name]
    random, bonds = np.random.default_rng(5), (1, *ranks, 1)
    cores = [
        (random.standard_normal((bonds[k], dim, bonds[k + 1])) / np.sqrt(bonds[k])).astype(np.float32)
        for k, dim in enumerate((*ins, *outs))
    ]
    first, last = cores[: len(ins)], cores[len(ins) :]
    a = np.ones((1, 1))
    for core in first:
        a = np.einsum("ir,rns->ins", a, core.astype(np.float64)).reshape(-1, core.shape[2])
    b = np.ones((1, 1))
    for core in reversed(last):
        b = np.einsum("rns,so->rno", core.astype(np.float64), b).reshape(core.shape[0], -1)
    parts = make_parts("linear", layout)
    return dataclasses.replace(
        parts,
        shape=(len(a), b.shape[1]),
        ranks=list(ranks),
        a=a.astype(np.float32),
        b=b.astype(np.float32),
        cores=(tuple(first), tuple(last)),
    )


def chain_bound(x: Array, parts: LayerParts, precision: str, rows_expected: int = MANY_ROWS) -> Array:
    """The products one after the other, each off by what those before it were."""
    first, last = parts.cores
    lead, dims = x.shape[:-1], [core.shape[1] for core in first]
    value = x.astype(np.float64).reshape(-1, *dims).transpose(0, *range(len(dims), 0, -1))
    error: Array = np.zeros(value.shape)
    for core in first:
        matrix = core.transpose(1, 0, 2).reshape(-1, core.shape[2])
        value, error = value.reshape(-1, len(matrix)), error.reshape(-1, len(matrix))
        value, error = value @ matrix.astype(np.float64), product(value, error, matrix, precision, rows_expected)
    for core in last:
        matrix = core.reshape(core.shape[0], -1)
        value, error = value.reshape(-1, len(matrix)), error.reshape(-1, len(matrix))
        value, error = value @ matrix.astype(np.float64), product(value, error, matrix, precision, rows_expected)
    factors_rounded = UNIT * 4 * (np.abs(x) @ np.abs(parts.a.astype(np.float64)) @ np.abs(parts.b.astype(np.float64)))
    return error.reshape(*lead, -1) + factors_rounded


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", TRAINS)
def test_a_chain_of_cores_computes_what_its_train_does(
    name: str, precision: str, optimized: bool, make_parts: MakeParts, one_form: OneForm, run_ort: RunOrt
) -> None:
    parts = make_train(make_parts, name)
    form = LOWERINGS["tt-chain"].form(parts, precision)
    model = one_form(form, parts)
    for shape in SHAPES:
        x = make_x(parts, shape)
        (got,) = run_ort(model, {"x": x}, optimized=optimized)
        assert same(got, wanted(x, parts, train=True, residual=False), chain_bound(x, parts, precision)), shape
    eye = one_at_a_time(parts)
    (got,) = run_ort(model, {"x": eye}, optimized=optimized)
    expected, bound = wanted(eye, parts, train=True, residual=False), chain_bound(eye, parts, precision)
    assert same(got, expected, bound)
    # four products by 4-bit codes may, at worst, lose everything
    for damage in ("one element off", "NaN", *(("zeroed",) if precision != "int4" else ())):
        assert not same(OF_OUTPUTS[damage](got), expected, bound), damage


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["two and two", "three and two", "one and three"])
def test_a_damaged_core_is_seen(
    name: str, precision: str, make_parts: MakeParts, one_form: OneForm, run_ort: RunOrt
) -> None:
    parts = make_train(make_parts, name)
    x, form = one_at_a_time(parts), LOWERINGS["tt-chain"].form(parts, precision)
    expected, bound = wanted(x, parts, train=True, residual=False), chain_bound(x, parts, precision)
    for side in (0, 1):
        for k, core in enumerate(parts.cores[side]):
            turned = np.ascontiguousarray(core.transpose(2, 1, 0)).reshape(core.shape)
            for wrong in (np.flip(core, 1), turned if min(core.shape[::2]) > 1 else np.flip(core, (0, 2))):
                sides = [list(each) for each in parts.cores]
                sides[side][k] = np.ascontiguousarray(wrong)
                damaged = dataclasses.replace(parts, cores=(tuple(sides[0]), tuple(sides[1])))
                (got,) = run_ort(one_form(form, damaged), {"x": x})
                assert not same(got, expected, bound), (side, k)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_chain_with_a_residual(precision: str, make_parts: MakeParts, one_form: OneForm, run_ort: RunOrt) -> None:
    parts = make_train(make_parts, "two and two", "grouped")
    form = LOWERINGS["tt-chain"].form(parts, precision)
    x = make_x(parts, (2, 7))
    (got,) = run_ort(one_form(form, parts), {"x": x})
    bound = chain_bound(x, parts, precision) + grouped(x, parts, precision)
    expected = wanted(x, parts, train=True, residual=True)
    assert same(got, expected, bound + UNIT * (np.abs(expected) + bound))


def test_a_chain_computes_with_no_einsum_and_no_matrix(make_parts: MakeParts) -> None:
    parts = make_train(make_parts, "three and two")
    form = LOWERINGS["tt-chain"].form(parts, "fp32")
    (function,) = form.functions(18)
    assert {node.op_type for node in function} == {"Reshape", "Transpose", "MatMul", "Shape", "Constant", "Concat"}
    assert sum(node.op_type == "MatMul" for node in function) == 5
    stored = sum(
        array.nbytes for name, array in form.pack(parts).items() if name.startswith("g") and name[-1:].isdigit()
    )
    assert stored == 4 * sum(core.size for side in parts.cores for core in side)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "embedding"}, "it is a table"),
        ({"a": np.zeros((48, 0), np.float32)}, "it has no tensor train"),
        ({"cores": ((), ())}, "no more cores than factors"),
        ({"shape": (47, 64)}, "padded"),
    ],
)
def test_what_is_no_chain(changes: dict[str, object], words: str, make_parts: MakeParts) -> None:
    parts = make_train(make_parts, "two and two")
    assert LOWERINGS["tt-chain"].refusal(parts) == ""
    assert words in LOWERINGS["tt-chain"].refusal(dataclasses.replace(parts, **changes))


# --- dense ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected_rows", [1, MANY_ROWS])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("layout", "kind", "precision"), LAYERS)
def test_a_layer_stored_dense_computes_what_its_matrix_does(
    layout: str,
    kind: str,
    precision: str,
    size: str,
    expected_rows: int,
    make_parts: MakeParts,
    one_form: Callable[..., ir.Model],
    run_ort: RunOrt,
) -> None:
    parts, form = make_parts(kind, layout, size), DENSE_FORMS[kind, precision]
    matrix = parts.a.astype(np.float64) @ parts.b.astype(np.float64) + dense_residual(parts)
    model = one_form(form, parts, expected_rows)
    for shape in ((1, 1), (2, 7)):
        x = make_x(parts, shape)
        (got,) = run_ort(model, {"x": x})
        rounded = UNIT * np.abs(matrix)
        if kind == "embedding":
            bound = (moved(matrix, precision, 1) + 2 * rounded)[x]
        else:
            bound = product(x, 0.0, matrix, precision, expected_rows) * (1 + 4 * UNIT) + 2 * np.abs(x) @ rounded
        expected = apply(x, matrix)
        assert same(got, expected, bound), (shape, np.abs(got - expected).max())
        assert not same(OF_OUTPUTS["one element off"](got), expected, bound)
