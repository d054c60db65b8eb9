"""How far each block of a model turns what goes through it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Angles"]


class Angles:
    """t = arccos(mean cosine of a token before and behind a block) / π, from 0 to 1; FLAT-LLM's importance of a block.

    A token that is zero before or behind it counts as turned by a right angle.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self._blocks = list(blocks)
        self._sums, self._tokens = [0.0] * len(self._blocks), [0] * len(self._blocks)
        self._mask: Tensor | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """What the model computes meanwhile counts."""
        hooks = [
            block.register_forward_hook(lambda _, given, named, made, at=place: self._see(at, given, named, made),
                                        with_kwargs=True)
            for place, block in enumerate(self._blocks)
        ]  # fmt: skip
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def batches(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The same batches; their padding is left out."""
        for batch in batches:
            self._mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
            yield batch

    def found(self) -> list[float]:
        """T of each block.

        Raises:
            ValueError: nothing was computed.
        """
        if not all(self._tokens):
            raise ValueError("no token went through the blocks")
        cosines = (total / count for total, count in zip(self._sums, self._tokens, strict=True))
        return [math.acos(min(1.0, max(-1.0, cosine))) / math.pi for cosine in cosines]

    def _see(self, place: int, given: tuple[Any, ...], named: Mapping[str, Any], made: Any) -> None:
        before = given[0] if given else named["hidden_states"]
        behind = made[0] if isinstance(made, tuple) else made
        mask = self._mask
        if mask is not None and before.shape[:2] == mask.shape:
            before, behind = before[mask], behind[mask]
        cosines = torch.nn.functional.cosine_similarity(before.double(), behind.double(), dim=-1)
        self._sums[place] += float(cosines.sum())
        self._tokens[place] += cosines.numel()
