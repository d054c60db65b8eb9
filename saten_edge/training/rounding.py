"""Training with the bits that the exporter stores.

While a block of `rounded` runs, every weight that a bundle of that precision keeps in codes is rounded in each forward
pass just as `saten_exporters` rounds it, and so are the activations where a product takes 8-bit ones. Gradients pass
through the rounding as if it were not there (straight-through estimator, Bengio et al., arXiv:1308.3432), so the
training makes up for it. The parameters themselves keep all their digits; the export rounds them the same way.

Where several precisions take turns, step by step, one model serves bundles of each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from saten_edge.checkpoints.modules import (
    ResidualPart,
    SatenEmbedding,
    SatenHead,
    SatenLinear,
    SatenModule,
    scale_of,
)
from saten_edge.decomposition.residual import scatter
from saten_exporters.grids import keep_grids
from saten_exporters.quantize import INT8_LARGEST, PRECISIONS, SMALLEST_WEIGHT, Precision, in_blocks
from saten_exporters.tracing.mixed import round_to_bytes
from saten_runtime.errors import UsageError
from saten_runtime.options import words

__all__ = ["TakeTurns", "precisions", "round_activations", "round_along", "rounded"]

Forward = Callable[[Any, Precision, Tensor], Tensor]
# layout of a residual → the axis of its values along which they share a scale
SCALED = {"grouped": 2, "n:m": 1, "rows": 1, "ell": 1}
# Entries of a residual whose positions stand one by one have one scale per output, and 8 bits at every precision below
# 16; n:m has 4 where all else has. Activations have 8 at these.
ENTRIES = PRECISIONS["int8"]
SINGLE = {"csr": dict.fromkeys((name for name, how in PRECISIONS.items() if how.block), ENTRIES)}
# Factors are filled up with zeros to a multiple of so many ranks: products of fewer shapes, see `saten_edge.processor`.
RANKS = 16
_LOW = [name for name, how in PRECISIONS.items() if how.bits < 8]
SINGLE["n:m"] = SINGLE["csr"] | dict.fromkeys(_LOW, replace(PRECISIONS["int4"], block=0))


def precisions(text: str) -> tuple[str, ...]:
    """The precisions that a schedule names, separated by commas.

    Raises:
        UsageError: one that is not in `PRECISIONS`; the message lists those there are.
    """
    for name in words(text):
        if name not in PRECISIONS:
            raise UsageError(f"--precision {name}: there are {', '.join(PRECISIONS)}")
    return words(text)


class _Roundings:
    """The forward passes of a model's modules that round; `at` is the precision they round for."""

    def __init__(self, model: nn.Module, at: Precision) -> None:
        self.at = at
        self._patched: list[nn.Module] = []
        for module in model.modules():
            forward = next((forward for kind, forward in FORWARDS.items() if isinstance(module, kind)), None)
            if forward is not None:
                module.forward = self._of(module, forward)
                self._patched.append(module)

    def _of(self, module: nn.Module, forward: Forward) -> Callable[[Tensor], Tensor]:
        return lambda x: forward(module, self.at, x)

    def undo(self) -> None:
        """Give the modules their own forward passes back."""
        for module in self._patched:
            del module.forward


@contextlib.contextmanager
def rounded(model: nn.Module, *names: str) -> Iterator[Callable[[int], None]]:
    """Let `model` compute with what a bundle of the first precision stores, until the block ends; fp32 rounds nothing.

    turn(n), which the block is given, goes to the precision whose turn it is at step n.
    """
    hows = [PRECISIONS[name] for name in names]
    if all(how.bits >= 32 for how in hows):
        yield lambda step: None
        return
    roundings = _Roundings(model, hows[0])

    def turn(step: int) -> None:
        roundings.at = hows[step % len(hows)]

    try:
        yield turn
    finally:
        roundings.undo()


