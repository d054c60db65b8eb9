"""Whether a benchmark may be believed. The table `LIMITS` has the limits, docs/measuring.md the reason of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from saten_runtime.bench.results import CellRatio, Verdict
from saten_runtime.bench.stats import drift
from saten_runtime.machine.device import State
from saten_runtime.machine.load import Disturbance

__all__ = [
    "LIMITS",
    "MIN_SAMPLES",
    "Timed",
    "clock_reasons",
    "drift_reasons",
    "emulation_reasons",
    "governor_reasons",
    "judge",
    "load_reasons",
    "stolen_reasons",
    "throttle_reasons",
    "worst_reasons",
]

MIN_SAMPLES = 10
# A run is valid as long as none of these is passed. docs/measuring.md lists them with their reasons.
LIMITS = {
    "drift": 1.25,  # last third of the rounds over the first third, either way
    "clock": 0.9,  # slowest third of the run over the fastest
    "ticks": 100,  # of the clock, in the median sample
    "load": 0.5,  # processes that want a core beyond the cores there are
    "stolen": 0.05,  # of the time of all cores
    "switches": 25,  # involuntary context switches per second and thread
    "interval": 1.25,  # upper end of a ratio's interval over its lower end
    "spread": 1.5,  # mean of a round over its fastest tenth, median over the rounds
}
# Below so much, what is judged is chance: readings of the load, ticks of all cores, seconds of timing, and rounds.
_LEAST_READINGS = 5
_LEAST_STAT_TICKS = 100
_LEAST_SECONDS = 0.1
_LEAST_ROUNDS = 3

Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Timed:
    """A cell as it is judged.

    name: for people; rounds: its samples by round, ns; disturbances: by round, where the machine tells; ratio: to the
    baseline.
    """

    name: str
    rounds: Rounds
    threads: int = 1
    disturbances: Sequence[Disturbance] = ()
    ratio: CellRatio | None = None


def judge(
    states: Sequence[State], cells: Sequence[Timed], failures: Sequence[str], *, cores: int | None = None
) -> Verdict:
    """The verdict on a run.

    states: before, after each round, and at the end; failures: reasons that are known already; cores: of the machine,
    None where it does not tell.
    """
    reasons = [*failures, *throttle_reasons(states), *clock_reasons(states), *governor_reasons(states)]
    reasons += [*load_reasons(cells, cores), *stolen_reasons(cells)]
    reasons += [reason for cell in cells for reason in drift_reasons(cell.name, cell.rounds)]
    reasons += worst_reasons(cells, cores)
    return Verdict(not reasons, reasons)


def emulation_reasons(emulator: str | None) -> list[str]:
    """A reason when there is an emulator: what was timed is the emulator."""
    return [f"emulated: by {emulator}; no latency here is one of a device"] if emulator else []


def throttle_reasons(states: Sequence[State]) -> list[str]:
    """A reason when the firmware of a Raspberry Pi slowed it down during the run."""
    hit = [state for state in states if state.throttled_since(states[0])]
    return (
        [f"throttled: the firmware reports {hit[0].throttle_bits:#x}; cool it, or use a stronger supply"] if hit else []
    )


def clock_reasons(states: Sequence[State]) -> list[str]:
    """A reason when the clock of one third of the run lay well below that of another."""
    clocks = [state.clock_khz for state in states[1:-1] if state.clock_khz is not None]
    if len(clocks) < 3:
        return []
    thirds = [float(np.median(part)) for part in np.array_split(clocks, 3)]
    if min(thirds) >= LIMITS["clock"] * max(thirds):
        return []
    return [f"frequency: the clock went between {max(thirds) / 1000:.0f} and {min(thirds) / 1000:.0f} MHz"]


def governor_reasons(states: Sequence[State]) -> list[str]:
    """A reason when somebody changed how the clock is governed during the run."""
    seen = list(dict.fromkeys(state.governor for state in states))
    return [f"governor: it changed, {' → '.join(map(str, seen))}; measure again"] if len(seen) > 1 else []


def load_reasons(cells: Sequence[Timed], cores: int | None) -> list[str]:
    """A reason when ours and the other processes together wanted more cores than there are.

    Threads of ours beyond the cores are the plan's wish; only what others add to them counts then.
    """
    for threads in dict.fromkeys(cell.threads for cell in cells):
        found = [one.others for cell in cells if cell.threads == threads for one in cell.disturbances]
        readings = [others for others in found if others is not None]
        if cores is None or len(readings) < _LEAST_READINGS:
            continue
        others = float(np.median(readings))
        if others + threads > max(cores, threads) + LIMITS["load"]:
            return [
                f"load: {others:g} other processes wanted a core beside {threads} threads of ours, and there are "
                f"{cores} cores; stop them, saten-run doctor names the busiest"
            ]
    return []


def stolen_reasons(cells: Sequence[Timed]) -> list[str]:
    """A reason when a hypervisor gave much of the processor's time to other machines."""
    read = [one for cell in cells for one in cell.disturbances if one.ticks is not None and one.stolen is not None]
    ticks, stolen = sum(one.ticks or 0 for one in read), sum(one.stolen or 0 for one in read)
    if ticks < _LEAST_STAT_TICKS or stolen <= LIMITS["stolen"] * ticks:
        return []
    return [f"stolen: other virtual machines took {stolen / ticks:.0%} of the processor; measure when they are quiet"]


