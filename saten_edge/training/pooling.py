"""One vector per text as `saten_runtime.run.pooling` makes it on the device, in torch, so that a gradient passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from saten_edge.checkpoints.models import LoadedModel
from saten_runtime.run.pooling import Step

__all__ = ["POOLS", "STEPS", "pooling_of"]


def pooling_of(loaded: LoadedModel) -> Callable[[Tensor, Tensor], Tensor]:
    """Hidden (n, t, width), mask (n, t) → (n, dimensions), as the model's sentence-transformers files say."""
    how, steps = loaded.postprocess, tuple(loaded.steps)

    def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
        vectors = torch.cat([POOLS[name](hidden, mask) for name in how.pooling.split("+")], 1)
        for step in steps:
            vectors = STEPS[step.module.kind](vectors, step)
        return (functional.normalize(vectors, dim=-1) if how.normalize else vectors)[:, : how.dimensions]

    return pooled


def _first(mask: Tensor) -> Tensor:
    """(n,): the place of each row's first token that is no padding."""
    return (mask != 0).int().argmax(1)


def _cls(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), _first(mask)]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    last = mask.shape[1] - 1 - _first(mask.flip(1))
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, last] * (mask[rows, last] != 0)[:, None]


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    found = hidden.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    return torch.where((mask != 0).any(1, keepdim=True), found, 0.0)


def _weighted(hidden: Tensor, weights: Tensor, power: float = 1.0) -> Tensor:
    total = weights.sum(1, keepdim=True).clamp_min(1e-9)
    return (hidden * weights[..., None]).sum(1) / total**power


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return _weighted(hidden, mask.to(hidden.dtype))


def _mean_sqrt(hidden: Tensor, mask: Tensor) -> Tensor:
    return _weighted(hidden, mask.to(hidden.dtype), 0.5)


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)[None] - _first(mask)[:, None]
    return _weighted(hidden, (mask * places).to(hidden.dtype))


POOLS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda hidden, mask: hidden,
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


def _dense(vectors: Tensor, step: Step) -> Tensor:
    return ACTIVATIONS[step.module.activation](functional.linear(vectors, *_numbers(vectors, step)))


def _layer_norm(vectors: Tensor, step: Step) -> Tensor:
    return functional.layer_norm(vectors, vectors.shape[-1:], *_numbers(vectors, step), step.module.eps)


def _numbers(like: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, if there is one."""
    weight, bias = (torch.from_numpy(array).to(like) for array in (step.weight, step.bias))
    return weight, bias if bias.numel() else None


STEPS: Mapping[str, Callable[[Tensor, Step], Tensor]] = {"dense": _dense, "layer_norm": _layer_norm}
