"""Attention as one native node inside ONNX Runtime: the numbers of the function's body."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from function_bodies import without_meaning

from saten_exporters.passes import NativeAttentionPass

ISAS = ("scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "neon", "neondot", "neoni8mm")
SHAPES = ((1, 1, 1), (1, 7, 7), (3, 7, 7), (3, 2, 9), (2, 33, 50))
UNIT_BF16 = 2.0**-9  # half an ulp of 1

Parse = Callable[..., ir.Model]
Session = Callable[..., onnxruntime.InferenceSession]


def node_alone(attentions: ModuleType, parse_model: Parse, *, masked: bool = True, narrow: bool = False) -> ir.Model:
    """The graph with a body that gives zeros of no use: only the kernel can give the right result."""
    text = attentions.TEXT if masked else attentions.TEXT.replace(", repeated)", ")")
    model = parse_model(text)
    NativeAttentionPass(narrow=narrow)(model)
    return without_meaning(model)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, library: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instruction set, which sessions use from now on; skips those that this processor has not."""
    name: str = request.param
    monkeypatch.setenv("SATEN_KERNELS_ISA", name)
    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(library))
    except Exception as cause:
        if "this processor has" not in str(cause):
            raise
        pytest.skip(str(cause))
    return name


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_it_computes_attention(
    isa: str, masked: bool, narrow: bool, attentions: ModuleType, parse_model: Parse, session: Session
) -> None:
    run = session(node_alone(attentions, parse_model, masked=masked, narrow=narrow), threads=2)
    rounded = UNIT_BF16 if narrow and isa == "avx512bf16" else 0
    for shape in SHAPES:
        given = attentions.feeds(*shape)
        unmasked = {**given, "mask": given["mask"] * 0}
        expected, bound = attentions.oracle(given if masked else unmasked, rounded)
        (got,) = run.run(None, given)
        # A weight's exponential is off by 12 units, and so may the sum be; the bound is for an exact one.
        bound = 3 * bound
        assert (np.abs(got - expected) <= bound).all(), (shape, np.abs(got - expected).max())
        assert not (np.abs(np.roll(got, 1, axis=-1) - expected) <= bound).all()
        other, _ = attentions.oracle(unmasked)
        assert not masked or not given["mask"].any() or not (np.abs(got - other) <= bound).all()


def test_no_text_gives_nothing(attentions: ModuleType, parse_model: Parse, session: Session) -> None:
    given = {name: value[:0] if value.ndim > 1 else value for name, value in attentions.feeds(1, 3, 4).items()}
    (got,) = session(node_alone(attentions, parse_model)).run(None, given)
    assert got.shape == (0, 3, attentions.HEADS * attentions.VALUE_WIDTH)


def test_only_narrow_products_are_rounded(
    attentions: ModuleType, parse_model: Parse, session: Session, isa: str
) -> None:
    """The twin: on processors that multiply bfloat16 its results leave the bound of float32, and on no other."""
    given = attentions.feeds(2, 33, 50)
    expected, bound = attentions.oracle(given)
    (got,) = session(node_alone(attentions, parse_model, narrow=True)).run(None, given)
    assert (np.abs(got - expected) <= 3 * bound).all() == (isa != "avx512bf16")


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
