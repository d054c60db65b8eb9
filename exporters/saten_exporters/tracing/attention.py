"""Attention as one placeholder per layer while a model is traced, so that it need not be found again later."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from saten_exporters.tracing.narrow import NARROW, whole_heads
from saten_runtime.vocabulary.operators import ATTENTION, CACHED_ATTENTION, qualified

__all__ = ["placeholders"]

# ONNX Runtime's GroupQueryAttention takes heads of such sizes.
HEAD_MULTIPLE = 8
# What transformers hands to the attention of some families, and a placeholder does not express.
OPTIONS = ("position_bias", "s_aux", "softcap")

_NAME = "saten_placeholder"


@contextlib.contextmanager
def placeholders(model: Any, *, cached: bool) -> Iterator[None]:
    """While this lasts, each attention of `model` that can be expressed is traced as a node of domain `saten`.

    Its inputs: queries, keys and values, and what is added to scores, the lowest float32 where a key is padding (batch,
    1, new, past + new); pictures have no padding, and nothing is added. `Attention` takes and gives (batch, heads,
    tokens, width). `CachedAttention` takes queries (batch, new, heads · width), keys and values (batch, key-value
    heads, past + new, width), and gives what queries are. Other masks and options, and models that do not compute
    attention by torch's function through transformers' interface, are traced as they are.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    before = model.config._attn_implementation
    if before not in ("sdpa", NARROW):
        yield
        return
    AttentionInterface.register(_NAME, functools.partial(attention, cached))
    AttentionMaskInterface.register(_NAME, functools.partial(mask, cached))
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def mask(cached: bool, **how: Any) -> torch.Tensor | None:
    """What a placeholder adds where a token sees all, or all up to its own if cached, but padding; else torch's mask.

    Nothing where a token sees all and there is no padding, as in pictures: torch's mask hides none of them.

    With a cache, keys behind a window are hidden as padding is.
    how: as transformers' `AttentionMaskInterface` says; attention_mask (batch, past + new) is False at padding;
    local_size is that of a window, and use_vmap stands for masks of the model's own.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

    seen = how["attention_mask"]
    if how["mask_function"] is (causal_mask_function if cached else bidirectional_mask_function):
        if seen is not None:
            return _added(seen)[:, None, None].expand(-1, -1, how["q_length"], -1)
        if not cached:
            return None
    allowed: torch.Tensor | None
    if cached and seen is not None and how.get("local_size") and not how.get("use_vmap"):
        allowed = sdpa_mask(**{**how, "allow_is_causal_skip": False})
        return None if allowed is None else _added(allowed)
    allowed = sdpa_mask(**how)
    return allowed


def _added(seen: torch.Tensor) -> torch.Tensor:
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)


def attention(
    cached: bool,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The placeholder where `mask` made numbers to add and nothing speaks against it; else torch's function.

    query, key, value: (batch, heads or key-value heads, tokens, width), of values perhaps as `whole_heads` takes them;
    gives (batch, new, heads, width).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    value = whole_heads(key, value)
    of_pictures = attention_mask is None and not cached and not _causal(module, options.get("is_causal"))
    if of_pictures or (attention_mask is not None and attention_mask.is_floating_point()):
        possible = key.shape[1] == query.shape[1]
        if cached:  # ONNX Runtime's operator takes keys and values of one width
            possible = query.shape[3] % HEAD_MULTIPLE == 0 and value.shape[3] == key.shape[3]
        if possible and all(options.get(name) is None for name in OPTIONS):
            scale = query.shape[3] ** -0.5 if scaling is None else scaling
            return (_cached if cached else _plain)(query, key, value, attention_mask, scale), None
        attention_mask = None if attention_mask is None else _allowed(attention_mask, cached)
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return result


def _causal(module: torch.nn.Module, said: bool | None) -> bool:
    """Whether torch's function hides later tokens where there is no mask."""
    return bool(getattr(module, "is_causal", True) if said is None else said)


def _cached(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, added: torch.Tensor | None, scale: float
) -> torch.Tensor:
    heads = query.shape[1]
    queries = query.transpose(1, 2).flatten(2)
    attributes = {"num_heads": heads, "kv_num_heads": key.shape[1], "scale": scale}
    attended = _placeholder(CACHED_ATTENTION, (queries, key, value, added), queries.shape, attributes)
    return attended.reshape(*queries.shape[:2], heads, -1)


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, added: torch.Tensor | None, scale: float
) -> torch.Tensor:
    shape = (*query.shape[:3], value.shape[3])
    return _placeholder(ATTENTION, (query, key, value, added), shape, {"scale": scale}).transpose(1, 2)


def _placeholder(
    op_type: str, inputs: tuple[torch.Tensor | None, ...], shape: Sequence[int], attributes: Mapping[str, float]
) -> torch.Tensor:
    """A node; inputs that are None are left out."""
    name, given = qualified(op_type), [each for each in inputs if each is not None]
    return torch.onnx.ops.symbolic(name, given, attrs=dict(attributes), dtype=given[0].dtype, shape=shape, version=1)


def _allowed(added: torch.Tensor, cached: bool) -> torch.Tensor:
    """What `mask` made of the padding → True where a token sees another, (batch, 1, new, past + new)."""
    seen = added == 0
    if not cached:
        return seen
    new, total = added.shape[2:]
    keys, tokens = torch.arange(total), torch.arange(total - new, total)
    return seen & (keys <= tokens[:, None])
