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
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function

from saten_edge.models import LoadedModel, load_model
from saten_exporters import TARGETS, export
from saten_exporters.attention import HEAD_MULTIPLE, OP_TYPE, OPTIONS, attention, mask, placeholders
from saten_exporters.trace import trace

BATCH, HEADS, SHARED, NEW, TOTAL = 3, 4, 2, 4, 9
MODULE = SimpleNamespace(num_key_value_groups=HEADS // SHARED, is_causal=True)

MakeTiny = Callable[..., Path]


def how(**changes: Any) -> dict[str, Any]:
    """What transformers asks a mask function for."""
    seen = torch.rand((BATCH, TOTAL), generator=torch.Generator().manual_seed(3)) < 0.7
    sizes = {"batch_size": BATCH, "q_length": NEW, "kv_length": TOTAL, "q_offset": TOTAL - NEW}
    asked = {"mask_function": causal_mask_function, "attention_mask": seen, "allow_is_causal_skip": False}
    return {**sizes, **asked, **changes}


def states(width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = ((BATCH, HEADS, NEW, width), (BATCH, SHARED, TOTAL, width), (BATCH, SHARED, TOTAL, width))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


def found(source: LoadedModel) -> list[ir.Node]:
    return [node for node in trace(source, TARGETS["x86-64"]).program.graph if node.op_type == OP_TYPE]


def test_a_decoder_has_a_placeholder_per_layer(make_tiny: MakeTiny) -> None:
    """With the scale of each; what becomes of them in every family is in `test_battery.py`."""
    options = {"scale_attn_by_inverse_layer_idx": True}
    source = load_model(make_tiny("gpt2", "text-generation", **options), "text-generation")
    width = source.model.config.hidden_size // source.model.config.num_attention_heads
    scales = [node.attributes.get_float("scale", 0.0) for node in found(source)]
    assert scales == pytest.approx([width**-0.5 / layer for layer in (1, 2)])
    assert source.model.config._attn_implementation == "sdpa"


def test_what_is_no_decoder_has_none(make_tiny: MakeTiny) -> None:
    assert not found(load_model(make_tiny("mistral", "text-classification"), "text-classification"))


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
    with contextlib.suppress(RuntimeError), placeholders(model):
        during.append(model.config._attn_implementation)
        raise RuntimeError("no graph")
    assert during != ["sdpa"]
    assert model.config._attn_implementation == "sdpa"


def test_padding_is_what_is_added() -> None:
    asked = how()
    added = mask(**asked)
    assert added is not None
    assert added.shape == (BATCH, 1, NEW, TOTAL)
    assert added.dtype == torch.float32
    assert torch.equal(added[:, 0] == 0, asked["attention_mask"][:, None].expand(-1, NEW, -1))
    assert set(added.unique().tolist()) == {0, torch.finfo(torch.float32).min}


@pytest.mark.parametrize(
    "changes", [{"mask_function": sliding_window_causal_mask_function(3)}, {"attention_mask": None}]
)
def test_other_masks_are_as_torch_has_them(changes: dict[str, Any]) -> None:
    asked = how(**changes)
    got = mask(**asked)
    assert got is not None
    assert torch.equal(got, sdpa_mask(**asked))
    assert not torch.equal(got, sdpa_mask(**how()))


@pytest.mark.parametrize("option", [None, *OPTIONS])
@pytest.mark.parametrize("width", [HEAD_MULTIPLE, HEAD_MULTIPLE - 1])
def test_only_what_a_placeholder_says_becomes_one(option: str | None, width: int) -> None:
    """Run, and not traced, a placeholder computes nothing; everything else is what torch's function computes."""
    value = torch.ones((1, HEADS, NEW, TOTAL)).cumsum(-1) if option == "position_bias" else 1
    options = {option: value} if option is not None else {}
    arguments = (MODULE, *states(width))
    plain = option is None and width == HEAD_MULTIPLE
    if option == "softcap":  # which torch's function does not have
        with pytest.raises(ValueError, match="softcap"):
            attention(*arguments, mask(**how()), **options)
        return
    got, _ = attention(*arguments, mask(**how()), **options)
    expected, _ = sdpa_attention_forward(*arguments, sdpa_mask(**how()), **options)
    assert got.shape == expected.shape
    assert torch.equal(got, expected) != plain


def test_a_mask_that_is_no_padding_is_left_to_torch() -> None:
    arguments = (MODULE, *states(HEAD_MULTIPLE), sdpa_mask(**how()))
    assert torch.equal(attention(*arguments)[0], sdpa_attention_forward(*arguments)[0])
