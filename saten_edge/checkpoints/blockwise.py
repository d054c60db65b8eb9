"""Second moments of a model larger than memory: one block of it runs at a time.

What leaves a block waits in a file for the next one, batch by batch. So every layer sees what it sees in the whole
model, to the last bit, and no more of the model is in memory than one layer in float32.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from saten_edge.checkpoints.architectures import architecture
from saten_edge.checkpoints.mapped import release
from saten_edge.decomposition.calibration import Enough, second_moments
from saten_edge.ranks import ALONE, Ranks

__all__ = ["BlockMoments"]

Batches = Callable[[], Iterable[dict[str, Tensor]]]
LARGE_MODULES = (nn.Linear, Conv1D, nn.Embedding)


class BlockMoments(Mapping[str, Tensor]):
    """`second_moments` of a model that is mapped from its files, of one block at a time.

    Layers are to be asked for in the order of `layers`, which is that of the blocks; those of a block that is over are
    gone, and may be replaced in the model. What lies outside the blocks and is not a matrix is widened to float32.

    batches: gives all of them anew for each block. folder: where what leaves a block waits. ranks: each with batches of
    its own; the leader asks, and the others `follow`. bf16: as `second_moments`.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[str],
        batches: Batches,
        tied: Sequence[str],
        folder: Path,
        ranks: Ranks = ALONE,
        *,
        bf16: bool = False,
    ) -> None:
        row = architecture(model.config.model_type)
        prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        self._model, self._batches, self._tied, self._folder, self._ranks = model, batches, tied, folder, ranks
        self._blocks: Sequence[Any] = model.base_model.get_submodule(row.blocks)
        self._tables = [f"{prefix}{table}" for table in row.tables]
        self._layers = {name: _number(name, f"{prefix}{row.blocks}.") for name in layers}
        self._found: dict[str, Tensor] = {}
        self._batch, self._next, self._is_tuple, self._bf16 = 0, -1, False, bf16
        for module in model.modules():
            if not isinstance(module, LARGE_MODULES):
                for tensor in itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False)):
                    tensor.data = tensor.data.float() if tensor.is_floating_point() else tensor.data

    def __getitem__(self, name: str) -> Tensor:
        number = self._layers[name]
        while name not in self._found and self._next <= len(self._blocks):
            self._ranks.lead(self._next)
            self._run(self._next)
            self._next += 1
        if name not in self._found:
            raise ValueError(f"{name}: block {number} is over")
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def follow(self) -> None:
        """Add to the leader's sums, one block after the other as it asks for them, until it is done."""
        for number in self._ranks.follow():
            self._run(number)

    def _run(self, number: int) -> None:
        """All batches through what is before the blocks (-1), one block, or what is behind them."""
        inside = 0 <= number < len(self._blocks)
        outside = {name: sum_ for name, sum_ in self._found.items() if self._layers[name] is None}
        wanted = number if inside else None
        names = [name for name, block in self._layers.items() if block == wanted and name not in outside]
        with contextlib.ExitStack() as stack:
            for place, block in enumerate(self._blocks):
                stack.enter_context(_instead(block, self._part(place, number, block.forward)))
            blank = {name for name in self._tables if number >= 0}  # they may have been replaced by then
            for name, module in self._model.named_modules():
                if name in blank or isinstance(module, LARGE_MODULES):
                    stack.enter_context(_instead(module, _blank(module) if name in blank else _widened(module)))
            found = second_moments(self._model, names, self._counted(), self._tied, self._ranks.summed, bf16=self._bf16)
        self._found = {**outside, **found}
        for parameter in self._blocks[number].parameters() if inside else self._model.parameters():
            release(parameter)

    def _part(self, place: int, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What stands for the block at a place while block `number` runs."""

        def reached(hidden_states: Tensor, *_: Any, **__: Any) -> None:
            np.save(self._file, hidden_states.float().numpy())
            raise Enough

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = forward(torch.from_numpy(np.load(self._file)), *args, **kwargs)
            self._is_tuple = isinstance(output, tuple)
            np.save(self._file, (output[0] if self._is_tuple else output).float().numpy())
            return output

        def passed(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            last = place == len(self._blocks) - 1
            given = torch.from_numpy(np.load(self._file)) if last and number > place else hidden_states
            return (given,) if self._is_tuple else given

        return reached if number < 0 else run if place == number else passed

    @property
    def _file(self) -> Path:
        return self._folder / f"batch-{self._batch}.npy"

    def _counted(self) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(self._batches()):
            self._batch = number
            yield batch


def _number(name: str, prefix: str) -> int | None:
    """Of the block that a layer is in; None outside of them."""
    return int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else None


@contextlib.contextmanager
def _instead(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block a module computes something else; its hooks and attributes stay."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _widened(module: nn.Module) -> Callable[..., Any]:
    """A module's own computation, in float32."""
    forward = module.forward

    def compute(*inputs: Any) -> Any:
        stored = dict(module.named_parameters(recurse=False))
        for name, parameter in stored.items():
            setattr(module, name, nn.Parameter(parameter.detach().float(), requires_grad=False))
        try:
            return forward(*inputs)
        finally:
            for name, parameter in stored.items():
                setattr(module, name, parameter)

    return compute


def _blank(table: Any) -> Callable[[Tensor], Tensor]:
    """What a table gives where nobody looks at it."""
    return lambda ids: torch.zeros(*ids.shape, table.embedding_dim)