class TakeTurns(TrainerCallback):  # type: ignore[misc]
    """Goes to the precision of each step, and back to the first, which judges, between them."""

    def __init__(self, turn: Callable[[int], None]) -> None:
        self._turn = turn

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Whose turn it is follows from the number of the step alone, so that a resumed training takes the same."""
        self._turn(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every evaluation is one of the first."""
        self._turn(0)


def round_along(weight: Tensor, dim: int, how: Precision) -> Tensor:
    """`weight` as its codes say it: symmetric, one scale for each block along `dim`, or for all of it.

    Has the gradient of `weight` itself. Of nothing, as a factor of a train without ranks has it, nothing is rounded.
    """
    if how.bits >= 32 or not weight.numel():
        return weight
    if how.bits == 16:
        return _straight(weight, weight.detach().half().to(weight.dtype))
    if how.bits == 2:
        return _straight(weight, _two_bits(weight.detach(), dim, how))
    with torch.no_grad():
        lines = weight.movedim(dim, -1)
        width = lines.shape[-1]
        block = how.block or max(width, 1)
        padded = functional.pad(lines, (0, -width % block)).reshape(*lines.shape[:-1], -1, block)
        largest = INT8_LARGEST if how.bits == 8 else (1 << (how.bits - 1)) - 1
        peaks = padded.abs().amax(-1, keepdim=True)
        scales = _scales(peaks, largest)
        if how.bits == 4 and how.block:
            keep_grids(padded, peaks, scales, largest)
        codes = ((padded / scales).round() * scales).flatten(-2)[..., :width].movedim(-1, dim)
    return _straight(weight, codes)


def _two_bits(weight: Tensor, dim: int, how: Precision) -> Tensor:
    """By the exporter's own search for scales."""
    lines = weight.movedim(dim, -1)
    found = in_blocks(lines.reshape(-1, lines.shape[-1]).float().cpu().numpy(), how)
    return torch.from_numpy(found).to(weight).reshape(lines.shape).movedim(-1, dim)


def round_activations(x: Tensor) -> Tensor:
    """`x` in 8 bits as `DynamicQuantizeLinear` rounds it: from the smallest value to the largest, with 0 exact.

    Each text of a batch (the first axis) has a scale of its own, as it has on a device that gets it alone. Of nothing,
    as what a train without ranks passes on, there is nothing to round.
    """
    if not x.numel():
        return x
    return _straight(x, round_to_bytes(x))


