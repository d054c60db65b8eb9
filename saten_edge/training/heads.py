"""Logits over a large vocabulary, a few tokens at a time: those of a whole batch are never in memory.

A language model's logits (batch, tokens, vocabulary) are larger than all its activations. What a loss needs of them is
one number per token. So the model is asked for its last hidden states, the output layer is applied to some rows of
these within the loss, and again in the backward pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["Head", "in_chunks", "output_layer", "outputs"]

ROWS = 256

Head = Callable[[Tensor], Tensor]
"""The last hidden states of some tokens (rows, width) → their logits (rows, vocabulary) in float32."""


def outputs(model: Any, inputs: Mapping[str, Tensor], *, hidden: bool, chunked: bool) -> Any:
    """A model's outputs; hidden: with the states after every block. chunked: with logits of the last token alone."""
    kept = {"logits_to_keep": 1} if chunked else {}
    return model(**inputs, output_hidden_states=hidden or chunked, **kept)


def output_layer(model: Any, device: torch.device) -> Head:
    """The output layer of a causal language model, with products of the precision that is in force now."""
    layer, low = model.get_output_embeddings(), torch.is_autocast_enabled(device.type)

    def logits(rows: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            made: Tensor = layer(rows)
        return made.float()

    return logits


def in_chunks(total: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """The sum of total(*some rows) over all of them; nothing of a part is kept for the backward pass."""
    sums = [
        checkpoint(total, *(part[start : start + ROWS] for part in rows), use_reentrant=False)
        for start in range(0, len(rows[0]), ROWS)
    ]
    return torch.stack(sums).sum() if sums else rows[0].sum() * 0
