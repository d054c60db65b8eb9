"""Statistics of latency samples. Everything takes and gives plain floats; the unit is the caller's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "QUANTILES",
    "Interval",
    "Ratio",
    "Summary",
    "bootstrap",
    "drift",
    "paired_ratio",
    "summarize",
    "unpaired_ratio",
]

_RESAMPLES = 10_000
_FEWER_RESAMPLES = 1_000  # where each takes a whole metric
_TRIMMED = 0.1
QUANTILES = tuple(range(0, 101, 5))


@dataclass(frozen=True)
class Summary:
    """Of n samples, in their unit.

    p50 …: percentiles, linear between order statistics (type 7). trimmed_mean: without the fastest
    and the slowest tenth, rounded down. quantiles: the percentiles `QUANTILES`.
    """

    count: int
    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    trimmed_mean: float
    quantiles: list[float]


@dataclass(frozen=True)
class Ratio:
    """value: how many times the baseline's time the candidate takes; [low, high]: 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval [low, high]; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


def summarize(samples: Sequence[float]) -> Summary:
    """Percentiles and means of at least one sample."""
    values = np.sort(np.asarray(samples, np.float64))
    p50, p90, p95, p99, *quantiles = np.percentile(values, [50, 90, 95, 99, *QUANTILES]).tolist()
    cut = int(len(values) * _TRIMMED)
    trimmed = values[cut : len(values) - cut]
    return Summary(len(values), p50, p90, p95, p99, float(values.mean()), float(trimmed.mean()), quantiles)


def paired_ratio(candidate: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> Ratio:
    """How much slower the candidate is, from rounds in which both were measured one after the other.

    candidate[k], baseline[k]: the samples of round k, in one unit; what slowed the machine in round
    k slowed both. The value is the median over rounds of median(candidate[k]) / median(baseline[k]);
    the interval is the percentile bootstrap over rounds, 10,000 resamples, always the same seed.
    """
    ratios = np.array([np.median(c) / np.median(b) for c, b in zip(candidate, baseline, strict=True)])
    draws = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def unpaired_ratio(candidate: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> Ratio:
    """As `paired_ratio`, of two runs that did not take turns: what slowed one of them did not slow the other.

    The value is the ratio of the medians over rounds of the medians of their samples; each side's rounds are
    drawn on their own.
    """
    sides = [np.array([np.median(samples) for samples in side]) for side in (candidate, baseline)]
    chance = np.random.default_rng(0)
    drawn = [np.median(side[chance.integers(0, len(side), (_RESAMPLES, len(side)))], axis=1) for side in sides]
    low, high = np.percentile(drawn[0] / drawn[1], [2.5, 97.5])
    return Ratio(float(np.median(sides[0]) / np.median(sides[1])), float(low), float(high))


def bootstrap(
    metrics: Callable[[npt.NDArray[np.int64]], dict[str, float]], count: int, seed: int = 0
) -> dict[str, Interval]:
    """Percentile bootstrap over examples of several metrics at once, 1,000 resamples.

    metrics(indices): the metrics of these of the `count` examples; NaN where one is not defined.
    """
    values = metrics(np.arange(count))
    chance = np.random.default_rng(seed)
    drawn = [metrics(chance.integers(0, count, count)) for _ in range(_FEWER_RESAMPLES)]
    return {name: _interval(value, np.array([one[name] for one in drawn])) for name, value in values.items()}


def _interval(value: float, drawn: npt.NDArray[np.float64]) -> Interval:
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(defined):
        return Interval(None, None, None)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def drift(rounds: Sequence[Sequence[float]]) -> float:
    """Median of the last third of the rounds over the median of the first third.

    1.0 below six rounds: a third of fewer is one process, and two processes differ by themselves.
    """
    third = len(rounds) // 3
    if third < 2:
        return 1.0
    first = np.concatenate([np.asarray(samples, np.float64) for samples in rounds[:third]])
    last = np.concatenate([np.asarray(samples, np.float64) for samples in rounds[-third:]])
    return float(np.median(last) / np.median(first))
