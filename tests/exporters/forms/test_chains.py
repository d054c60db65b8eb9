"""A tensor train written core by core computes what its folded factors do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from form_oracle import (
    BY_STEPS,
    MANY_ROWS,
    OF_OUTPUTS,
    SHAPES,
    UNIT,
    Array,
    grouped,
    make_x,
    one_at_a_time,
    product,
    same,
    wanted,
)

from saten_exporters import LayerParts
from saten_exporters.forms import LOWERINGS, Form

MakeParts = Callable[..., LayerParts]
OneForm = Callable[[Form, LayerParts], ir.Model]
RunOrt = Callable[..., list[np.ndarray]]


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
@pytest.mark.parametrize("precision", BY_STEPS)
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


@pytest.mark.parametrize("precision", BY_STEPS)
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
