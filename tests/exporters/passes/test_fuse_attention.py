from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters.passes import CancelLayoutsPass, FuseAttentionPass
from saten_runtime.errors import ExportError

HEADS, SHARED, WIDTH, SCALE = 4, 2, 8, 0.3
UNIT = float(np.finfo(np.float32).eps) / 2
LOWEST = np.finfo(np.float32).min

NEW = ", ".join(f"float[batch, {SHARED}, new, {WIDTH}] new_{name}" for name in ("keys", "values"))
PAST = ", ".join(f"float[batch, {SHARED}, past, {WIDTH}] past_{name}" for name in ("keys", "values"))
CACHE = ", ".join(f"float[batch, {SHARED}, total, {WIDTH}] {name}" for name in ("keys", "values"))
ATTENTION = f"saten.CachedAttention <num_heads = {HEADS}, kv_num_heads = {SHARED}, scale = {SCALE}>"
KEYS, VALUES = "keys = Concat <axis = -2> (past_keys, new_keys)", "values = Concat <axis = 2> (past_values, new_values)"
ATTEND = f"y = {ATTENTION} (queries, keys, values, added)"


def text(*nodes: str, new: str = NEW, past: str = PAST, cache: str = CACHE, shapes: str = "") -> str:
    flat = f"float[batch, new, {HEADS * WIDTH}]"
    head = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "saten" : 1]>'
    inputs = f"{flat} queries, {new}, {past}, float[batch, 1, new, total] added"
    return "\n".join((f"{head} g ({inputs}) => ({flat} y, {cache}) {shapes} {{", *nodes, "}"))


TEXT = text(KEYS, VALUES, ATTEND)
# Nothing of these can be fused.
REFUSED = {
    "another axis": text(KEYS, VALUES.replace("axis = 2", "axis = 1"), ATTEND),
    "another operator": text(KEYS, VALUES.replace("Concat <axis = 2>", "Sum"), ATTEND),
    "three parts": text(KEYS, VALUES.replace("new_values", "new_values, new_values"), ATTEND),
    "a computed past": text("made = Neg (past_keys)", KEYS.replace("past_keys", "made"), VALUES, ATTEND),
    "the new ones first": text(
        "made = Neg (new_keys)", KEYS.replace("past_keys, new_keys", "made, past_keys"), VALUES, ATTEND
    ),
    "a cache read twice": text(KEYS, VALUES, ATTEND.replace("y =", "x ="), ATTEND.replace("queries", "x")),
    "a cache that something else reads": text(KEYS, "z = Neg (keys)", VALUES, ATTEND),
    "a cache that stays inside": text(KEYS, VALUES, ATTEND, cache=CACHE.rpartition(", f")[0]),
    "keys from outside": text(KEYS, VALUES, ATTEND.replace("(queries, keys", "(queries, past_keys")),
}

Parse = Callable[..., ir.Model]
RunOrt = Callable[..., list[np.ndarray]]
Arrays = dict[str, np.ndarray]


def feeds(batch: int, new: int, past: int, mask: np.ndarray) -> Arrays:
    random = np.random.default_rng(11)
    shapes = {"queries": (batch, new, HEADS * WIDTH)}
    for name in ("keys", "values"):
        shapes |= {f"new_{name}": (batch, SHARED, new, WIDTH), f"past_{name}": (batch, SHARED, past, WIDTH)}
    added = np.where(mask, 0, LOWEST).astype(np.float32)[:, None, None].repeat(new, axis=2)
    return {"added": added, **{name: random.standard_normal(shapes[name], np.float32) for name in shapes}}


def padded(batch: int, total: int) -> np.ndarray:
    """Padding anywhere, but for the last token."""
    mask = np.random.default_rng(total).random((batch, total)) < 0.7
    mask[:, -1] = True
    return mask


