"""Statistics against formulas written out, each check proved able to fail."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable

import pytest

from saten_runtime.bench.stats import Ratio, Summary, drift, paired_ratio, summarize

Samples = list[float]


def percentile(samples: Samples, percent: float) -> float:
    """Linear interpolation between the order statistics around (n - 1)·percent/100."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def check_summary(summarize: Callable[[Samples], Summary]) -> None:
    chance = random.Random(3)
    for count in (1, 2, 3, 10, 101, 1000):
        samples = [chance.lognormvariate(0, 1) for _ in range(count)]
        summary = summarize(samples)
        assert summary.count == count
        assert math.isclose(summary.mean, math.fsum(samples) / count, rel_tol=count * 2.3e-16)
        cut = count // 10
        trimmed = sorted(samples)[cut : count - cut]
        assert math.isclose(summary.trimmed_mean, math.fsum(trimmed) / len(trimmed), rel_tol=count * 2.3e-16)
        assert [summary.quantiles[0], summary.quantiles[-1]] == [min(samples), max(samples)]
        for percent, value in ((50, summary.p50), (90, summary.p90), (95, summary.p95), (99, summary.p99)):
            assert math.isclose(value, percentile(samples, percent), rel_tol=1e-12)


def replaced(samples: Samples, **wrong: float) -> Summary:
    return dataclasses.replace(summarize(samples), **wrong)


def test_summary() -> None:
    check_summary(summarize)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda s: summarize(s[1:] or s), id="first sample dropped"),
        pytest.param(lambda s: replaced(s, p50=sorted(s)[len(s) // 2]), id="no interpolation"),
        pytest.param(lambda s: replaced(s, mean=summarize(s).p50), id="median as mean"),
        pytest.param(lambda s: replaced(s, p90=summarize(s).p99, p99=summarize(s).p90), id="p90 and p99 swapped"),
        pytest.param(lambda s: replaced(s, trimmed_mean=summarize(s).mean), id="nothing trimmed"),
    ],
)
def test_the_check_of_summaries_catches(wrong: Callable[[Samples], Summary]) -> None:
    with pytest.raises(AssertionError):
        check_summary(wrong)


def noisy_rounds(chance: random.Random, scale: float, moods: Samples) -> list[Samples]:
    """Nine samples per round; `moods` slows whole rounds, as a busy machine does."""
    return [[scale * mood * chance.lognormvariate(0, 0.02) for _ in range(9)] for mood in moods]


def check_ratio(paired_ratio: Callable[[list[Samples], list[Samples]], Ratio]) -> None:
    """A true ratio of 1.3 under rounds that differ threefold: found within 2 %, covered in 51 of 60 cases or more."""
    covered = 0
    for seed in range(60):
        chance = random.Random(seed)
        moods = [chance.uniform(1, 3) for _ in range(10)]
        baseline = noisy_rounds(chance, 1.0, moods)
        ratio = paired_ratio(noisy_rounds(chance, 1.3, moods), baseline)
        assert abs(ratio.value - 1.3) < 0.026
        assert ratio.low <= ratio.value <= ratio.high
        assert ratio.high - ratio.low < 0.06
        covered += ratio.low <= 1.3 <= ratio.high
    assert covered >= 51


def test_ratio() -> None:
    check_ratio(paired_ratio)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda c, b: paired_ratio(b, c), id="baseline and candidate swapped"),
        pytest.param(lambda c, b: paired_ratio(c[1:] + c[:1], b), id="rounds shifted by one"),
        pytest.param(
            lambda c, b: paired_ratio(list(zip(*c, strict=True)), list(zip(*b[::-1], strict=True))), id="axes swapped"
        ),
        pytest.param(lambda c, b: Ratio(paired_ratio(c, b).value, 1.29, 1.295), id="interval elsewhere"),
    ],
)
def test_the_check_of_ratios_catches(wrong: Callable[[list[Samples], list[Samples]], Ratio]) -> None:
    with pytest.raises(AssertionError):
        check_ratio(wrong)


def test_ratio_is_repeatable_and_exact_without_noise() -> None:
    assert paired_ratio([[2.0, 4.0, 6.0]] * 3, [[1.0, 2.0, 3.0]] * 3) == Ratio(2.0, 2.0, 2.0)
    rounds = noisy_rounds(random.Random(1), 1.0, [1.0] * 7)
    assert paired_ratio(rounds, rounds[::-1]) == paired_ratio(rounds, rounds[::-1])


def test_drift_compares_the_last_third_with_the_first() -> None:
    rounds = [[1.0], [1.0], [5.0], [5.0], [2.0], [2.0], [9.0]]
    assert drift(rounds) == (2.0 + 9.0) / 2 / 1.0
    assert drift(rounds[::-1]) != drift(rounds)
    assert drift([[1.0], [1.0], [1.0], [9.0], [9.0]]) == 1.0
