"""Weights that no kernel may read are refused when the node is made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from saten_exporters import LayerParts
from saten_exporters.forms import Form, form_of

MakeParts = Callable[..., LayerParts]
OneForm = Callable[[Form, LayerParts], ir.Model]
Array = np.ndarray

Session = Callable[..., onnxruntime.InferenceSession]


def put(place: tuple[int, ...] | int, value: int) -> Callable[[Array], Array]:
    def damage(array: Array) -> Array:
        array = array.astype(np.int32)
        array[place] = value
        return array

    return damage


def last_code(value: int) -> Callable[[Array], Array]:
    """The last of 1530 codes of three bits."""
    return lambda codes: np.append(codes[:-1], np.uint8(codes[-1] & 0b000111 | value << 3))


GROUPED, CSR, CODED = (("grouped", "linear", "fp32"), ("csr", "linear", "fp32"), ("n:m", "linear", "int8"))
ROWS, SPARSE = ("rows", "embedding", "int8"), ("ell", "embedding", "int8")
REFUSALS = {
    "index too large": (GROUPED, "indices", put((0, -1), 48), "indices.8. is 48|48 × 64"),
    "index negative": (GROUPED, "indices", put((0, 0), -1), "is -1, expected less"),
    "index wraps": (GROUPED, "indices", put((0, -1), -(2**31)), "expected less"),
    "indices repeated": (GROUPED, "indices", lambda a: np.repeat(a[:, :1], a.shape[1], 1), "ascending"),
    "indices unsorted": (GROUPED, "indices", lambda a: a[:, ::-1], "ascending"),
    "fewer indices than blocks": (GROUPED, "indices", lambda a: a[:, :-1], "one for each block"),
    "blocks without an axis": (GROUPED, "blocks", lambda a: a.reshape(-1), "1 axes, expected 3"),
    "blocks of another type": (GROUPED, "blocks", lambda a: a.astype(np.float64), "element type"),
    "rows do not start at 0": (CSR, "indptr", put(0, 1), "is not 0"),
    "rows fall": (CSR, "indptr", put(5, 2**30), "out of order"),
    "rows end early": (CSR, "indptr", put(-1, 3), "number of values"),
    "too few rows": (CSR, "indptr", lambda a: a[:-1], "one more than outputs"),
    "column too large": (CSR, "indices", put(-1, 48), "expected less than 48"),
    "columns repeated": (CSR, "indices", np.zeros_like, "ascending"),
    "fewer columns than values": (CSR, "indices", lambda a: a[:-1], "one for each value"),
    "negative shape": (CSR, "shape", lambda a: -a, "out of range"),
    "a code beyond its inputs": (CODED, "codes", lambda a: a | 7, "code 0 is 7, expected less than 5"),
    "codes repeated": (CODED, "codes", np.zeros_like, "codes.1. is 0 after 0, expected ascending"),
    "a code beyond the last input": (CODED, "codes", last_code(4), "codes.1529. is 49, expected less than 48"),
    "fewer codes than values": (CODED, "codes", lambda a: a[:-1], "one code for each value"),
    "codes of another type": (CODED, "codes", lambda a: a.astype(np.int64), "element type"),
    "more values than inputs": (CODED, "stored", lambda a: a[:, :-1], "has 29 values for each output, expected 30"),
    "output too large": (CODED, "outputs", put(-1, 64), "outputs.50. is 64, expected less than 64"),
    "outputs repeated": (CODED, "outputs", np.zeros_like, "outputs.1. is 0 after 0"),
    "fewer outputs than lines": (CODED, "outputs", lambda a: a[:-1], "one for each line"),
    "fewer scales than lines": (CODED, "scale", lambda a: a[:-1], "one for each line"),
    "groups of nothing": (CODED, "sizes", lambda a: a * [1, 1, 1, 0], "3 of 0 inputs, expected"),
    "more of a group than it has": (CODED, "sizes", lambda a: a * [1, 1, 2, 1], "6 of 5 inputs, expected"),
    "negative sizes": (CODED, "sizes", lambda a: -a, "out of range"),
    "slot too large": (ROWS, "slots", put(0, 10), "slots.0. is 10, expected less than 10"),
    "slot negative": (ROWS, "slots", put(0, -1), "is -1"),
    "too few slots": (ROWS, "slots", lambda a: a[:-1], "one for each row"),
    "too few scales": (ROWS, "scale", lambda a: a[:-1], "one for each stored row"),
    "column beyond the width": (SPARSE, "columns", put((0, -1), 64), "below 64"),
    "columns unsorted": (SPARSE, "columns", lambda a: a[:, ::-1], "ascending"),
    "another width": (SPARSE, "width", lambda a: a + 1, "width is not that of b"),
    "factors of different rank": (GROUPED, "b", lambda a: a[:-1], "differ in rank"),
    "factors of another size": (GROUPED, "b", lambda a: a[:, :-8], "does not fit the factors"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_damaged_weights_are_refused(case: str, make_parts: MakeParts, one_form: OneForm, session: Session) -> None:
    (layout, kind, precision), name, damage, words = REFUSALS[case]
    parts = make_parts(kind, layout)
    model = one_form(form_of(parts, precision), parts)
    session(model)
    damage_weight(model, name, damage)
    with pytest.raises(Exception, match=words) as caught:
        session(model)
    assert form_of(parts, precision).op_type in str(caught.value)


def damage_weight(model: ir.Model, name: str, damage: Callable[[Array], Array]) -> None:
    value = model.graph.initializers[name]
    value.const_value = ir.tensor(np.ascontiguousarray(damage(value.const_value.numpy())), name=name)
    value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)


def test_computed_indices_are_refused(make_parts: MakeParts, one_form: OneForm, session: Session) -> None:
    parts = make_parts("linear", "grouped")
    model = one_form(form_of(parts, "fp32"), parts)
    indices = model.graph.initializers.pop("indices")
    indices.const_value = None
    model.graph.inputs.append(indices)
    with pytest.raises(Exception, match="indices is not constant"):
        session(model)


def test_x_of_another_width_is_refused(make_parts: MakeParts, one_form: OneForm, session: Session) -> None:
    parts = make_parts("linear", "grouped")
    model = one_form(form_of(parts, "fp32"), parts)
    model.graph.inputs[0].shape = ir.Shape(["batch", "sequence", "inputs"])
    run = session(model)
    with pytest.raises(Exception, match="x has 47 columns, expected 48"):
        run.run(None, {"x": np.zeros((1, 2, 47), np.float32)})
