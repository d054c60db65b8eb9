"""Attention of a decoder as one placeholder per layer while it is traced, so that it need not be found again later."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from saten_exporters.forms import DOMAIN

__all__ = ["OP_TYPE", "placeholders"]

OP_TYPE = "CachedAttention"

# ONNX Runtime's GroupQueryAttention takes heads of such sizes.
HEAD_MULTIPLE = 8
# What transformers hands to the attention of some families, and a placeholder does not express.
OPTIONS = ("position_bias", "s_aux", "sliding_window", "softcap")

_NAME = "saten_placeholder"


@contextlib.contextmanager
def placeholders(model: Any) -> Iterator[None]:
    """While this lasts, each attention of `model` that can be fused is traced as a node `saten::CachedAttention`.

    Its inputs: queries (batch, new, heads · width), keys and values (batch, key-value heads, past + new, width), and
    what is added to scores, the lowest float32 where a key is padding (batch, 1, new, past + new); its output: (batch,
    new, heads · width). That no token sees a later one is understood. Other masks and options, and models that do not
    compute attention by torch's function through transformers' interface, are traced as they are.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    AttentionInterface.register(_NAME, attention)
    AttentionMaskInterface.register(_NAME, mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def mask(**how: Any) -> torch.Tensor | None:
    """Where no token sees a later one or padding, what a placeholder adds; any other mask as torch's function has it.

    how: as transformers' `AttentionMaskInterface` says; attention_mask (batch, past + new) is False at padding.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    seen = how["attention_mask"]
    if seen is None or how["mask_function"] is not causal_mask_function:
        allowed: torch.Tensor | None = sdpa_mask(**how)
        return allowed
    added = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    return added[:, None, None].expand(-1, -1, how["q_length"], -1)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The placeholder where `mask` made numbers to add and nothing speaks against it; else torch's function.

    query, key, value: (batch, heads or key-value heads, tokens, width); gives (batch, new, heads, width).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    _, heads, _, width = query.shape
    if attention_mask is not None and attention_mask.is_floating_point():
        if width % HEAD_MULTIPLE == 0 and all(options.get(name) is None for name in OPTIONS):
            scale = width**-0.5 if scaling is None else scaling
            queries = query.transpose(1, 2).flatten(2)
            attended = _placeholder(queries, key, value, attention_mask, heads, scale)
            return attended.reshape(*queries.shape[:2], heads, width), None
        attention_mask = _allowed(attention_mask)
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return result


def _placeholder(
    queries: torch.Tensor, key: torch.Tensor, value: torch.Tensor, added: torch.Tensor, heads: int, scale: float
) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OP_TYPE}",
        (queries, key, value, added),
        attrs={"num_heads": heads, "kv_num_heads": key.shape[1], "scale": scale},
        dtype=queries.dtype,
        shape=queries.shape,
        version=1,
    )


def _allowed(added: torch.Tensor) -> torch.Tensor:
    """What `mask` made of the padding → True where a token sees another, (batch, 1, new, past + new)."""
    new, total = added.shape[2:]
    keys, tokens = torch.arange(total), torch.arange(total - new, total)
    return (added == 0) & (keys <= tokens[:, None])
