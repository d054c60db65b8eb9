"""Layers whose activations one scale in 8 bits does not fit: at int8 these are stored in blocks.

A product of int8 rounds all activations of a text by one scale. In language models the first token and a few channels
are a hundred times as large as all others, which then keep a few of 256 steps. In blocks each 64 activations of a token
have a scale of their own.

What that costs is measured per layer on text: the squared change of its output in units of its size. The worst layers
are taken until the sum over the others is no more than `LARGEST_NOISE`. Over all layers it is 0.53 for SmolLM2-135M,
whose distributions of the next token then diverge by 0.52 nats, and 0.03 for MiniLM, which loses nothing that can be
seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from saten_exporters.exportable import Exportable
from saten_exporters.quantize import SMALLEST_WEIGHT

__all__ = ["ALIKE", "BLOCKS", "Mixed", "mixed_layers", "noise_of", "round_to_bytes", "worst"]

BLOCKS = "int8-block"
# Twice what a sound encoder has. Less brings nothing: SmolLM2-135M loses 0.163 nats with 0.05 left in 100 layers, and
# 0.161 with 0.005 in 19.
LARGEST_NOISE = 0.05

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Mixed:
    """Layers stored in blocks at int8. layers: their names. columns: what the weights of their first output hash to.

    A trace gives matrices other names, and packs those that read the same input into one.
    """

    layers: tuple[str, ...] = ()
    columns: frozenset[bytes] = field(default_factory=frozenset)

    def precision_of(self, layer: str, precision: str) -> str:
        """What a compressed layer is stored at."""
        return BLOCKS if layer in self.layers else precision

    def precision_of_matrix(self, matrix: NDArray[np.float32], precision: str) -> str:
        """What a dense matrix (in, out) is stored at."""
        found = self.columns and any(_digest(column) in self.columns for column in matrix.T)
        return BLOCKS if found else precision


ALIKE = Mixed()
"""Every layer at the precision of the bundle."""


def mixed_layers(source: Exportable, precision: str, texts: Iterable[Inputs]) -> Mixed:
    """The layers that int8 keeps in blocks, by what the model computes of texts, each alone; none at other precisions.

    Runs the model on every text, with two products in place of one.
    """
    if precision != "int8":
        return ALIKE
    layers = _layers(source)
    chosen = worst(noise_of(source.model, layers, texts), LARGEST_NOISE)
    dense = (_matrix(layers[name]) for name in chosen if hasattr(layers[name], "weight"))
    return Mixed(tuple(chosen), frozenset(_digest(matrix[:, 0]) for matrix in dense))


def noise_of(model: Any, layers: Mapping[str, Any], texts: Iterable[Inputs]) -> dict[str, float]:
    """‖f(Q x) − f(x)‖² / ‖f(x)‖² of every layer f that is called, summed over texts, Q rounding a text to bytes."""
    sums: dict[str, NDArray[np.float64]] = {}

    def add(name: str, layer: Any, taken: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        rounded = layer.forward(round_to_bytes(taken[0]))
        found = np.array([float(((rounded - y) ** 2).sum()), float((y**2).sum())])
        sums[name] = sums.get(name, np.zeros(2)) + found

    hooks = [layer.register_forward_hook(partial(add, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for inputs in texts:
                model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    tiny = float(np.finfo(np.float64).tiny)
    return {name: float(error / max(size, tiny)) for name, (error, size) in sums.items()}


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
        codes = ((lines / scale).round() + zero).clamp(0, 255)
        return ((codes - zero) * scale).to(x.dtype).reshape(x.shape)


def _layers(source: Exportable) -> dict[str, Any]:
    """Linear layers that int8 stores, by name; a head that shares its table stays what the table is."""
    tables = {id(module.weight) for module in source.model.modules() if isinstance(module, torch.nn.Embedding)}
    linear = {name for name, parts in source.layer_parts().items() if parts.kind == "linear"}
    return {
        name: module
        for name, module in source.model.named_modules()
        if name in linear
        or (
            isinstance(module, torch.nn.Linear | Conv1D)
            and id(module.weight) not in tables
            and module.weight.numel() >= SMALLEST_WEIGHT
        )
    }


def _matrix(layer: Any) -> NDArray[np.float32]:
    """(in, out)."""
    weight = layer.weight.detach().numpy()
    return np.asarray(weight if isinstance(layer, Conv1D) else weight.T)


def _digest(column: NDArray[np.float32]) -> bytes:
    return hashlib.sha256(column.tobytes()).digest()
