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

_NAME = "saten_placeholder"


@contextlib.contextmanager
def placeholders(model: Any) -> Iterator[None]:
    """While this lasts, each attention of `model` that can be fused is traced as a node `saten::CachedAttention`.

    Its inputs: queries (batch, new, heads · width), keys and values (batch, key-value heads, past + new, width), and
    what is added to scores, the lowest float32 where a key is padding (batch, 1, new, past + new); its output: (batch,
    new, heads · width). That no token sees a later one is understood. Other masks, and models that do not compute
    attention by torch's function through transformers' interface, are traced as they are.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _mask(**how: Any) -> torch.Tensor | None:
    """Padding as a placeholder takes it; any other mask, and any for other heads, as torch's function takes it."""
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    padding, config = how["attention_mask"], how["config"]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if padding is None or how["mask_function"] is not causal_mask_function or width % HEAD_MULTIPLE:
        mask: torch.Tensor | None = sdpa_mask(**how)
        return mask
    added = torch.where(padding, 0.0, torch.finfo(torch.float32).min)  # (batch, past + new)
    return added[:, None, None].expand(-1, -1, how["q_length"], -1)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The placeholder where `_mask` made numbers to add; torch's function where it made none.

    query, key, value: (batch, heads or key-value heads, tokens, width); gives (batch, new, heads, width).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or not attention_mask.is_floating_point():
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
    heads, width = query.shape[1], query.shape[3]
    queries = query.transpose(1, 2).flatten(2)
    attended = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OP_TYPE}",
        (queries, key, value, attention_mask),
        attrs={
            "num_heads": heads,
            "kv_num_heads": key.shape[1],
            "scale": width**-0.5 if scaling is None else scaling,
        },
        dtype=query.dtype,
        shape=queries.shape,
        version=1,
    )
    return attended.reshape(*queries.shape[:2], heads, width), None
