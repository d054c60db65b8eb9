"""Layers that a precision costs too much: int8, int4 and int2 store these in blocks of 8 bits.

A product of int8 rounds all activations of a text by one scale. In language models the first token and a few channels
are a hundred times as large as all others, which then keep a few of 256 steps. In blocks each 64 activations of a token
have a scale of their own.

What that costs is measured per layer on text: the squared change of its output in units of its size, token by token,
because a first token of a hundred times the size would hide that all others are lost. The worst layers are taken until
the sum over the others is small. A head that shares its table counts as a layer, and takes the table with it.

Below 8 bits every layer loses about as much; but what a head loses nothing behind it evens out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saten_exporters.exportable import Exportable
from saten_exporters.quantize import PRECISIONS, in_blocks
from saten_exporters.tracing.layers import column_of, columns_of, layers_of, stored_name
from saten_exporters.tracing.signatures import kind_of

__all__ = ["ALIKE", "BLOCKS", "Mixed", "head_losses", "mixed_layers", "noise_of", "round_to_bytes", "worst"]

BLOCKS = "int8-block"
# What a model may keep of it. A sound encoder has 0.12, and loses nothing that can be seen. A text that is generated
# repeats the loss at every token: SmolLM2-135M has 3.1 and loses 0.55 nats; with 0.2 left it loses 0.056, with 0.05
# left 0.013.
LARGEST_NOISE, LARGEST_NOISE_GENERATING = 0.15, 0.05
# Nats that a head may lose below 8 bits. At int4 that of SmolLM2-135M, which shares its table, loses 0.15.
LARGEST_HEAD_LOSS = 0.02

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Mixed:
    """Layers stored in blocks of 8 bits. layers: their names. columns: the hash of the weights of an output of each."""

    layers: tuple[str, ...] = ()
    columns: frozenset[bytes] = field(default_factory=frozenset)

    def precision_of(self, layer: str, precision: str) -> str:
        """What a compressed layer is stored at."""
        return BLOCKS if layer in self.layers else precision

    def precision_of_matrix(self, matrix: NDArray[np.float32], precision: str) -> str:
        """What a dense matrix (in, out) is stored at; a table is one by its transpose, as its head multiplies."""
        found = self.columns and any(column in self.columns for column in columns_of(matrix))
        return BLOCKS if found else precision


ALIKE = Mixed()
"""Every layer at the precision of the bundle."""


def mixed_layers(source: Exportable, precision: str, texts: Iterable[Inputs]) -> Mixed:
    """The layers that a precision keeps in blocks of 8 bits, by what the model computes of texts, each alone.

    Runs the model on every text, with two products in place of one; at other precisions, not at all.
    """
    if precision not in CHOICES:
        return ALIKE
    layers = layers_of(source)
    chosen = [(name, layers[name]) for name in CHOICES[precision](source, layers, texts)]
    columns = (column_of(layer) for _, layer in chosen)
    return Mixed(
        tuple(stored_name(name, layer) for name, layer in chosen),
        frozenset(column for column in columns if column is not None),
    )


def _noisy(source: Exportable, layers: Mapping[str, Any], texts: Iterable[Inputs]) -> list[str]:
    largest = LARGEST_NOISE_GENERATING if kind_of(source).cached else LARGEST_NOISE
    return worst(noise_of(source.model, layers, texts), largest)


def _coarse_heads(precision: str, source: Exportable, layers: Mapping[str, Any], texts: Iterable[Inputs]) -> list[str]:
    tables = {id(module.weight) for module in source.model.modules() if isinstance(module, torch.nn.Embedding)}
    heads = {name: layer for name, layer in layers.items() if id(getattr(layer, "weight", None)) in tables}
    losses = head_losses(source.model, heads, texts, precision) if heads else {}
    return [name for name, loss in losses.items() if loss > LARGEST_HEAD_LOSS]


def head_losses(
    model: Any, heads: Mapping[str, Any], texts: Iterable[Inputs], precision: str = "int4"
) -> dict[str, float]:
    """KL divergence in nats, the mean over tokens, of what heads give with weights in blocks from what they give."""
    how = PRECISIONS[precision]
    rounded = {name: torch.from_numpy(in_blocks(head.weight.detach().numpy(), how)) for name, head in heads.items()}

    def loss(name: str, head: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        moved = torch.nn.functional.linear(x, rounded[name], head.bias).log_softmax(-1)
        return (y.softmax(-1) * (y.log_softmax(-1) - moved)).sum(-1)

    return _means(model, heads, texts, loss)


Choice = Callable[[Exportable, Mapping[str, Any], Iterable[Inputs]], list[str]]
# precision → the layers that it keeps in blocks of 8 bits
CHOICES: dict[str, Choice] = {
    "int8": _noisy,
    **{name: partial(_coarse_heads, name) for name, how in PRECISIONS.items() if how.bits < 8},
}


def noise_of(model: Any, layers: Mapping[str, Any], texts: Iterable[Inputs]) -> dict[str, float]:
    """‖f(Q x) − f(x)‖² / ‖f(x)‖² of each layer f that is called, the mean over tokens x; Q rounds a text to bytes.

    A token counts 1 at most: more than all of it cannot be lost.
    """

    def noise(name: str, layer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        moved = (layer.forward(round_to_bytes(x)) - y).square().sum(-1)
        ratios: torch.Tensor = moved / y.square().sum(-1).clamp_min(torch.finfo(y.dtype).tiny)
        return ratios.clamp_max(1.0)

    return _means(model, layers, texts, noise)


Measure = Callable[[str, Any, torch.Tensor, torch.Tensor], torch.Tensor]


def _means(model: Any, layers: Mapping[str, Any], texts: Iterable[Inputs], measure: Measure) -> dict[str, float]:
    """The mean over tokens of what `measure` says of each layer that is called, from its input and output."""
    sums: dict[str, NDArray[np.float64]] = {}

    def add(name: str, layer: Any, taken: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        found = measure(name, layer, taken[0], y)
        sums[name] = sums.get(name, np.zeros(2)) + np.array([float(found.sum()), found.numel()])

    hooks = [layer.register_forward_hook(partial(add, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for inputs in texts:
                model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: float(total / max(count, 1)) for name, (total, count) in sums.items()}


def worst(noise: Mapping[str, float], largest: float) -> list[str]:
    """The layers with the most noise, without which the others have no more than `largest` together."""
    ordered = sorted(noise, key=lambda name: noise[name])
    left = np.cumsum([noise[name] for name in ordered])
    return ordered[int(np.searchsorted(left, largest, side="right")) :]


def round_to_bytes(x: torch.Tensor) -> torch.Tensor:
    """`x` in 8 bits as `DynamicQuantizeLinear` rounds it: from the smallest value to the largest, with 0 exact.

    Each text of a batch (the first axis) has a scale of its own, as it has on a device that gets it alone.
    """
    with torch.no_grad():
        lines = x.float().flatten(1) if x.ndim > 1 else x.float()[None]
        low, high = lines.amin(1, keepdim=True).clamp_max(0), lines.amax(1, keepdim=True).clamp_min(0)
        scale = torch.where(high > low, (high - low) / 255, 1.0)
        zero = (-low / scale).round()
        codes = (lines / scale).round_().add_(zero).clamp_(0, 255)  # in place: passes over memory are what costs
        return codes.sub_(zero).mul_(scale).to(x.dtype).reshape(x.shape)
