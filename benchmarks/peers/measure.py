"""Turns of several engines, round by round, each in a fresh process."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saten_runtime.bench.plan import turns
from saten_runtime.bench.stats import paired_ratio
from saten_runtime.errors import SatenError
from saten_runtime.machine.child import Child
from saten_runtime.machine.memory import Memory, Watch

__all__ = ["Column", "Contender", "Measured", "Turns", "measure", "peaks", "tokens_columns", "worker"]

FOLDER = Path(__file__).parents[1]
LEAST_RUNS = 3


@dataclass(frozen=True)
class Contender:
    """A row: an engine and what it runs. bytes: on disk, of what the engine needs.

    worker: the module that runs it. every: it takes part in every so many rounds, for what takes long to start.
    """

    name: str
    engine: str
    artifact: Path
    bytes: int
    environment: dict[str, str] = field(default_factory=dict)
    worker: str = "peers.worker"
    every: int = 1


@dataclass(frozen=True)
class Column:
    """One input. shape: see `peers.worker`; rows: of x that a layer multiplies, all sequences together."""

    name: str
    shape: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class Turns:
    """columns: the smallest input first; every pair of them and threads is a cell. rounds: at the first threads, which
    is what rows are compared at; half as many at the others. min_time_s: per cell, over `rounds`.
    """

    columns: Sequence[Column]
    threads: Sequence[int]
    rounds: int
    min_time_s: float

    def rounds_at(self, threads: int) -> int:
        """How often every contender is started with so many threads."""
        return self.rounds if threads == self.threads[0] else -(-self.rounds // 2)


@dataclass
class Measured:
    """Of one row: samples in ns by (column, threads) and round, readings at the first threads, or why it failed.

    first_ns: from the start of loading to the first answer, where the worker tells. peak_anon_bytes: by column, of all
    columns up to it.
    """

    samples: dict[tuple[str, int], dict[int, list[int]]] = field(default_factory=lambda: defaultdict(dict))
    load_ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    peak_anon_bytes: dict[str, int] = field(default_factory=dict)
    failed: str | None = None

    def median_ms(self, column: str, threads: int) -> float | None:
        """The median over rounds of the rounds' medians."""
        rounds = self.samples.get((column, threads))
        return statistics.median(map(statistics.median, rounds.values())) / 1e6 if rounds else None

    def ratio(self, other: Measured, column: str, threads: int) -> list[float] | None:
        """How many times the other's time this one takes, with the interval's ends, over the rounds that both had."""
        own, others = (row.samples.get((column, threads), {}) for row in (self, other))
        common = sorted(own.keys() & others.keys())
        if not common:
            return None
        found = paired_ratio([own[index] for index in common], [others[index] for index in common])
        return [found.value, found.low, found.high]


def tokens_columns(tokens: Sequence[int], batches: Sequence[int] = (1,)) -> list[Column]:
    """Columns of texts, the smallest first."""
    pairs = sorted(((batch, count) for batch in batches for count in tokens), key=lambda pair: pair[0] * pair[1])
    return [
        Column(f"{f'{batch} × ' * (batch > 1)}{count} token{'s' * (count > 1)}", (batch, count), batch * count)
        for batch, count in pairs
    ]


@contextlib.contextmanager
def worker(contender: Contender, threads: int) -> Iterator[tuple[Child, int]]:
    """A started process with the contender loaded: (child, nanoseconds of loading)."""
    settings = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": _path(), **contender.environment}
    with Child(f"from {contender.worker} import main; main()", settings) as child:
        answer = child.ask("load", engine=contender.engine, artifact=str(contender.artifact), threads=threads)
        yield child, answer["load_ns"]


def measure(contenders: Sequence[Contender], plan: Turns, step: Callable[[str], None]) -> dict[str, Measured]:
    """Memory of each contender alone, then the rounds. A contender that fails says so, and the rest goes on."""
    table = {contender.name: Measured() for contender in contenders}
    for contender in contenders:
        step(f"{contender.name}: memory")
        with _failing(table[contender.name]):
            table[contender.name].peak_anon_bytes = peaks(contender, plan.columns, plan.threads[0])
    for threads in plan.threads:
        for index in range(plan.rounds_at(threads)):
            step(f"{threads} thread{'s' * (threads > 1)}, round {index + 1} of {plan.rounds_at(threads)}")
            _round([each for each in contenders if index % each.every == 0], plan, threads, index, table)
    return table


def peaks(contender: Contender, columns: Sequence[Column], threads: int) -> dict[str, int]:
    """Peak anonymous memory in bytes of a process that has run the columns up to each.

    Raises:
        SatenError: the contender cannot.
    """
    found: dict[str, int] = {}
    with worker(contender, threads) as (child, _), Watch(child.pid) as watch:
        for column in columns:
            child.ask("run", shape=column.shape, iterations=LEAST_RUNS, min_ns=0)
            found[column.name] = watch.peak(Memory(**child.ask("memory"))).rss_anon_bytes or 0
    return found


def _round(contenders: Sequence[Contender], plan: Turns, threads: int, index: int, table: dict[str, Measured]) -> None:
    """Start every contender that has not failed, then let them take turns at each column."""
    named = {each.name: each for each in contenders if table[each.name].failed is None}
    min_ns = int(plan.min_time_s * 1e9 / plan.rounds)
    with contextlib.ExitStack() as stack:
        children = {}
        for name in turns(list(named), index) if named else ():
            with _failing(table[name]):
                children[name], load_ns = stack.enter_context(worker(named[name], threads))
                table[name].load_ns += [load_ns] * (threads == plan.threads[0])
        for column in plan.columns:
            for name, child in children.items():
                if table[name].failed is None:
                    with _failing(table[name]):
                        answer = child.ask("run", shape=column.shape, iterations=LEAST_RUNS, min_ns=min_ns)
                        table[name].samples[column.name, threads][index] = answer["samples_ns"]
                        table[name].first_ns += answer.get("first_ns", []) * (threads == plan.threads[0])


@contextlib.contextmanager
def _failing(row: Measured) -> Iterator[None]:
    try:
        yield
    except SatenError as error:
        row.failed = row.failed or str(error)


def _path() -> str:
    return os.pathsep.join([str(FOLDER), *(entry for entry in sys.path if entry)])
