from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters.passes import LastLogitsPass
from saten_runtime.vocabulary.operators import LOGITS_TO_KEEP

WIDTH, WORDS, TOKENS = 8, 20, 5
EPS = float(np.finfo(np.float32).eps)
HEAD = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "saten" : 1]>'
READ, MADE = f"float[batch, new, {WIDTH}]", f"float[batch, new, {WORDS}]"
CACHE = f"float[batch, 1, past, {WIDTH}]"


def text(
    product: str = "MatMul (x, w)", past: str = "past_key_values", logits: str = "logits", read: str = READ
) -> str:
    return f"""{HEAD} g ({READ} h, float[{WIDTH}, {WORDS}] w, {CACHE} {past}) => ({MADE} {logits}, {CACHE} present)
        <{read} x> {{ x = Neg (h) {logits} = {product} present = Neg ({past}) }}"""


LEFT_ALONE = {
    "no cache": text(past="other"),
    "no logits": text(logits="made"),
    "an operator that is no product": text(product="Add (x, w)"),
    "a product of a flat x": text(read=f"float[rows, {WIDTH}]"),
}
Parse = Callable[..., ir.Model]


@pytest.mark.parametrize("keep", [None, 0, 1, 2, TOKENS, TOKENS + 3])
def test_it_makes_the_logits_that_are_asked_for(
    keep: int | None, parse_model: Parse, run_ort: Callable[..., list[np.ndarray]]
) -> None:
    random = np.random.default_rng(3)
    w, h = (random.standard_normal(shape).astype(np.float32) for shape in ((WIDTH, WORDS), (2, TOKENS, WIDTH)))
    model = parse_model(text(), w=w)
    assert LastLogitsPass()(model).modified
    given = {"h": h, "past_key_values": np.zeros((2, 1, 0, WIDTH), np.float32)}
    asked = {} if keep is None else {LOGITS_TO_KEEP: np.array([keep])}
    whole = -h.astype(float) @ w
    wanted, bound = (each[:, -(keep or TOKENS) :] for each in (whole, 2 * WIDTH * EPS * (np.abs(h) @ np.abs(w))))
    for optimized in (False, True):
        got = run_ort(model, {**given, **asked}, optimized=optimized)[0]
        assert got.shape == wanted.shape
        assert (np.abs(got - wanted) <= bound).all()
        assert keep is None or keep >= TOKENS or not keep or not (np.abs(whole[:, :keep] - wanted) <= bound).all()


def test_the_default_is_a_weight_and_the_other_inputs_stay(parse_model: Parse) -> None:
    model = parse_model(text(), w=np.zeros((WIDTH, WORDS), np.float32))
    LastLogitsPass()(model)
    optional = [value.name for value in model.graph.inputs if value.const_value is not None]
    assert optional == [LOGITS_TO_KEEP]
    assert [value.name for value in model.graph.inputs] == ["h", "past_key_values", LOGITS_TO_KEEP]


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_it_does_nothing_to(case: str, parse_model: Parse) -> None:
    model = parse_model(LEFT_ALONE[case], w=np.zeros((WIDTH, WORDS), np.float32))
    assert not LastLogitsPass()(model).modified
    assert LOGITS_TO_KEEP not in model.graph.initializers
