"""What a benchmark measures, and in which order."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_runtime.errors import UsageError
from saten_runtime.options import check_ranges, numbers, option, words
from saten_runtime.records.reader import Count, Natural
from saten_runtime.run.memory_modes import MEMORY_MODES
from saten_runtime.vocabulary.tasks import IMAGES, PAIRS, PROMPTS, TEXTS

__all__ = ["PHASES", "BenchFiles", "Key", "Plan", "Setup", "Size", "turns"]

# What one sample is: a run of the graph; reading a prompt up to its first new token; generating.
PHASES = ("run", "prompt", "generate")
_MOST_ROUNDS = 1000
_LONGEST_S = 24 * 3600.0


@dataclass(frozen=True)
class Setup:
    """What one worker process is started with."""

    threads: Natural
    memory_mode: str


@dataclass(frozen=True)
class Size:
    """What one sample does: `batch` sequences of `tokens` tokens, after `depth` that the cache holds already.

    phase: of `PHASES`; a picture counts as one token.
    """

    batch: Natural
    tokens: Natural
    phase: str = "run"
    depth: Count = 0

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

    threads: Sequence[int] = option((1,), "Numbers of threads", "--threads", "-t", read=numbers, low=1, metavar="LIST")
    batches: Sequence[int] = option((1,), "Sequences per batch", "--batch", "-b", read=numbers, low=1, metavar="LIST")
    tokens: Sequence[int] = option(
        (32, 128), "Tokens per sequence", "--tokens", "-s", read=numbers, low=1, metavar="LIST"
    )
    memory_modes: Sequence[str] = option(
        ("fast",), f"Memory modes, of {', '.join(MEMORY_MODES)}", "--memory", read=words, metavar="LIST"
    )
    min_time_s: float = option(
        1.0, "Seconds of measuring per cell", "--min-time", low=0, high=_LONGEST_S, metavar="SECONDS"
    )
    rounds: int = option(10, "Times that each bundle is started and measured", low=1, high=_MOST_ROUNDS)
    generate: Sequence[int] = option(
        (64,), "Tokens that a decoder generates", "--generate", "-g", read=numbers, low=1, metavar="LIST"
    )
    depths: Sequence[int] = option(
        (0,), "Tokens that a decoder has read before", "--depth", "-d", read=numbers, low=0, metavar="LIST"
    )
    timeout_s: float = option(
        600.0, "Seconds that one request may take beyond --min-time", "--timeout", metavar="SECONDS"
    )
    floor: bool = option(True, "Do not measure the rates of the machine", "--no-floor", const=False)

    def __post_init__(self) -> None:
        if not self.memory_modes or not set(self.memory_modes) <= set(MEMORY_MODES):
            raise UsageError(f"memory {list(self.memory_modes)}: there are {', '.join(MEMORY_MODES)}")
        check_ranges(self)
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

    def sizes(self, items: str) -> list[Size]:
        """Every size for bundles that take such items, a name in `ITEMS`; smallest first."""
        sizes = _SIZES[items](self)
        return sorted(sizes, key=lambda size: (size.phase != "prompt", size.batch * size.longest))


@dataclass(frozen=True)
class BenchFiles:
    """What a benchmark compares with and writes; the keywords of `bench`."""

    baseline: Path | None = option(None, "Bundle that the others are compared with", metavar="BUNDLE")
    output: Path | None = option(None, "Folder for samples.jsonl and bench.json", "--output", "-o", metavar="FOLDER")
    resume: bool = option(False, "Measure only what the output folder lacks", const=True)
    overwrite: bool = option(False, "Replace the output if it exists", const=True)


def _of_texts(plan: Plan) -> list[Size]:
    return [Size(*pair) for pair in itertools.product(plan.batches, plan.tokens)]


def _of_prompts(plan: Plan) -> list[Size]:
    phases = [("prompt", tokens) for tokens in plan.tokens] + [("generate", made) for made in plan.generate]
    return [
        Size(batch, tokens, phase, depth)
        for batch, (phase, tokens), depth in itertools.product(plan.batches, phases, plan.depths)
    ]


def _of_images(plan: Plan) -> list[Size]:
    return [Size(batch, 1) for batch in plan.batches]


_SIZES: dict[str, Callable[[Plan], list[Size]]] = {
    TEXTS: _of_texts,
    PAIRS: _of_texts,
    PROMPTS: _of_prompts,
    IMAGES: _of_images,
}


def turns(names: Sequence[str], index: int) -> list[str]:
    """Who runs in which order in round `index`: rotated every second round, reversed in between."""
    shift = index // 2 % len(names)
    rotated = [*names[shift:], *names[:shift]]
    return rotated[::-1] if index % 2 else rotated
