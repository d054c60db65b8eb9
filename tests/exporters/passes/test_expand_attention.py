from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters.passes import ExpandAttentionPass

HEADS, WIDTH, VALUE_WIDTH, SCALE = 3, 8, 5, 0.3
UNIT = float(np.finfo(np.float32).eps) / 2
LOWEST = np.finfo(np.float32).min

INPUTS = (
    f"float[batch, {HEADS}, new, {WIDTH}] queries, float[batch, {HEADS}, tokens, {WIDTH}] keys, "
    f"float[batch, {HEADS}, tokens, {VALUE_WIDTH}] values, float[batch, 1, new, tokens] added"
)
TEXT = f"""<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "saten" : 1]>
    g ({INPUTS}) => (float[batch, {HEADS}, new, {VALUE_WIDTH}] y) {{
        y = saten.Attention <scale = {SCALE}> (queries, keys, values, added)
    }}"""

Parse = Callable[..., ir.Model]
RunOrt = Callable[..., list[np.ndarray]]
Arrays = dict[str, np.ndarray]


def feeds(batch: int, new: int, tokens: int) -> Arrays:
    random = np.random.default_rng(tokens)
    shapes = {"queries": (new, WIDTH), "keys": (tokens, WIDTH), "values": (tokens, VALUE_WIDTH)}
    seen = random.random((batch, tokens)) < 0.7
    seen[:, -1] = True
    added = np.where(seen, 0, LOWEST).astype(np.float32)[:, None, None].repeat(new, axis=2)
    given = {name: random.standard_normal((batch, HEADS, *shape), np.float32) for name, shape in shapes.items()}
    return {"added": added, **given}


def oracle(given: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Attention in float64 and what rounding may do to it, as in `test_fuse_attention.py`."""
    queries, keys, values = (given[name].astype(float) for name in ("queries", "keys", "values"))
    scores = queries @ keys.swapaxes(2, 3) * SCALE + given["added"]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    delta = ((WIDTH + 4) * UNIT * SCALE * (np.abs(queries) @ np.abs(keys).swapaxes(2, 3))).max(axis=-1, keepdims=True)
    return weights @ values, (2 * delta + (keys.shape[2] + 16) * UNIT) * (weights @ np.abs(values))


@pytest.mark.parametrize(("batch", "new", "tokens"), [(1, 1, 1), (1, 7, 7), (3, 7, 7), (3, 2, 9)])
@pytest.mark.parametrize("optimized", [False, True])
def test_it_computes_attention(
    batch: int, new: int, tokens: int, optimized: bool, parse_model: Parse, run_ort: RunOrt
) -> None:
    model = parse_model(TEXT)
    assert ExpandAttentionPass()(model).modified
    assert [node.op_type for node in model.graph] == ["FusedMatMul", "Add", "Softmax", "MatMul"]
    given = feeds(batch, new, tokens)
    expected, bound = oracle(given)
    (got,) = run_ort(model, given, optimized=optimized)
    assert (np.abs(got - expected) <= bound).all()
    assert not (np.abs(np.roll(got, 1, axis=-1) - expected) <= bound).all()
    assert tokens == 1 or not (np.abs(oracle({**given, "added": given["added"] * 0})[0] - expected) <= bound).all()


@pytest.mark.parametrize("optimized", [False, True])
def test_of_pictures_nothing_is_added(optimized: bool, parse_model: Parse, run_ort: RunOrt) -> None:
    model = parse_model(TEXT.replace("values, added)", "values)"))
    assert ExpandAttentionPass()(model).modified
    assert [node.op_type for node in model.graph] == ["FusedMatMul", "Softmax", "MatMul"]
    given = feeds(3, 2, 9)
    expected, bound = oracle({**given, "added": given["added"] * 0})
    (got,) = run_ort(model, given, optimized=optimized)
    assert (np.abs(got - expected) <= bound).all()
    assert not (np.abs(got - oracle(given)[0]) <= bound).all()


def test_another_operator_stays(parse_model: Parse) -> None:
    model = parse_model(TEXT.replace("saten.Attention", "saten.CachedAttention"))
    assert not ExpandAttentionPass()(model).modified
    assert [node.op_type for node in model.graph] == ["CachedAttention"]