def drift_reasons(name: str, rounds: Rounds) -> list[str]:
    """Reasons when a cell has too few samples, or ended much slower or faster than it began."""
    count = sum(map(len, rounds))
    if count < MIN_SAMPLES:
        return [f"{name}: {count} samples, at least {MIN_SAMPLES} are needed"]
    median_s = 1e-9 * float(np.median(np.concatenate(rounds)))
    if median_s < LIMITS["ticks"] * time.get_clock_info("perf_counter").resolution:
        return [f"{name}: a run takes {median_s:.1e} s, not {LIMITS['ticks']} ticks of the clock; take larger inputs"]
    change = drift(rounds)
    if max(change, 1 / change) > LIMITS["drift"]:
        return [f"{name}: the last third of the rounds took {change:.2f} times the first; is the machine busy or hot?"]
    return []


def worst_reasons(cells: Sequence[Timed], cores: int | None) -> list[str]:
    """For each rule of `_OF_CELLS` that cells break, one reason, which names the worst of them."""
    reasons = []
    for rule, (value, words) in _OF_CELLS.items():
        values = [(found, cell) for cell in cells if (found := value(cell, cores)) is not None]
        broken = [(found, cell) for found, cell in values if found > LIMITS[rule]]
        if broken:
            worst, cell = max(broken, key=lambda pair: pair[0])
            reasons.append(f"{rule}: {cell.name}: {words.format(worst)} ({len(broken)} of {len(values)} cells)")
    return reasons


def _switches(cell: Timed, cores: int | None) -> float | None:
    """Involuntary context switches per second and thread; None where our own threads share cores."""
    read = [one for one in cell.disturbances if one.switches is not None]
    seconds = sum(one.seconds for one in read)
    if cores is None or cell.threads > cores or seconds < _LEAST_SECONDS:
        return None
    return sum(one.switches or 0 for one in read) / seconds / cell.threads


def _interval(cell: Timed, _: int | None) -> float | None:
    if cell.ratio is None or len(cell.rounds) < _LEAST_ROUNDS:
        return None
    return cell.ratio.high / cell.ratio.low


def _spread(cell: Timed, _: int | None) -> float | None:
    """The mean, because a core that is taken away makes few samples very long; the fastest tenth is undisturbed."""
    if len(cell.rounds) < _LEAST_ROUNDS:
        return None
    return float(np.median([np.mean(samples) / np.percentile(samples, 10) for samples in cell.rounds]))


_OF_CELLS: dict[str, tuple[Callable[[Timed, int | None], float | None], str]] = {
    "switches": (_switches, "the kernel took the core away {:.0f} times a second; is the machine busy?"),
    "interval": (_interval, "the ratio's interval ends {:.2f} times as high as it begins; measure more rounds"),
    "spread": (_spread, "within a round, the mean sample took {:.2f} times the fastest tenth; is the machine busy?"),
}
