"""What a benchmark measures, and in which order."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saten_runtime.errors import UsageError
from saten_runtime.run.session import MEMORY_MODES

__all__ = ["PHASES", "Key", "Plan", "Setup", "Size", "turns"]

# What one sample is: a run of the graph; reading a prompt up to its first new token; generating.
PHASES = ("run", "prompt", "generate")
_MOST_ROUNDS = 1000
_LONGEST_S = 24 * 3600.0


@dataclass(frozen=True)
class Setup:
    """What one worker process is started with."""

    threads: int
    memory_mode: str


@dataclass(frozen=True)
class Size:
    """What one sample does: `batch` sequences of `tokens` tokens, after `depth` that the cache holds already.

    phase: of `PHASES`; a picture counts as one token.
    """

    batch: int
    tokens: int
    phase: str = "run"
    depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench has it for decoders: pp128, tg64, tg64 @ d512."""
        if self.phase == "run":
            return f"{self.tokens} tokens"
        after = f" @ d{self.depth}" if self.depth else ""
        return f"{'pp' if self.phase == 'prompt' else 'tg'}{self.tokens}{after}"

    @property
    def longest(self) -> int:
        """Tokens a sequence has in the end."""
        return self.depth + self.tokens


@dataclass(frozen=True)
class Key:
    """Which cell: one bundle at one setup and size."""

    bundle: str
    setup: Setup
    size: Size

    def __str__(self) -> str:
        setting = f"{self.setup.threads} threads, {self.setup.memory_mode}, batch {self.size.batch}"
        return f"{self.bundle} ({setting}, {self.size.name})"

    def columns(self) -> dict[str, Any]:
        """The columns of a table that say which cell this is."""
        return {"bundle": self.bundle, **dataclasses.asdict(self.setup), **dataclasses.asdict(self.size)}


@dataclass(frozen=True)
class Plan:
    """What to measure: every combination of the lists.

    generate, depths: for decoders only; tokens: not for image models. rounds: how often each bundle
    is started afresh and measured; min_time_s: of measuring per cell, over all rounds; timeout_s:
    what a worker may take for one request beyond that. floor: measure the rates of the machine too.

    Raises:
        UsageError: an empty list, a repeated or impossible value.
    """

    threads: Sequence[int] = (1,)
    batches: Sequence[int] = (1,)
    tokens: Sequence[int] = (32, 128)
    memory_modes: Sequence[str] = ("fast",)
    min_time_s: float = 1.0
    rounds: int = 10
    generate: Sequence[int] = (64,)
    depths: Sequence[int] = (0,)
    timeout_s: float = 600.0
    floor: bool = True

    def __post_init__(self) -> None:
        lists = (("threads", self.threads), ("batch", self.batches), ("tokens", self.tokens), ("gen", self.generate))
        for name, values in lists:
            if not values or min(values) < 1 or len(set(values)) != len(values):
                raise UsageError(f"{name} {list(values)}: expected different numbers from 1 on")
        if not self.depths or min(self.depths) < 0 or len(set(self.depths)) != len(self.depths):
            raise UsageError(f"depth {list(self.depths)}: expected different numbers from 0 on")
        if not self.memory_modes or not set(self.memory_modes) <= set(MEMORY_MODES):
            raise UsageError(f"memory {list(self.memory_modes)}: there are {', '.join(MEMORY_MODES)}")
        if not 1 <= self.rounds <= _MOST_ROUNDS:
            raise UsageError(f"rounds {self.rounds}: must be at least 1 and at most {_MOST_ROUNDS}")
        if not 0 <= self.min_time_s <= _LONGEST_S:
            raise UsageError(f"minimum time {self.min_time_s} s: must be 0 or more, and at most a day")
        if not 0 < self.timeout_s < math.inf:
            raise UsageError(f"timeout {self.timeout_s} s: must be above 0")

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        values = dataclasses.asdict(self).items()
        return {name: list(value) if isinstance(value, Sequence) else value for name, value in values}

    @property
    def setups(self) -> list[Setup]:
        """Every setup."""
        return [Setup(*pair) for pair in itertools.product(self.threads, self.memory_modes)]

    def sizes(self, task: str) -> list[Size]:
        """Every size for bundles of a task, smallest first."""
        if task == "image-classification":
            sizes = [Size(batch, 1) for batch in self.batches]
        elif task == "text-generation":
            phases = [("prompt", tokens) for tokens in self.tokens] + [("generate", made) for made in self.generate]
            sizes = [
                Size(batch, tokens, phase, depth)
                for batch, (phase, tokens), depth in itertools.product(self.batches, phases, self.depths)
            ]
        else:
            sizes = [Size(*pair) for pair in itertools.product(self.batches, self.tokens)]
        return sorted(sizes, key=lambda size: (size.phase != "prompt", size.batch * size.longest))


def turns(names: Sequence[str], index: int) -> list[str]:
    """Who runs in which order in round `index`: rotated every second round, reversed in between."""
    shift = index // 2 % len(names)
    rotated = [*names[shift:], *names[:shift]]
    return rotated[::-1] if index % 2 else rotated
