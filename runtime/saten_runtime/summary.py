"""From what a benchmark measured to what it says: `bench.json` from raw samples."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from saten_runtime.bundle import Bundle
from saten_runtime.device import State
from saten_runtime.plan import Key, Plan, Setup
from saten_runtime.results import BenchResult, Cell, CellRatio, Load, LoadMemory
from saten_runtime.stats import paired_ratio, summarize
from saten_runtime.verdict import emulation_reasons, judge

__all__ = ["Measured", "Start", "summary"]

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Start:
    """How one process started: see `results.Load`."""

    cold_load_ms: float
    session_ms: float
    first_run_ms: float


@dataclass(frozen=True)
class Measured:
    """All that a benchmark has gathered so far.

    baseline: a name in `bundles`, or None. states: before, and after each round. samples: ns, by
    round; failed: why a cell has no result.
    """

    plan: Plan
    bundles: dict[str, Bundle]
    baseline: str | None
    environment: dict[str, Any]
    states: list[State]
    samples: dict[Key, list[list[int]]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[Key, str] = field(default_factory=dict)
    memory: dict[tuple[str, Setup], LoadMemory] = field(default_factory=dict)
    starts: dict[tuple[str, Setup], list[Start]] = field(default_factory=lambda: defaultdict(list))

    def cells(self) -> Iterator[Key]:
        """Every cell of the plan."""
        for setup, size, name in itertools.product(self.plan.setups, self.plan.sizes, self.bundles):
            yield Key(name, setup, size)


def summary(measured: Measured, after: State, reasons: Sequence[str]) -> BenchResult:
    """The result. after: the state at the end; reasons: known ones for which the run is invalid."""
    failed = {**{key: "not measured" for key in measured.cells() if not measured.samples.get(key)}, **measured.failed}
    failures = [f"{key}: {reason}" for key, reason in failed.items()]
    rounds = {str(key): measured.samples[key] for key in measured.cells() if key not in failed}
    known = [*emulation_reasons(measured.environment.get("emulator")), *reasons, *failures]
    return BenchResult(
        schema_version=_SCHEMA_VERSION,
        environment={**measured.environment, "after": dataclasses.asdict(after)},
        verdict=judge([*measured.states, after], rounds, known),
        cells=[_cell(measured, key, failed) for key in measured.cells()],
        loads=[_load(measured, name, setup) for name, setup in measured.starts],
    )


def _cell(measured: Measured, key: Key, failed: dict[Key, str]) -> Cell:
    if key in failed:
        return Cell(**key.columns(), failed=failed[key])
    numbers = summarize([sample / 1e6 for samples in measured.samples[key] for sample in samples])
    return Cell(
        **key.columns(),
        count=numbers.count,
        p50_ms=numbers.p50,
        p90_ms=numbers.p90,
        p99_ms=numbers.p99,
        mean_ms=numbers.mean,
        ratio=_ratio(measured, key, failed),
    )


def _ratio(measured: Measured, key: Key, failed: dict[Key, str]) -> CellRatio | None:
    if measured.baseline is None or key.bundle == measured.baseline:
        return None
    other = dataclasses.replace(key, bundle=measured.baseline)
    if other in failed:
        return None
    # Of a run that was interrupted, one of the two may have a round more.
    pairs = list(zip(measured.samples[key], measured.samples[other], strict=False))
    ratio = paired_ratio([candidate for candidate, _ in pairs], [baseline for _, baseline in pairs])
    return CellRatio(measured.baseline, ratio.value, ratio.low, ratio.high)


def _load(measured: Measured, name: str, setup: Setup) -> Load:
    starts = measured.starts[name, setup]
    return Load(
        bundle=name,
        threads=setup.threads,
        memory_mode=setup.memory_mode,
        cold_load_ms=statistics.median(start.cold_load_ms for start in starts),
        session_ms=statistics.median(start.session_ms for start in starts),
        first_run_ms=statistics.median(start.first_run_ms for start in starts),
        memory=measured.memory[name, setup],
        disk_bytes={file: entry.bytes for file, entry in measured.bundles[name].manifest.files.items()},
    )
