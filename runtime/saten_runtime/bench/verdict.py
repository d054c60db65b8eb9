"""Whether a benchmark may be believed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from saten_runtime.bench.results import Verdict
from saten_runtime.bench.stats import drift
from saten_runtime.machine.device import State

__all__ = [
    "MIN_SAMPLES",
    "clock_reasons",
    "drift_reasons",
    "emulation_reasons",
    "governor_reasons",
    "judge",
    "throttle_reasons",
]

MIN_SAMPLES = 10
# A throttled board runs at half to three quarters of its speed; an undisturbed cell stays within a few percent.
_MOST_DRIFT = 1.25
_LEAST_CLOCK = 0.9
# Of the clock that samples are taken with.
_LEAST_TICKS = 100

Rounds = Sequence[Sequence[float]]


def judge(states: Sequence[State], cells: Mapping[str, Rounds], failures: Sequence[str]) -> Verdict:
    """The verdict on a run.

    states: before, after each round, and at the end; cells: the samples of each cell by round, ns,
    by a name for people; failures: reasons that are known already.
    """
    reasons = [*failures, *throttle_reasons(states), *clock_reasons(states), *governor_reasons(states)]
    reasons += [reason for name, rounds in cells.items() for reason in drift_reasons(name, rounds)]
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
    if min(thirds) >= _LEAST_CLOCK * max(thirds):
        return []
    return [f"frequency: the clock went between {max(thirds) / 1000:.0f} and {min(thirds) / 1000:.0f} MHz"]


def governor_reasons(states: Sequence[State]) -> list[str]:
    """A reason when somebody changed how the clock is governed during the run."""
    seen = list(dict.fromkeys(state.governor for state in states))
    return [f"governor: it changed, {' → '.join(map(str, seen))}; measure again"] if len(seen) > 1 else []


def drift_reasons(name: str, rounds: Rounds) -> list[str]:
    """Reasons when a cell has too few samples, or ended much slower or faster than it began."""
    count = sum(map(len, rounds))
    if count < MIN_SAMPLES:
        return [f"{name}: {count} samples, at least {MIN_SAMPLES} are needed"]
    median_s = 1e-9 * float(np.median(np.concatenate(rounds)))
    if median_s < _LEAST_TICKS * time.get_clock_info("perf_counter").resolution:
        return [f"{name}: a run takes {median_s:.1e} s, not {_LEAST_TICKS} ticks of the clock; take larger inputs"]
    change = drift(rounds)
    if max(change, 1 / change) > _MOST_DRIFT:
        return [f"{name}: the last third of the rounds took {change:.2f} times the first; is the machine busy or hot?"]
    return []
