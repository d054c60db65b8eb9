"""Attention whose values are narrower than its keys, in models that view both as heads of one width."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["NARROW", "use_narrow_values", "whole_heads"]

# The name under which transformers knows the function.
NARROW = "saten_narrow"


def whole_heads(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Values as the heads that keys have: (batch, h', tokens, width) → (batch, heads, tokens, h' · width / heads)."""
    if value.shape[1] == key.shape[1]:
        return value
    batch, heads, tokens, width = value.shape
    joined = value.transpose(1, 2).reshape(batch, tokens, key.shape[1], heads * width // key.shape[1])
    return joined.transpose(1, 2)


def narrow_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Torch's function over the values as they are; gives (batch, tokens, query heads, width of a value head)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    result: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, whole_heads(key, value), *rest, **options
    )
    return result


def use_narrow_values(model: Any) -> bool:
    """Have `model` compute attention so; False where it does not compute it by torch's function."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if model.config._attn_implementation not in ("sdpa", NARROW):
        return False
    AttentionInterface.register(NARROW, narrow_attention)
    AttentionMaskInterface.register(NARROW, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NARROW)
    return True