def oracle(given: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Attention in float64, (batch, new, heads · width), and what rounding may do to it.

    A score is off by at most δ = γ scale |q|·|k|, γ = (width + 4) u, and a weight by 2δ and its exponential of itself;
    a sum over all keys adds (keys + 8) u.
    """
    batch, new, _ = given["queries"].shape
    queries = given["queries"].astype(float).reshape(batch, new, HEADS, WIDTH).transpose(0, 2, 1, 3)
    keys, values = (
        np.concatenate([given[f"past_{name}"], given[f"new_{name}"]], axis=2).astype(float).repeat(HEADS // SHARED, 1)
        for name in ("keys", "values")
    )
    total = keys.shape[2]
    later = np.arange(total) > np.arange(total - new, total)[:, None]
    scores = queries @ keys.swapaxes(2, 3) * SCALE + np.where(later, -np.inf, given["added"])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    delta = ((WIDTH + 4) * UNIT * SCALE * (np.abs(queries) @ np.abs(keys).swapaxes(2, 3))).max(axis=-1, keepdims=True)
    bound = (2 * delta + (total + 16) * UNIT) * (weights @ np.abs(values))
    attended, bound = (each.transpose(0, 2, 1, 3).reshape(batch, new, -1) for each in (weights @ values, bound))
    return attended, bound


@pytest.mark.parametrize(("batch", "new", "past"), [(1, 1, 0), (1, 7, 0), (1, 1, 5), (1, 4, 5), (3, 7, 0), (3, 1, 5)])
def test_it_computes_attention_and_the_cache(
    batch: int, new: int, past: int, parse_model: Parse, run_ort: RunOrt
) -> None:
    model, mask = parse_model(TEXT), padded(batch, past + new)
    assert FuseAttentionPass()(model).modified
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("GroupQueryAttention") == 1
    assert not {"CachedAttention", "Concat"} & set(kinds)
    assert [value.name for value in model.graph.outputs] == ["y", "keys", "values"]
    given = feeds(batch, new, past, mask)
    expected, bound = oracle(given)
    read = mask[:, past:]
    unpadded, _ = oracle({**given, "added": np.zeros_like(given["added"])})
    for optimized in (False, True):
        got, keys, values = run_ort(model, given, optimized=optimized)
        assert np.isfinite(got).all()
        assert (np.abs(got - expected) <= bound)[read].all()
        assert not (np.abs(np.roll(got, 1, axis=-1) - expected) <= bound)[read].all()
        assert mask.all() or not (np.abs(unpadded - expected) <= bound)[read].all()
        np.testing.assert_array_equal(keys, np.concatenate([given["past_keys"], given["new_keys"]], axis=2))
        np.testing.assert_array_equal(values, np.concatenate([given["past_values"], given["new_values"]], axis=2))


def test_several_tokens_after_a_past_are_for_one_text(parse_model: Parse, run_ort: RunOrt) -> None:
    """Why `saten_runtime.run.generation` reads them one by one."""
    model = _fused(parse_model)
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1 and past context is given"):
        run_ort(model, feeds(3, 4, 5, padded(3, 9)))


@pytest.mark.parametrize("apart", [False, True])
def test_what_layers_share_is_computed_once(apart: bool, parse_model: Parse, run_ort: RunOrt) -> None:
    """Two layers, the second of which reads what the first gives and has a cache of its own."""
    first = (KEYS, VALUES, ATTEND.replace("y =", "x ="))
    second = [each.replace("past_", "other_past_") for each in (KEYS, VALUES, ATTEND)]
    second = [re.sub(r"\b(keys|values)\b", r"other_\1", each).replace("queries", "x") for each in second]
    other = [each.replace("] ", "] other_") for each in (PAST, CACHE)]
    more = f"{PAST}, {other[0]}, float[batch, 1, new, total] other_added"
    if apart:
        second[-1] = second[-1].replace("added", "other_added")
    model = parse_model(text(*first, *second, past=more, cache=f"{CACHE}, {other[1]}"))
    FuseAttentionPass()(model)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("GroupQueryAttention") == 2
    assert kinds.count("Squeeze") == kinds.count("Expand") == 1 + apart
    given = feeds(1, 3, 2, padded(1, 5))
    again = {f"other_{name}": array for name, array in given.items() if "past" in name or name == "added"}
    halfway = run_ort(_fused(parse_model), given)[0]
    expected, bound = oracle({**given, "queries": halfway})
    got = run_ort(model, {**given, **again})[0]
    read = given["added"][0, 0, 0, 2:] == 0
    assert (np.abs(got - expected) <= bound)[:, read].all()
    assert not (np.abs(halfway - expected) <= bound)[:, read].all()


def _fused(parse_model: Parse) -> ir.Model:
    model = parse_model(TEXT)
    FuseAttentionPass()(model)
    return model


def test_turned_keys_and_values_are_read_as_they_were(parse_model: Parse) -> None:
    """As layers make them, (batch, new, heads · width); turned there and back they would be copied."""
    nodes, shapes = [], [f"int64[4] heads = {{0, 0, {SHARED}, {WIDTH}}}"]
    for name in ("keys", "values"):
        nodes += [
            f"s_{name} = Reshape (flat_{name}, heads)",
            f"new_{name} = Transpose <perm = [0, 2, 1, 3]> (s_{name})",
        ]
        shapes += [f"float[batch, new, {SHARED}, {WIDTH}] s_{name}", f"float[batch, {SHARED}, new, {WIDTH}] new_{name}"]
    flat = ", ".join(f"float[batch, new, {SHARED * WIDTH}] flat_{name}" for name in ("keys", "values"))
    model = parse_model(text(*nodes, KEYS, VALUES, ATTEND, new=flat, shapes=f"<{', '.join(shapes)}>"))
    FuseAttentionPass()(model)
    assert CancelLayoutsPass()(model).modified
    (fused,) = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    read = [value.name for value in fused.inputs[:5] if value is not None]
    assert read == ["queries", "flat_keys", "flat_values", "past_keys", "past_values"]


@pytest.mark.parametrize("case", REFUSED)
def test_another_cache_is_refused(case: str, parse_model: Parse) -> None:
    with pytest.raises(ExportError, match="no cache of its own with new ones behind it"):
        FuseAttentionPass()(parse_model(REFUSED[case]))


def test_nothing_to_fuse(parse_model: Parse) -> None:
    model = parse_model(TEXT.replace("saten.Cached", "com.microsoft.Cached"))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not FuseAttentionPass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
