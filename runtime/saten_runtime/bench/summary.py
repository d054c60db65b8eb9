"""From what a benchmark measured to what it says: `bench.json` from raw samples."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from saten_runtime.bench.floor import Rates, floor_of
from saten_runtime.bench.plan import Key, Plan, Setup, Size
from saten_runtime.bench.results import SCHEMA_VERSION, BenchResult, Cell, CellRatio, Load, LoadMemory
from saten_runtime.bench.stats import paired_ratio, summarize
from saten_runtime.bench.verdict import Timed, emulation_reasons, judge
from saten_runtime.bundle.folder import Bundle
from saten_runtime.machine.device import State
from saten_runtime.machine.load import Disturbance
from saten_runtime.machine.memory import needed_bytes
from saten_runtime.machine.power import Energy
from saten_runtime.records.reader import Positive

__all__ = ["Measured", "Start", "summary"]


@dataclass(frozen=True)
class Start:
    """How one process started: see `results.Load`."""

    cold_load_ms: Positive
    session_ms: Positive
    first_run_ms: Positive


@dataclass(frozen=True)
class Measured:
    """All that a benchmark has gathered so far.

    baseline: a name in `bundles`, or None. states: before, and after each round. samples: ns, by
    round; energy: of each sample, by round; disturbances: by round, where the machine tells; failed: why a
    cell has no result.
    """

    plan: Plan
    bundles: dict[str, Bundle]
    sizes: list[Size]
    baseline: str | None
    environment: dict[str, Any]
    states: list[State]
    samples: dict[Key, dict[int, list[int]]] = field(default_factory=lambda: defaultdict(dict))
    energy: dict[Key, dict[int, list[Energy]]] = field(default_factory=lambda: defaultdict(dict))
    disturbances: dict[Key, dict[int, Disturbance]] = field(default_factory=lambda: defaultdict(dict))
    failed: dict[Key, str] = field(default_factory=dict)
    memory: dict[tuple[str, Setup], LoadMemory] = field(default_factory=dict)
    starts: dict[tuple[str, Setup], dict[int, Start]] = field(default_factory=lambda: defaultdict(dict))
    rates: dict[int, Rates] = field(default_factory=dict)

    def cells(self) -> Iterator[Key]:
        """Every cell of the plan."""
        for setup, size, name in itertools.product(self.plan.setups, self.sizes, self.bundles):
            yield Key(name, setup, size)


def summary(measured: Measured, after: State, reasons: Sequence[str]) -> BenchResult:
    """The result. after: the state at the end; reasons: known ones for which the run is invalid."""
    failed = {**{key: "not measured" for key in measured.cells() if not measured.samples.get(key)}, **measured.failed}
    failures = [f"{key}: {reason}" for key, reason in failed.items()]
    states = [*measured.states, after]
    timed = [_timed(measured, key, failed) for key in measured.cells() if key not in failed]
    known = [*emulation_reasons(measured.environment.get("emulator")), *reasons, *failures]
    return BenchResult(
        schema_version=SCHEMA_VERSION,
        environment={
            **measured.environment,
            "during": {**_during(states), **_load_of(timed)},
            "after": dataclasses.asdict(after),
            "rates": [dataclasses.asdict(rates) for rates in measured.rates.values()],
        },
        verdict=judge(states, timed, known, cores=measured.environment.get("cores")),
        cells=[_cell(measured, key, failed) for key in measured.cells()],
        loads=[_load(measured, name, setup) for name, setup in measured.starts if (name, setup) in measured.memory],
    )


def _timed(measured: Measured, key: Key, failed: dict[Key, str]) -> Timed:
    disturbances = [one for _, one in sorted(measured.disturbances[key].items())]
    ratio = _ratio(measured, key, failed)
    return Timed(str(key), _in_order(measured.samples[key]), key.setup.threads, disturbances, ratio)


def _in_order(rounds: dict[int, list[int]]) -> list[list[int]]:
    return [rounds[index] for index in sorted(rounds)]


def _during(states: Sequence[State]) -> dict[str, Any]:
    """Lowest and highest of what changed, over the whole run."""
    seen: dict[str, list[Any]] = {
        "clock_khz": [state.clock_khz for state in states],
        "temp_milli_c": [state.temp_milli_c for state in states],
        **{
            f"power_watts {sensor}": [state.power_watts.get(sensor) for state in states]
            for sensor in states[0].power_watts
        },
    }
    known = {name: [value for value in values if value is not None] for name, values in seen.items()}
    return {name: [min(values), max(values)] if values else None for name, values in known.items()}


def _load_of(timed: Sequence[Timed]) -> dict[str, Any]:
    """Fewest and most other processes that wanted a core between the turns."""
    others = [one.others for cell in timed for one in cell.disturbances if one.others is not None]
    return {"others": [min(others), max(others)]} if others else {}


def _cell(measured: Measured, key: Key, failed: dict[Key, str]) -> Cell:
    if key in failed:
        return Cell(**key.columns(), failed=failed[key])
    numbers = summarize([sample / 1e6 for samples in _in_order(measured.samples[key]) for sample in samples])
    size, rates = key.size, measured.rates.get(key.setup.threads)
    return Cell(
        **key.columns(),
        count=numbers.count,
        p50_ms=numbers.p50,
        p90_ms=numbers.p90,
        p95_ms=numbers.p95,
        p99_ms=numbers.p99,
        mean_ms=numbers.mean,
        trimmed_mean_ms=numbers.trimmed_mean,
        quantiles_ms=numbers.quantiles,
        tokens_per_s=1000 * size.batch * size.tokens / numbers.p50,
        ttft_ms=numbers.p50 if size.phase == "prompt" and not size.depth else None,
        energy=_mean_energy(list(measured.energy[key].values())),
        floor=floor_of(measured.bundles[key.bundle], size, rates) if rates else None,
        ratio=_ratio(measured, key, failed),
    )


def _mean_energy(rounds: Sequence[Sequence[Energy]]) -> list[Energy]:
    sums: dict[str, list[float]] = defaultdict(list)
    for energy in itertools.chain.from_iterable(rounds):
        sums[energy.sensor].append(energy.joules)
    return [Energy(sensor, statistics.fmean(joules)) for sensor, joules in sums.items()]


def _ratio(measured: Measured, key: Key, failed: dict[Key, str]) -> CellRatio | None:
    if measured.baseline is None or key.bundle == measured.baseline:
        return None
    other = dataclasses.replace(key, bundle=measured.baseline)
    if other in failed:
        return None
    mine, theirs = measured.samples[key], measured.samples[other]
    both = sorted(mine.keys() & theirs.keys())  # of a run that was interrupted, one of them may have a round more
    if not both:
        return None
    ratio = paired_ratio([mine[index] for index in both], [theirs[index] for index in both])
    return CellRatio(measured.baseline, ratio.value, ratio.low, ratio.high)


def _load(measured: Measured, name: str, setup: Setup) -> Load:
    starts, bundle = measured.starts[name, setup].values(), measured.bundles[name]
    return Load(
        bundle=name,
        threads=setup.threads,
        memory_mode=setup.memory_mode,
        cold_load_ms=statistics.median(start.cold_load_ms for start in starts),
        session_ms=statistics.median(start.session_ms for start in starts),
        first_run_ms=statistics.median(start.first_run_ms for start in starts),
        memory=measured.memory[name, setup],
        predicted_bytes=needed_bytes(bundle.model_bytes, setup.memory_mode),
        disk_bytes={file: entry.bytes for file, entry in bundle.manifest.files.items()},
    )
