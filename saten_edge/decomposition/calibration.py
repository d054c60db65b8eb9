"""What calibration texts tell of each layer: the second moments of its input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saten_runtime.errors import DataError

__all__ = ["Enough", "second_moments"]

# Added to every token's count: a token never seen still matters half as much as one seen once.
UNSEEN_TOKEN_COUNT = 0.5
# Of a matrix's rows, see `_upper`.
BLOCKS = 4


class Enough(Exception):
    """Raised by a module to end a forward pass early: every layer that is asked for has seen its input."""


def second_moments(
    model: nn.Module,
    layers: Iterable[str],
    batches: Iterable[dict[str, Tensor]],
    tied: Collection[str] = (),
    summed: Callable[[Sequence[Tensor], int], int] = lambda sums, rows: rows,
    *,
    bf16: bool = False,
) -> dict[str, Tensor]:
    """Σ = E[xᵀx] of each layer's input: (in, in) float32 for a linear, the diagonal (rows,) float64 for an embedding.

    float32 halves what a large model's take, and a batch's part of the sum has no more digits.

    batches: model inputs, padded; padding is left out of the mean. tied: tables that serve as output layer too,
    where every row is used for every token; half of their weight is spread evenly over the rows. summed: adds what
    others saw to the sums, in place, and to the number of rows. bf16: the model multiplies in bfloat16; sums stay in
    float32.

    Raises:
        DataError: there is no batch.
    """
    sums: dict[str, Tensor] = {}
    mask: list[Tensor | None] = []
    last: list[tuple[Tensor, str]] = []
    names = list(layers)
    hooks = [
        module.register_forward_pre_hook(_accumulator(name, module, sums, mask, last))
        for name, module in ((name, model.get_submodule(name)) for name in names)
    ]
    asked = _without_head(model, names)
    rows = 0
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for batch in batches:
                mask[:] = [batch["attention_mask"].bool() if "attention_mask" in batch else None]
                rows += len(next(iter(batch.values()))) if mask[0] is None else int(mask[0].sum())
                with contextlib.suppress(Enough):
                    asked(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not rows:
        raise DataError("no text to calibrate on; --calibration needs one that makes a token, at least")
    own = list({id(total): total for total in sums.values()}.values())
    rows = summed(own, rows)
    for total in own:
        total.add_(UNSEEN_TOKEN_COUNT if total.ndim == 1 else 0).div_(rows)
        for place, rest in _upper(len(total)) if total.ndim == 2 else ():
            total[rest, place] = total[place, rest].T.clone()
    return {name: (value + value.mean()) / 2 if name in tied else value for name, value in sums.items()}


def _without_head(model: Any, layers: Collection[str]) -> Any:
    """The base model, which makes no logits, where it has all the layers; else the model itself."""
    prefix = getattr(model, "base_model_prefix", "")
    inside = hasattr(model, prefix) and all(name.startswith(f"{prefix}.") for name in layers)
    return getattr(model, prefix) if prefix and inside else model


def _accumulator(
    name: str, module: Any, sums: dict[str, Tensor], mask: list[Tensor | None], last: list[tuple[Tensor, str]]
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """last: the input that a linear layer got, and its name: layers that read one input share one sum."""

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = _without_padding(inputs[0], mask[0])
        start = torch.zeros(module.num_embeddings, dtype=torch.float64)
        sums.setdefault(name, start).add_(torch.bincount(x.reshape(-1), minlength=module.num_embeddings))

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if last and last[0][0] is inputs[0]:
            sums[name] = sums[last[0][1]]
            return
        last[:] = [(inputs[0], name)]
        x = _without_padding(inputs[0], mask[0])
        seen, width = x.reshape(-1, x.shape[-1]).float(), x.shape[-1]
        if name not in sums:
            sums[name] = torch.zeros(width, width)
        for rows, columns in _upper(width):
            sums[name][rows, columns].addmm_(seen[:, rows].T, seen[:, columns])

    return count if isinstance(module, nn.Embedding) else add


def _upper(width: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of a symmetric matrix on and above its diagonal, as (rows, columns): five eighths of it.

    NumPy would compute one half (BLAS: syrk), but its threads and torch's get in each other's way: on two cores, both
    together took twice as long as on one.
    """
    step = -(-width // BLOCKS)
    for start in range(0, width, step):
        yield slice(start, start + step), slice(start, width)


def _without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens of x (texts, tokens, …) that the mask keeps; all of it where x has another shape.

    A position table is asked once for all texts, a head sees one token of each, an image has no padding.
    """
    return x[mask] if mask is not None and x.shape[:2] == mask.shape else x
