"""What is stored below 4 bits a weight and its scale: every form computes x times what its codes say.

Half a step of two bits is as large as the weight, so that a bound by steps would see nothing. Here the oracle rounds
the weights itself, by trying every scale and code, and what is left for a bound are activations of 8 bits and float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from form_oracle import HALF, LOW_BITS, OF_OUTPUTS, Array, dense_residual, gamma, make_x, one_at_a_time, same

from saten_exporters import LayerParts
from saten_exporters.forms import DENSE_FORMS, LOWERINGS, RESIDUAL_FORMS, TRAIN_FORMS, Form, head_of
from saten_exporters.forms.dense import matrix_of
from saten_exporters.quantize import PRECISIONS

MakeParts = Callable[..., LayerParts]
OneForm = Callable[[Form, LayerParts], ir.Model]
RunOrt = Callable[..., list[np.ndarray]]

SCALES_OF_TWO_BITS = [sign * share for share in (1 / 3, 0.4, 0.5) for sign in (1, -1)]
LAYOUTS = ("grouped", "rows", "ell")
KINDS = [(name, layout) for name in LOW_BITS for layout in (None, *LAYOUTS)]
SHAPES = ((1, 1), (2, 7), (1, 33))


# --- the oracle -----------------------------------------------------------------------------------------------------


def block_of(inputs: int, precision: str) -> int:
    """Of a product: the one that takes the fewest bytes with its scale of 4."""
    if precision == "int2":
        return 64
    return min((128, 64, 32), key=lambda block: -(-inputs // block) * (block // 2 + 4))


def as_stored(weights: Array, axis: int, precision: str, *, product: bool = False) -> Array:
    """Each block along `axis` as the nearest of all that its codes can say."""
    lines = np.moveaxis(weights.astype(np.float64), axis, -1)
    block = block_of(lines.shape[-1], precision) if product else PRECISIONS[precision].block
    stored = np.zeros_like(lines)
    for start in range(0, lines.shape[-1], block):
        stored[..., start : start + block] = nearest(lines[..., start : start + block], precision)
    return np.moveaxis(stored, -1, axis)


def nearest(blocks: Array, precision: str) -> Array:
    peak = np.abs(blocks).max(axis=-1, keepdims=True, initial=0)
    levels, shares = (range(-2, 2), SCALES_OF_TWO_BITS) if precision == "int2" else (range(-7, 8), [1 / 7])
    best, least = np.zeros_like(blocks), np.full(blocks.shape[:-1], np.inf)
    for share in shares:
        choices = np.array(levels) * share * peak[..., None]
        which = np.abs(blocks[..., None] - choices).argmin(axis=-1)
        found = np.take_along_axis(np.broadcast_to(choices, (*which.shape, len(levels))), which[..., None], -1)[..., 0]
        lost = np.square(found - blocks).sum(axis=-1)
        best = np.where((lost < least)[..., None], found, best)
        least = np.minimum(least, lost)
    return best


def coded(x: Array, error: Array | float, matrix: Array, block: int) -> tuple[Array, Array]:
    """X, off by `error` and then rounded to 8 bits block by block, times a matrix: the product, and what it is off."""
    reach = np.abs(x) + error
    peaks = [np.abs(reach[..., k : k + block]).max(-1, keepdims=True) for k in range(0, x.shape[-1], block)]
    steps = np.concatenate([np.repeat(peak, block, axis=-1) for peak in peaks], axis=-1)[..., : x.shape[-1]]
    error = error + HALF * steps / 127
    # Codes are multiplied as they are stored, from 0 on; what is too much, at most twice a scale, is taken off behind.
    weights = np.abs(matrix) + 2 * max(1.0, np.abs(matrix).max(initial=0))
    return x @ matrix, error @ np.abs(matrix) + gamma(len(matrix) + 8) * ((np.abs(x) + error) @ weights)


def plain(x: Array, error: Array | float, matrix: Array) -> tuple[Array, Array]:
    """The same with x in float32."""
    off = error + np.zeros_like(x)
    return x @ matrix, off @ np.abs(matrix) + gamma(len(matrix) + 8) * ((np.abs(x) + off) @ np.abs(matrix))


def linear(x: Array, parts: LayerParts, precision: str) -> tuple[Array, Array]:
    inner = x.astype(np.float64), 0.0
    for factor in (parts.a, parts.b):
        inner = coded(*inner, as_stored(factor, 0, precision, product=True), block_of(len(factor), precision))
    return inner


def grouped(x: Array, parts: LayerParts, precision: str) -> tuple[Array, Array]:
    stored = dataclasses.replace(parts, values=as_stored(parts.values, 2, precision))
    return plain(x.astype(np.float64), 0.0, dense_residual(stored))


def embedding(x: Array, parts: LayerParts, precision: str) -> tuple[Array, Array]:
    a, b = as_stored(parts.a, 1, precision), as_stored(parts.b, 0, precision, product=True)
    return coded(a[x], gamma(2) * np.abs(a[x]), b, block_of(len(parts.b), precision))


def looked_up(x: Array, parts: LayerParts, precision: str) -> tuple[Array, Array]:
    stored = dense_residual(dataclasses.replace(parts, values=as_stored(parts.values, 1, precision)))
    return stored[x], gamma(4) * np.abs(stored[x])


def head(x: Array, parts: LayerParts, precision: str) -> tuple[Array, Array]:
    inner = plain(x.astype(np.float64), 0.0, as_stored(parts.b, 0, precision, product=True).T)
    return coded(*inner, as_stored(parts.a, 1, precision).T, PRECISIONS[precision].block)


def residual_head(x: Array, parts: LayerParts, precision: str) -> tuple[Array, Array]:
    stored = dense_residual(dataclasses.replace(parts, values=as_stored(parts.values, 1, precision))).T
    x = x.astype(np.float64)
    return coded(x, 0.0, stored, PRECISIONS[precision].block) if parts.layout == "rows" else plain(x, 0.0, stored)


def chain(x: Array, parts: LayerParts, precision: str) -> tuple[Array, Array]:
    first, last = parts.cores
    value = x.astype(np.float64).reshape(-1, *(core.shape[1] for core in first))
    value = value.transpose(0, *range(len(first), 0, -1))
    found = value, np.zeros(value.shape)
    matrices = [core.transpose(1, 0, 2).reshape(-1, core.shape[2]) for core in first]
    for matrix in (*matrices, *(core.reshape(core.shape[0], -1) for core in last)):
        y, off = (each.reshape(-1, len(matrix)) for each in found)
        stored = as_stored(matrix, 0, precision, product=True)
        found = coded(y, off, stored, block_of(len(matrix), precision))
    return found[0].reshape(*x.shape[:-1], -1), found[1].reshape(*x.shape[:-1], -1)


def dense(x: Array, parts: LayerParts, precision: str) -> tuple[Array, Array]:
    matrix = matrix_of(parts)
    if parts.kind == "linear":
        block = block_of(len(matrix), precision)
        return coded(x.astype(np.float64), 0.0, as_stored(matrix, 0, precision, product=True), block)
    rows = as_stored(matrix, 1, precision)[x]
    return rows, gamma(2) * np.abs(rows)


def dense_head(x: Array, parts: LayerParts, precision: str) -> tuple[Array, Array]:
    stored = as_stored(matrix_of(parts), 1, precision).T
    return coded(x.astype(np.float64), 0.0, stored, PRECISIONS[precision].block)


def forms(precision: str, make_parts: MakeParts) -> dict[str, tuple[Form, LayerParts, Callable[..., object]]]:
    """Every form of the tables at a precision: name → form, layer, oracle."""
    train = {kind: TRAIN_FORMS[kind, precision] for kind in ("linear", "embedding")}
    rest = {
        (layout, kind): RESIDUAL_FORMS[layout, kind, precision]
        for layout, kind in (("grouped", "linear"), ("rows", "embedding"), ("ell", "embedding"))
    }
    layer, table = make_parts("linear", "grouped"), make_parts("embedding", "rows")
    entries, cored = make_parts("embedding", "ell"), with_cores(layer)
    return {
        "factors": (train["linear"], layer, linear),
        "blocks": (rest["grouped", "linear"], layer, grouped),
        "cores": (LOWERINGS["tt-chain"].form(cored, precision), cored, chain),
        "matrix": (DENSE_FORMS["linear", precision], layer, dense),
        "table": (DENSE_FORMS["embedding", precision], table, dense),
        "table of factors": (train["embedding"], table, embedding),
        "rows": (rest["rows", "embedding"], table, looked_up),
        "entries": (rest["ell", "embedding"], entries, looked_up),
        "head": (head_of(DENSE_FORMS["embedding", precision]), table, dense_head),
        "head of factors": (head_of(train["embedding"]), table, head),
        "head of rows": (head_of(rest["rows", "embedding"]), table, residual_head),
        "head of entries": (head_of(rest["ell", "embedding"]), entries, residual_head),
    }


FORMS = (
    *("factors", "blocks", "cores", "matrix", "table", "table of factors"),
    *("rows", "entries", "head", "head of factors", "head of rows", "head of entries"),
)


def with_cores(parts: LayerParts) -> LayerParts:
    """A layer (48, 64) whose train has two cores on each side, and no residual."""
    random = np.random.default_rng(4)
    shapes = ((1, 6, 5), (5, 8, 7)), ((7, 8, 5), (5, 8, 1))
    cores = tuple(tuple(random.standard_normal(each).astype(np.float32) for each in side) for side in shapes)
    a, b = (np.tensordot(*side, axes=1) for side in cores)
    none = np.zeros((0,), np.float32)
    return dataclasses.replace(parts, a=a[0].reshape(48, 7), b=b[..., 0].reshape(7, 64), cores=cores, values=none)


def fed(form: Form, parts: LayerParts, shape: tuple[int, int]) -> Array:
    if form.kind != "head":
        return make_x(parts, shape)
    return np.random.default_rng(sum(shape)).standard_normal((*shape, parts.shape[1])).astype(np.float32)


# --- the forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", LOW_BITS)
@pytest.mark.parametrize("name", FORMS)
def test_a_form_computes_what_its_codes_say(
    name: str, precision: str, make_parts: MakeParts, one_form: OneForm, run_ort: RunOrt
) -> None:
    form, parts, oracle = forms(precision, make_parts)[name]
    model = one_form(form, parts)
    for shape in SHAPES:
        x = fed(form, parts, shape)
        expected, bound = oracle(x, parts, precision)
        for optimized in (False, True):
            (got,) = run_ort(model, {"x": x}, optimized=optimized)
            assert same(got, expected, bound), (shape, optimized, np.abs(got - expected).max(), bound.max())
    for damage in ("zeroed", "outputs reversed", "one element off", "NaN"):
        assert not same(OF_OUTPUTS[damage](got), expected, bound), damage
    (other,) = set(LOW_BITS) - {precision}
    assert not same(got, *oracle(x, parts, other))


def test_every_form_is_tried(make_parts: MakeParts) -> None:
    for precision in LOW_BITS:
        tried = {form.op_type for form, _, _ in forms(precision, make_parts).values()}
        tables = (TRAIN_FORMS, DENSE_FORMS, RESIDUAL_FORMS)
        ours = {form.op_type for table in tables for form in table.values() if form.precision == precision}
        assert ours <= tried


@pytest.mark.parametrize("precision", LOW_BITS)
@pytest.mark.parametrize(("layout", "kept_as"), [("csr", "int8"), ("n:m", "int4")])
def test_single_entries_keep_a_scale_per_output(layout: str, kept_as: str, precision: str) -> None:
    assert RESIDUAL_FORMS[layout, "linear", precision].op_type == RESIDUAL_FORMS[layout, "linear", kept_as].op_type


@pytest.mark.parametrize(
    ("name", "form"), [("a", "factors"), ("b", "factors"), ("codes", "blocks"), ("codes", "matrix")]
)
def test_a_wrong_code_is_seen(name: str, form: str, make_parts: MakeParts, one_form: OneForm, run_ort: RunOrt) -> None:
    """One code of four, one step off."""
    row, parts, oracle = forms("int2", make_parts)[form]
    stored = next(each for each in row.inputs if each.startswith(name) and "scale" not in each and each != "indices")

    def damaged(parts: LayerParts) -> dict[str, Array]:
        packed = {key: np.array(value) for key, value in row.pack(parts).items()}
        byte = packed[stored].reshape(-1)[:1]
        byte[:] ^= 2
        return packed

    x = one_at_a_time(parts)
    expected, bound = oracle(x, parts, "int2")
    (got,) = run_ort(one_form(row, parts), {"x": x})
    assert same(got, expected, bound)
    (got,) = run_ort(one_form(dataclasses.replace(row, pack=damaged), parts), {"x": x})
    assert not same(got, expected, bound)


# --- how many bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "inputs", "block"),
    [
        ("int2", 384, 64),
        ("int2", 48, 64),
        ("int4-128", 384, 128),
        ("int4-128", 192, 64),
        ("int4-128", 96, 32),
        ("int4-128", 48, 64),
        ("int4-128", 32, 32),
        ("int4-128", 7, 32),
    ],
)
def test_a_product_takes_the_blocks_with_the_fewest_bytes(precision: str, inputs: int, block: int) -> None:
    how = PRECISIONS[precision].for_inputs(inputs)
    assert how.block == block == block_of(inputs, precision)
    count = -(-inputs // block)
    matrix = np.random.default_rng(0).standard_normal((inputs, 16)).astype(np.float32)
    form = DENSE_FORMS["linear", precision]
    parts = LayerParts(
        *("layer", "linear", (inputs, 16), []),
        *(np.zeros((inputs, 0), np.float32), np.zeros((0, 16), np.float32), "csr", matrix.reshape(-1, order="F")),
        {
            "indptr": np.arange(0, 16 * inputs + 1, inputs, dtype=np.int32),
            "indices": np.tile(np.arange(inputs, dtype=np.uint16), 16),
        },
    )
    np.testing.assert_array_equal(matrix_of(parts), matrix)
    assert sum(array.nbytes for array in form.pack(parts).values()) == 16 * count * (block * how.bits // 8 + 4)
