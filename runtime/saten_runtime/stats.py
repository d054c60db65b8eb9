"""Statistics of latency samples. Everything takes and gives plain floats; the unit is the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Ratio", "Summary", "drift", "paired_ratio", "summarize"]

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Summary:
    """Of n samples, in their unit. p50, p90, p99: percentiles, linear between order statistics (type 7)."""

    count: int
    p50: float
    p90: float
    p99: float
    mean: float


@dataclass(frozen=True)
class Ratio:
    """value: how many times the baseline's time the candidate takes; [low, high]: 95 % interval."""

    value: float
    low: float
    high: float


def summarize(samples: Sequence[float]) -> Summary:
    """Percentiles and mean of at least one sample."""
    values = np.asarray(samples, np.float64)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return Summary(len(values), float(p50), float(p90), float(p99), float(values.mean()))


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