class _Straight(torch.autograd.Function):
    """The second tensor, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, found: Tensor) -> Tensor:
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _straight(value: Tensor, found: Tensor) -> Tensor:
    """`found`, with the gradient of `value`."""
    rounded: Tensor = _Straight.apply(value, found)  # type: ignore[no-untyped-call]
    return rounded


def _scales(peak: Tensor, largest: int) -> Tensor:
    return torch.where(peak > 0, peak / largest, 1.0)


def _product(x: Tensor, matrix: Tensor, how: Precision) -> Tensor:
    """X (…, in) times a matrix (in, out) that is stored with one scale per output, or in blocks along the inputs."""
    return _taken(x, how) @ round_along(matrix, 0, how.for_inputs(len(matrix)))


def _taken(x: Tensor, how: Precision) -> Tensor:
    """What a product gets of x: products of 8 bits round it, all of a text alike or in blocks, others do not."""
    if how.bits != 8:
        return x
    return round_along(x, x.ndim - 1, how) if how.block else round_activations(x)


def _factors(layer: SatenModule) -> tuple[Tensor, Tensor]:
    return layer.train_part().factors()


def _residual(part: ResidualPart, how: Precision) -> Tensor:
    """S (in, out) with its values rounded in the layout that the exporter gives them."""
    layout = part.pattern.layout
    kept_as = SINGLE.get(layout, {}).get(how.name, how)
    by_output = layout == "csr"  # the others have an axis along which they share a scale
    values = _by_output(part, kept_as) if by_output else round_along(part.values, SCALED[layout], kept_as)
    return scatter(values, part.where(), part.shape)


def _by_output(part: ResidualPart, how: Precision) -> Tensor:
    """Values with one scale for all that belong to one output."""
    if how.bits >= 16:
        return round_along(part.values, part.values.ndim - 1, how)
    with torch.no_grad():
        outputs = (part.where() % part.shape[1]).reshape(-1)
        flat = part.values.detach().reshape(-1)
        peaks = torch.zeros(part.shape[1], dtype=flat.dtype, device=flat.device)
        peaks.scatter_reduce_(0, outputs, flat.abs(), "amax")
        scales = _scales(peaks, INT8_LARGEST)[outputs]
        codes = ((flat / scales).round() * scales).reshape(part.values.shape)
    return _straight(part.values, codes)


def _saten_linear(layer: SatenLinear, how: Precision, x: Tensor) -> Tensor:
    a, b = _factors(layer)
    left, right = round_along(a, 0, how.for_inputs(len(a))), round_along(b, 0, how.for_inputs(len(b)))
    spare = -len(b) % RANKS
    inner = _taken(x, how) @ functional.pad(left, (0, spare))
    y = functional.linear(_taken(inner, how), functional.pad(right, (0, 0, 0, spare)).T, layer.bias)
    if layer.residual.values.numel():
        # blocks are decoded before they are multiplied, so that x stays as it is
        read = x if layer.residual.pattern.layout == "grouped" else _taken(x, ENTRIES if how.bits < 16 else how)
        y = y + read @ _residual(layer.residual, how)
    return y


def _saten_embedding(layer: SatenEmbedding, how: Precision, ids: Tensor) -> Tensor:
    a, b = _factors(layer)
    y = _product(_looked_up(ids, a, layer, how), b, how)
    if layer.residual.values.numel():
        y = y + functional.embedding(ids, _residual(layer.residual, how), layer.padding_idx)
    return y * scale_of(layer)


def _saten_head(head: SatenHead, how: Precision, x: Tensor) -> Tensor:
    a, b = _factors(head.table)
    turned = round_along(b, 0, how.for_inputs(len(b))).T
    y = _taken(_taken(x, how) @ turned, how) @ round_along(a, 1, how).T
    if head.table.residual.values.numel():
        y = y + _taken(x, how) @ _residual(head.table.residual, how).T
    return y if head.bias is None else y + head.bias


def _linear(layer: nn.Linear, how: Precision, x: Tensor) -> Tensor:
    if layer.weight.numel() < SMALLEST_WEIGHT:
        return functional.linear(x, layer.weight, layer.bias)
    weight = round_along(layer.weight, 1, how.for_inputs(layer.weight.shape[1]))
    return functional.linear(_taken(x, how), weight, layer.bias)


def _turned_linear(layer: Any, how: Precision, x: Tensor) -> Tensor:
    """GPT-2's Conv1D, whose weight is (in, out)."""
    weight: Tensor = layer.weight
    y: Tensor = (x @ weight if weight.numel() < SMALLEST_WEIGHT else _product(x, weight, how)) + layer.bias
    return y


def _embedding(layer: nn.Embedding, how: Precision, ids: Tensor) -> Tensor:
    small = layer.weight.numel() < SMALLEST_WEIGHT
    rows = functional.embedding(ids, layer.weight, layer.padding_idx)
    return (rows if small else round_along(rows, rows.ndim - 1, how)) * scale_of(layer)


def _looked_up(ids: Tensor, table: Tensor, layer: Any, how: Precision) -> Tensor:
    """Rows of a table, rounded. Rows share no scale, so only those that are looked up need it."""
    rows = functional.embedding(ids, table, layer.padding_idx)
    return round_along(rows, rows.ndim - 1, how)


# kind of module → what it computes with rounded weights
FORWARDS: dict[type, Forward] = {
    SatenLinear: _saten_linear,
    SatenEmbedding: _saten_embedding,
    SatenHead: _saten_head,
    nn.Linear: _linear,
    Conv1D: _turned_linear,
    nn.Embedding: _embedding,
}
