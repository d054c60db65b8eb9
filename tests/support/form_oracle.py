"""What a form has to compute, x (A B + S), and what rounding and 8-bit steps allow it to be off.

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

from saten_exporters import LayerParts
from saten_exporters.forms import RESIDUAL_FORMS, TRAIN_FORMS, Form
from saten_exporters.quantize import PRECISIONS

Array = np.ndarray

UNIT = float(np.finfo(np.float32).eps) / 2
# Half a step; dividing by a rounded step moves a number by a few roundings of at most 255 steps.
HALF = 0.5 + 255 * 4 * UNIT
HALF_PRECISION = 2.0**-11  # of a number, and 2^-25 where it is too small to be normal
MANY_ROWS = 128

# Precisions whose steps are too large, or whose blocks too different, for a bound by steps: see test_low_bits.py.
LOW_BITS = ("int4-128", "int2")
BY_STEPS = [name for name in PRECISIONS if name not in LOW_BITS]
# (layout or None, kind, precision)
PARTS = [row for row in (*((None, *row) for row in TRAIN_FORMS), *RESIDUAL_FORMS) if row[2] in BY_STEPS]
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
    residual = dense_residual(parts)
    if precision == "int4":  # 4 bits with one scale per output, multiplied as 8 bits are
        return dynamic_product(x.astype(np.float64), 0.0, residual, scale_of(residual, axis=0) * 127 / 7)
    return product(x, 0.0, residual, precision)


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


# --- damages: what must be seen ------------------------------------------------------------------------------------


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


OF_OUTPUTS = {
    "zeroed": np.zeros_like,
    "batch and sequence swapped": lambda y: y.swapaxes(0, 1).reshape(y.shape),
    "outputs reversed": lambda y: y[..., ::-1],
    "one element off": lambda y: y + (np.arange(y.size).reshape(y.shape) == 0) * np.float32(10 * np.abs(y).max()),
    "NaN": lambda y: np.full_like(y, np.nan),
    "flattened": lambda y: y.reshape(-1, y.shape[-1]),
}
