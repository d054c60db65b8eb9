"""Turns of several engines, round by round, each in a fresh process."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saten_runtime.child import Child
from saten_runtime.errors import SatenError
from saten_runtime.memory import Memory, Watch
from saten_runtime.plan import turns
from saten_runtime.stats import paired_ratio

__all__ = ["Contender", "Measured", "Turns", "measure", "worker"]

FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True)
class Contender:
    """A row: an engine and what it runs. bytes: on disk, of what the engine needs. worker: the module that runs it."""

    name: str
    engine: str
    artifact: Path
    bytes: int
    environment: dict[str, str] = field(default_factory=dict)
    worker: str = "peers.worker"


@dataclass(frozen=True)
class Turns:
    """tokens, threads: lists, every pair is a column. min_time_s: per cell, over all rounds."""

    tokens: Sequence[int]
    threads: Sequence[int]
    rounds: int
    min_time_s: float


@dataclass
class Measured:
    """Of one row: samples in ns by (tokens, threads) and round, readings at one thread, or why it failed.

    first_ns: from the start of loading to the first answer, where the worker tells.
    """

    samples: dict[tuple[int, int], list[list[int]]] = field(default_factory=lambda: defaultdict(list))
    load_ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    peak_anon_bytes: int | None = None
    failed: str | None = None

    def median_ms(self, tokens: int, threads: int) -> float | None:
        """The median over rounds of the rounds' medians."""
        rounds = self.samples.get((tokens, threads))
        return statistics.median(statistics.median(samples) for samples in rounds) / 1e6 if rounds else None

    def ratio(self, other: Measured, tokens: int, threads: int) -> list[float] | None:
        """How many times the other's time this one takes, with the interval's ends."""
        pair = [row.samples.get((tokens, threads)) for row in (self, other)]
        if not pair[0] or not pair[1] or len(pair[0]) != len(pair[1]):
            return None
        found = paired_ratio(*pair)
        return [found.value, found.low, found.high]


@contextlib.contextmanager
def worker(contender: Contender, threads: int) -> Any:
    """A started process with the contender loaded: (child, nanoseconds of loading)."""
    settings = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": _path(), **contender.environment}
    with Child(f"from {contender.worker} import main; main()", settings) as child:
        answer = child.ask("load", engine=contender.engine, artifact=str(contender.artifact), threads=threads)
        yield child, answer["load_ns"]


def measure(contenders: Sequence[Contender], plan: Turns, step: Callable[[str], None]) -> dict[str, Measured]:
    """Memory of each contender alone, then the rounds. A contender that fails says so, and the rest goes on."""
    table = {contender.name: Measured() for contender in contenders}
    named = {contender.name: contender for contender in contenders}
    for name, contender in named.items():
        step(f"{name}: memory")
        with _failing(table[name]), worker(contender, 1) as (child, _), Watch(child.pid) as watch:
            for tokens in plan.tokens:
                child.ask("run", tokens=tokens, iterations=3, min_ns=0)
            table[name].peak_anon_bytes = watch.peak(Memory(**child.ask("memory"))).rss_anon_bytes
    for threads in plan.threads:
        for index in range(plan.rounds):
            with contextlib.ExitStack() as stack:
                children = {}
                for name in turns(list(named), index):
                    step(f"{name}: {threads} threads, round {index + 1}")
                    with _failing(table[name]):
                        if table[name].failed is None:
                            child, load_ns = stack.enter_context(worker(named[name], threads))
                            children[name] = child
                            table[name].load_ns += [load_ns] * (threads == plan.threads[0])
                for tokens in plan.tokens:
                    for name, child in children.items():
                        with _failing(table[name]):
                            if table[name].failed is None:
                                answer = child.ask(
                                    "run",
                                    tokens=tokens,
                                    iterations=3,
                                    min_ns=int(plan.min_time_s * 1e9 / plan.rounds),
                                )
                                table[name].samples[tokens, threads].append(answer["samples_ns"])
                                table[name].first_ns += answer.get("first_ns", []) * (threads == plan.threads[0])
    return table


@contextlib.contextmanager
def _failing(row: Measured) -> Any:
    try:
        yield
    except SatenError as error:
        row.failed = row.failed or str(error)


def _path() -> str:
    return os.pathsep.join([str(FOLDER), *(entry for entry in sys.path if entry)])
