"""Masks that move while a model is trained, as in RigL (Evci et al., "Rigging the Lottery", ICML 2020).

Every so often the stored entries of least magnitude give their places to those absent ones at which the loss
has its largest gradient. The new ones start at zero. As many are stored as before, in tensors of the same shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers import TrainerCallback

from saten_edge.checkpoints.modules import SatenModule, saten_layers
from saten_edge.decomposition.residual import Residual, scatter
from saten_runtime.errors import UsageError

__all__ = ["Reselect", "exchange"]

# Steps between exchanges, and the share of the entries that the first one moves; later ones move less, by a cosine.
EVERY = 20
FIRST_SHARE = 0.3


class Reselect(TrainerCallback):  # type: ignore[misc]
    """Exchanges entries of every residual each `EVERY` steps before step `until`."""

    def __init__(self, until: int) -> None:
        self._until = until
        self._gradients: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """Tell the layers that a checkpoint that was read may have other indices."""
        for layer in saten_layers(model).values():
            layer.residual.replace(Residual(layer.residual.values.detach(), layer.residual.index_tensors()))

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """The same for the best checkpoint, which early stopping goes back to."""
        self.on_train_begin(args, state, control, model)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """Listen to the gradients of the dense matrices in a step that ends with an exchange."""
        if state.global_step + 1 < self._until and (state.global_step + 1) % EVERY == 0:
            self._hooks = [
                layer.register_forward_hook(_listener(self._gradients, name))
                for name, layer in saten_layers(model).items()
                if layer.residual.values.numel()
            ]

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: torch.optim.Optimizer, **_: Any
    ) -> None:
        """Exchange, where the step was listened to."""
        for hook in self._hooks:
            hook.remove()
        share = FIRST_SHARE / 2 * (1 + math.cos(math.pi * min(1.0, state.global_step / self._until)))
        layers, average = saten_layers(model), partial(reduce, reduction="mean")
        for name, gradient in self._gradients.items():
            values = layers[name].residual.values
            moments = [tensor for tensor in optimizer.state[values].values() if tensor.shape == values.shape]
            exchange(name, layers[name], average(gradient), share, moments)
        self._hooks, self._gradients = [], {}


def exchange(name: str, layer: SatenModule, gradient: Tensor, share: float, moments: list[Tensor]) -> None:
    """Move `share` of a layer's stored entries to where `gradient` (in, out) of its matrix is largest.

    moments: the optimizer's, one for each value; they move with the values and start at zero too.

    Raises:
        UsageError: the pattern stores a moved mask in tensors of other shapes.
    """
    part = layer.residual
    pattern, shape, values = part.pattern, part.shape, part.values.detach()
    positions = pattern.positions(part.index_tensors(), shape)
    energy = scatter(values.float().square(), positions, shape)
    stay = pattern.positions(pattern.select(energy, round(values.numel() * (1 - share))), shape).reshape(-1)
    # those that stay come first, then the others by their gradient
    score = gradient.float().square()
    score = score / score.max().clamp_min(torch.finfo(score.dtype).tiny)
    score.view(-1)[stay] += 2 * layer.spec.shape[1]  # more than the scores of a whole block add up to
    indices = pattern.select(score, values.numel())
    if any(indices[key].shape != tensor.shape for key, tensor in part.index_tensors().items()):
        raise UsageError(
            f"{name}: a moved mask of pattern {layer.spec.pattern!r} does not fit its stored tensors; "
            "leave --reselect-until out"
        )
    kept = torch.zeros(math.prod(shape), dtype=torch.bool, device=values.device)
    kept[stay] = True
    moved = pattern.positions(indices, shape)

    def carried(tensor: Tensor) -> Tensor:
        return torch.where(kept[moved], scatter(tensor, positions, shape).reshape(-1)[moved], 0)

    for moment in moments:
        moment.copy_(carried(moment))
    part.replace(Residual(carried(values), indices))


def _listener(gradients: dict[str, Tensor], name: str) -> Callable[[SatenModule, tuple[Tensor, ...], Tensor], None]:
    """A forward hook that adds up dL/dM (in, out) of a layer once the gradient of its output is known."""

    def forward(layer: SatenModule, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach()

        def backward(gradient: Tensor) -> None:
            rows = gradient.reshape(-1, gradient.shape[-1]).float()  # (n, out)
            if x.is_floating_point():
                found = x.reshape(-1, x.shape[-1]).float().T @ rows
            else:
                found = rows.new_zeros(layer.spec.shape).index_add(0, x.reshape(-1), rows)
            gradients[name] = gradients.get(name, 0) + found

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    return forward
