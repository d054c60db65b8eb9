"""The bytes that a form says it stores are those of what it packs, at every precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from saten_exporters import PRECISIONS, LayerParts
from saten_exporters.forms import DENSE_FORMS, RESIDUAL_FORMS, TRAIN_FORMS, Form, form_of
from saten_exporters.forms.head import HEAD_FORMS
from saten_exporters.forms.tt_chain import tt_linear

MakeParts = Callable[..., LayerParts]
SIZES = ("usual", "smallest", "primes", "full")
ALL = [
    *((None, form) for form in TRAIN_FORMS.values()),
    *((None, form) for form in DENSE_FORMS.values()),
    *((layout, form) for (layout, _, _), form in RESIDUAL_FORMS.items()),
]


def packed_bytes(form: Form, parts: LayerParts) -> int:
    return sum(array.nbytes for array in form.pack(parts).values())


def storable(form: Form, parts: LayerParts) -> bool:
    """Offsets are kept of whole blocks alone."""
    return form.precision != "int4-offset" or parts.shape[0] % 32 == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("layout", "form"), ALL, ids=[f"{layout}-{form.op_type}" for layout, form in ALL])
def test_they_are_what_is_packed(layout: str | None, form: Form, size: str, make_parts: MakeParts) -> None:
    kind = "embedding" if form.kind == "head" else form.kind
    parts = make_parts(kind, layout, size)
    if not storable(form, parts):
        parts = dataclasses.replace(parts, shape=(64, parts.shape[1]), a=np.ones((64, parts.a.shape[1]), np.float32))
    assert form.stored_bytes(parts) == packed_bytes(form, parts)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_of_a_whole_layer_they_are_those_of_its_parts(precision: str, make_parts: MakeParts) -> None:
    parts = make_parts("linear", "n:m")
    form = form_of(parts, precision)
    assert form.stored_bytes(parts) == packed_bytes(form, parts) == sum(one.stored_bytes(parts) for one in form.parts)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_of_a_chain_of_cores(precision: str, make_parts: MakeParts) -> None:
    random = np.random.default_rng(0)
    shapes = (((1, 6, 5), (5, 8, 7)), ((7, 8, 3), (3, 8, 1)))
    cores = tuple(tuple(random.standard_normal(shape).astype(np.float32) for shape in side) for side in shapes)
    parts = dataclasses.replace(make_parts("linear", None), cores=cores)
    form = tt_linear(2, 2, precision)
    assert form.stored_bytes(parts) == packed_bytes(form, parts)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_number_more_is_seen(precision: str, make_parts: MakeParts) -> None:
    """The twin: of parts with one output more, what is packed is not what was said of the others."""
    for layout in ("csr", "n:m", "grouped"):
        form, parts = RESIDUAL_FORMS[layout, "linear", precision], make_parts("linear", layout)
        values = np.concatenate([parts.values, parts.values[-1:]])
        indices = {name: np.concatenate([index, index[-1:]]) for name, index in parts.indices.items()}
        more = dataclasses.replace(parts, values=values, indices=indices, shape=(parts.shape[0], parts.shape[1] + 1))
        assert form.stored_bytes(more) > packed_bytes(form, parts)


def test_only_shapes_are_read() -> None:
    """Arrays that hold no numbers of their own say as much: what is too large for memory can be priced."""
    side = 1 << 20
    zero = np.float32(0)
    parts = LayerParts(
        "layer",
        "linear",
        (side, side),
        [1, 512, 1],
        np.broadcast_to(zero, (side, 512)),
        np.broadcast_to(zero, (512, side)),
        "grouped",
        np.broadcast_to(zero, (side // 32, 32, 1 << 16)),
        {"indices": np.broadcast_to(np.int32(0), (side // 32, 1 << 16))},
    )
    codes, indices = 2 * 512 * side + (1 << 16) * side, 4 * (side // 32) * (1 << 16)
    scales = 4 * (512 + side + side)
    assert form_of(parts, "int8").stored_bytes(parts) == codes + indices + scales


def test_every_head_says_what_its_table_does(make_parts: MakeParts) -> None:
    parts = make_parts("embedding", "ell")
    tables = {form.op_type: form for form in (*TRAIN_FORMS.values(), *RESIDUAL_FORMS.values(), *DENSE_FORMS.values())}
    for table, head in HEAD_FORMS.items():
        if table.startswith("Rows"):
            continue  # has another residual
        assert head.stored_bytes(parts) == tables[table].stored_bytes(parts), table
