"""Every form computes x (A B + S), within what rounding and 8-bit steps allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from form_oracle import (
    BOUNDS,
    BY_STEPS,
    LAYERS,
    MANY_ROWS,
    OF_OUTPUTS,
    PARTS,
    SHAPES,
    SIZES,
    UNIT,
    Array,
    allowed,
    apply,
    dense_residual,
    drop_one_value,
    form_row,
    forms_at,
    lose_a_rank,
    make_x,
    moved,
    one_at_a_time,
    permute_values,
    product,
    same,
    shift_indices,
    swap_factor_axes,
    wanted,
)

from saten_exporters import LayerParts
from saten_exporters.forms import DENSE_FORMS, RESIDUAL_FORMS, TRAIN_FORMS, Form, form_of
from saten_runtime.errors import ExportError

MakeParts = Callable[..., LayerParts]
OneForm = Callable[[Form, LayerParts], ir.Model]
RunOrt = Callable[..., list[np.ndarray]]


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


@pytest.mark.parametrize("precision", BY_STEPS)
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


OF_RESIDUALS = (drop_one_value, shift_indices, permute_values)
OF_TRAINS = (lose_a_rank, swap_factor_axes)
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
