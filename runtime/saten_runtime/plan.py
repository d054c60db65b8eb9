"""What a benchmark measures, and in which order."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saten_runtime.errors import UsageError
from saten_runtime.session import MEMORY_MODES

__all__ = ["Key", "Plan", "Setup", "Size", "turns"]


@dataclass(frozen=True)
class Setup:
    """What one worker process is started with."""

    threads: int
    memory_mode: str


@dataclass(frozen=True)
class Size:
    """Shape of the input."""

    batch: int
    tokens: int


@dataclass(frozen=True)
class Key:
    """Which cell: one bundle at one setup and size."""

    bundle: str
    setup: Setup
    size: Size

    def __str__(self) -> str:
        setting = f"{self.setup.threads} threads, {self.setup.memory_mode}, batch {self.size.batch}"
        return f"{self.bundle} ({setting}, {self.size.tokens} tokens)"

    def columns(self) -> dict[str, Any]:
        """The columns of a table that say which cell this is."""
        return {"bundle": self.bundle, **dataclasses.asdict(self.setup), **dataclasses.asdict(self.size)}


@dataclass(frozen=True)
class Plan:
    """What to measure: every combination of the lists.

    rounds: how often each bundle is started afresh and measured; min_time_s: of measuring per cell,
    over all rounds.

    Raises:
        UsageError: an empty list, a repeated or impossible value.
    """

    threads: Sequence[int] = (1,)
    batches: Sequence[int] = (1,)
    tokens: Sequence[int] = (32, 128)
    memory_modes: Sequence[str] = ("fast",)
    min_time_s: float = 1.0
    rounds: int = 10

    def __post_init__(self) -> None:
        for name, values in (("threads", self.threads), ("batch", self.batches), ("tokens", self.tokens)):
            if not values or min(values) < 1 or len(set(values)) != len(values):
                raise UsageError(f"{name} {list(values)}: expected different numbers from 1 on")
        if not self.memory_modes or not set(self.memory_modes) <= set(MEMORY_MODES):
            raise UsageError(f"memory {list(self.memory_modes)}: there are {', '.join(MEMORY_MODES)}")
        if self.rounds < 1:
            raise UsageError(f"rounds {self.rounds}: must be at least 1")
        if not 0 <= self.min_time_s < math.inf:
            raise UsageError(f"minimum time {self.min_time_s} s: must be 0 or more")

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        values = dataclasses.asdict(self).items()
        return {name: list(value) if isinstance(value, Sequence) else value for name, value in values}

    @property
    def setups(self) -> list[Setup]:
        """Every setup."""
        return [Setup(*pair) for pair in itertools.product(self.threads, self.memory_modes)]

    @property
    def sizes(self) -> list[Size]:
        """Every input size, smallest first."""
        sizes = (Size(*pair) for pair in itertools.product(self.batches, self.tokens))
        return sorted(sizes, key=lambda size: size.batch * size.tokens)


def turns(names: Sequence[str], index: int) -> list[str]:
    """Who runs in which order in round `index`: rotated every second round, reversed in between."""
    shift = index // 2 % len(names)
    rotated = [*names[shift:], *names[:shift]]
    return rotated[::-1] if index % 2 else rotated
