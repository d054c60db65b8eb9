from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_exporters import TARGETS, export
from saten_exporters.tracing.attention import HEAD_MULTIPLE, OPTIONS, attention, mask, placeholders
from saten_exporters.tracing.trace import trace
from saten_runtime.vocabulary.operators import ATTENTION, CACHED_ATTENTION

BATCH, HEADS, SHARED, NEW, TOTAL = 3, 4, 2, 4, 9
# By whether there is a cache: who sees whom, the heads of keys and values, and the module that attends.
MASKS = {True: causal_mask_function, False: bidirectional_mask_function}
KEY_HEADS = {True: SHARED, False: HEADS}
MODULES = {
    cached: SimpleNamespace(num_key_value_groups=HEADS // heads, is_causal=cached)
    for cached, heads in KEY_HEADS.items()
}

MakeTiny = Callable[..., Path]


def how(cached: bool, **changes: Any) -> dict[str, Any]:
    """What transformers asks a mask function for."""
    seen = torch.rand((BATCH, TOTAL), generator=torch.Generator().manual_seed(3)) < 0.7
    sizes = {"batch_size": BATCH, "q_length": NEW, "kv_length": TOTAL, "q_offset": TOTAL - NEW}
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return {**sizes, **skips, "mask_function": MASKS[cached], "attention_mask": seen, **changes}


def states(width: int, heads: int = SHARED) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = ((BATCH, HEADS, NEW, width), (BATCH, heads, TOTAL, width), (BATCH, heads, TOTAL, width))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


def found(source: LoadedModel, op_type: str = CACHED_ATTENTION) -> list[ir.Node]:
    return [node for node in trace(source, TARGETS["x86-64"]).program.graph if node.op_type == op_type]


def test_a_decoder_has_a_placeholder_per_layer(make_tiny: MakeTiny) -> None:
    """With the scale of each; what becomes of them in every family is in `test_battery.py`."""
    options = {"scale_attn_by_inverse_layer_idx": True}
    source = load_model(make_tiny("gpt2", "text-generation", **options), "text-generation")
    width = source.model.config.hidden_size // source.model.config.num_attention_heads
    scales = [node.attributes.get_float("scale", 0.0) for node in found(source)]
    assert scales == pytest.approx([width**-0.5 / layer for layer in (1, 2)])
    assert source.model.config._attn_implementation == "sdpa"


def test_an_encoder_has_another_per_layer(make_tiny: MakeTiny) -> None:
    source = load_model(make_tiny("bert", "text-classification"), "text-classification")
    width = source.model.config.hidden_size // source.model.config.num_attention_heads
    scales = [node.attributes.get_float("scale", 0.0) for node in found(source, ATTENTION)]
    assert scales == pytest.approx([width**-0.5] * 2)
    assert not found(source)


def test_pictures_have_no_padding(make_tiny: MakeTiny) -> None:
    source = load_model(make_tiny("siglip_vision_model", "feature-extraction"), "feature-extraction")
    assert [len(node.inputs) for node in found(source, ATTENTION)] == [3, 3]


def test_a_decoder_without_a_cache_has_none(make_tiny: MakeTiny) -> None:
    source = load_model(make_tiny("mistral", "text-classification"), "text-classification")
    assert not found(source)
    assert not found(source, ATTENTION)


def test_other_heads_are_traced_as_they_are(make_tiny: MakeTiny, tmp_path: Path) -> None:
    """The exporter compares what it wrote with torch."""
    width = HEAD_MULTIPLE + HEAD_MULTIPLE // 2
    source = load_model(make_tiny("llama", "text-generation", head_dim=width), "text-generation")
    assert not found(source)
    export(source, tmp_path / "bundle")


def test_another_implementation_is_traced_as_it_is(make_tiny: MakeTiny) -> None:
    source = load_model(make_tiny("gpt2", "text-generation"), "text-generation")
    source.model.set_attn_implementation("eager")
    assert not found(source)
    assert source.model.config._attn_implementation == "eager"


def test_the_model_is_as_before_where_tracing_fails(make_tiny: MakeTiny) -> None:
    model = load_model(make_tiny("llama", "text-generation"), "text-generation").model
    during = []
    with contextlib.suppress(RuntimeError), placeholders(model, cached=True):
        during.append(model.config._attn_implementation)
        raise RuntimeError("no graph")
    assert during != ["sdpa"]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("cached", [True, False])
def test_padding_is_what_is_added(cached: bool) -> None:
    asked = how(cached)
    added = mask(cached, **asked)
    assert added is not None
    assert added.shape == (BATCH, 1, NEW, TOTAL)
    assert added.dtype == torch.float32
    assert torch.equal(added[:, 0] == 0, asked["attention_mask"][:, None].expand(-1, NEW, -1))
    assert set(added.unique().tolist()) == {0, torch.finfo(torch.float32).min}


@pytest.mark.parametrize(
    ("cached", "change"), [(True, "mask_function"), (False, "mask_function"), (True, "attention_mask")]
)
def test_other_masks_are_as_torch_has_them(cached: bool, change: str) -> None:
    others = {"mask_function": (MASKS[not cached], sliding_window_causal_mask_function(3)), "attention_mask": (None,)}
    for other in others[change]:
        asked = how(cached, **{change: other})
        got = mask(cached, **asked)
        assert got is not None
        assert torch.equal(got, sdpa_mask(**asked))
        assert not torch.equal(got, sdpa_mask(**how(cached)))


def test_without_padding_a_token_that_sees_all_needs_no_mask() -> None:
    """As in pictures. torch's mask hides nothing, and would be added to every score."""
    asked = how(False, attention_mask=None)
    assert mask(False, **asked) is None
    assert sdpa_mask(**asked).all()
    assert mask(False, **how(False, attention_mask=None, mask_function=MASKS[True])) is not None


def test_keys_behind_a_window_are_hidden_as_padding_is() -> None:
    asked = how(True, mask_function=sliding_window_causal_mask_function(3), local_size=3)
    added, allowed = mask(True, **asked), sdpa_mask(**asked)
    assert added is not None
    assert torch.equal(added == 0, allowed)
    assert not torch.equal(allowed, sdpa_mask(**how(True)))  # the window hides something
    arguments = (MODULES[True], *states(HEAD_MULTIPLE - 1))  # no head of the operator: torch's function
    assert torch.equal(attention(True, *arguments, added)[0], sdpa_attention_forward(*arguments, allowed)[0])


@pytest.mark.parametrize(("cached", "own"), [(True, True), (False, False)])
def test_a_window_of_other_kinds_is_as_torch_has_it(cached: bool, own: bool) -> None:
    """Without a cache, or where the model has functions of its own beside the window."""
    asked = how(cached, mask_function=sliding_window_causal_mask_function(3), local_size=3, use_vmap=own)
    assert torch.equal(mask(cached, **asked), sdpa_mask(**asked))


@pytest.mark.parametrize("option", [None, *OPTIONS])
@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_only_what_a_placeholder_says_becomes_one(cached: bool, fits: bool, option: str | None) -> None:
    """Run, and not traced, a placeholder computes nothing; everything else is what torch's function computes."""
    value = torch.ones((1, HEADS, NEW, TOTAL)).cumsum(-1) if option == "position_bias" else 1
    options = {option: value} if option is not None else {}
    # What does not fit: with a cache the width of a head, without one fewer heads of keys.
    width, heads = HEAD_MULTIPLE - (cached and not fits), KEY_HEADS[cached or not fits]
    arguments = (MODULES[cached or not fits], *states(width, heads))
    plain = option is None and fits
    if option == "softcap":  # which torch's function does not have
        with pytest.raises(ValueError, match="softcap"):
            attention(cached, *arguments, mask(cached, **how(cached)), **options)
        return
    got, _ = attention(cached, *arguments, mask(cached, **how(cached)), **options)
    expected, _ = sdpa_attention_forward(*arguments, sdpa_mask(**how(cached)), **options)
    assert got.shape == expected.shape
    assert torch.equal(got, expected) != plain


@pytest.mark.parametrize("cached", [True, False])
def test_a_mask_that_is_no_padding_is_left_to_torch(cached: bool) -> None:
    arguments = (MODULES[cached], *states(HEAD_MULTIPLE, KEY_HEADS[cached]), sdpa_mask(**how(cached)))
    assert torch.equal(attention(cached, *arguments)[0], sdpa_attention_forward(*arguments)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_without_a_mask_only_what_sees_all_becomes_one(causal: bool) -> None:
    arguments = (MODULES[causal], *states(HEAD_MULTIPLE, KEY_HEADS[False]), None)
    expected, _ = sdpa_attention_forward(*arguments)
    assert torch.equal(attention(False, *arguments)[0], expected) == causal
