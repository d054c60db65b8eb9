"""Attention as one native node inside ONNX Runtime: the numbers of the function's body."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from saten_exporters.passes import NativeAttentionPass

ISAS = ("scalar", "avx2", "avx512", "avx512vnni", "neon", "neondot", "neoni8mm")
SHAPES = ((1, 1, 1), (1, 7, 7), (3, 7, 7), (3, 2, 9), (2, 33, 50), (0, 3, 3))

Parse = Callable[..., ir.Model]
Session = Callable[..., onnxruntime.InferenceSession]


def node_alone(attentions: ModuleType, parse_model: Parse, *, masked: bool = True) -> ir.Model:
    """The graph with a body that gives zeros of no use: only the kernel can give the right result."""
    text = attentions.TEXT if masked else attentions.TEXT.replace(", repeated)", ")")
    model = parse_model(text)
    NativeAttentionPass()(model)
    (function,) = model.functions.values()
    nothing = ir.Node("", "Constant", [], [ir.AttrFloat32("value_float", 0.0)])
    nothing.outputs[0].name = "y"
    for node in reversed(list(function)):
        function.remove(node)
    function.append(nothing)
    function.outputs[:] = nothing.outputs
    return model


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("isa", ISAS)
def test_it_computes_attention(
    isa: str,
    masked: bool,
    attentions: ModuleType,
    parse_model: Parse,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SATEN_KERNELS_ISA", isa)
    try:
        run = session(node_alone(attentions, parse_model, masked=masked), threads=2)
    except Exception as cause:
        if "this processor has" not in str(cause):
            raise
        pytest.skip(str(cause))
    for shape in SHAPES:
        given = attentions.feeds(*shape) if shape[0] else {**attentions.feeds(1, *shape[1:])}
        if shape[0] == 0:
            given = {name: value[:0] if value.ndim > 1 else value for name, value in given.items()}
        (got,) = run.run(None, given)
        if got.size == 0:
            assert got.shape == (0, shape[1], attentions.HEADS * attentions.VALUE_WIDTH)
            continue
        expected, bound = attentions.oracle(given if masked else {**given, "mask": given["mask"] * 0})
        # A weight's exponential is off by 12 units, and so may the sum be; the bound is for an exact one.
        bound = 3 * bound
        assert (np.abs(got - expected) <= bound).all(), (shape, np.abs(got - expected).max())
        assert not (np.abs(np.roll(got, 1, axis=-1) - expected) <= bound).all()
        other, _ = attentions.oracle({**given, "mask": given["mask"] * 0})
        assert not masked or not given["mask"].any() or not (np.abs(got - other) <= bound).all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"keys": (1, 5, 24)},
            r"queries \(1, 2, 24\), keys \(1, 5, 24\) and values \(1, 4, 15\) do not fit each other",
        ),
        ({"values": (1, 4, 16)}, "values has 16 columns, expected 3 heads of one size"),
        ({"mask": (1, 1, 1, 3)}, r"mask \(1, 1, 1, 3\) cannot be spread to \(1, 3, 2, 4\)"),
    ],
)
def test_sizes_that_do_not_meet_are_refused(
    changed: dict[str, tuple[int, ...]],
    words: str,
    attentions: ModuleType,
    parse_model: Parse,
    session: Session,
) -> None:
    model = node_alone(attentions, parse_model)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape([None] * len(value.shape))
    given = attentions.feeds(1, 2, 4)
    run = session(model)
    run.run(None, given)
    with pytest.raises(Exception, match=f"MaskedMultiHeadAttention: {words}"):
        run.run(None, {**given, **{name: np.zeros(shape, np.float32) for name, shape in changed.items()}})
