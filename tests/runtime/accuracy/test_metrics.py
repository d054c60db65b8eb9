"""Accuracy measures against brute force and scikit-learn-free formulas, each check proved able to fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from saten_runtime.accuracy import metrics

Array = np.ndarray[Any, Any]


def brute_force_ranks(queries: Array, answers: Array) -> list[int]:
    """By counting, in exact integer arithmetic, who scores at least as high as the right answer."""
    ranks = []
    for k, query in enumerate(queries.tolist()):
        scores = [sum(a * b for a, b in zip(query, answer, strict=True)) for answer in answers.tolist()]
        ranks.append(1 + sum(score >= scores[k] for j, score in enumerate(scores) if j != k))
    return ranks


def check_search(search: Callable[[Array, Array], dict[str, float]]) -> None:
    random = np.random.default_rng(5)
    for count in (1, 2, 11, 60):
        # Small integers: products are exact in floating point, and ties are many.
        answers = random.integers(-2, 3, (count, 6)).astype(np.float64)
        queries = answers + random.integers(-1, 2, (count, 6))
        ranks = brute_force_ranks(queries, answers)
        assert search(queries, answers) == {
            "recall_at_1": sum(rank <= 1 for rank in ranks) / count,
            "recall_at_10": sum(rank <= 10 for rank in ranks) / count,
            "mrr_at_10": pytest.approx(sum(1 / rank for rank in ranks if rank <= 10) / count, rel=1e-12),
        }


def optimistic(queries: Array, answers: Array) -> dict[str, float]:
    scores = queries @ answers.T
    ranks = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
    mrr = float(np.where(ranks <= 10, 1 / ranks, 0).mean())
    return {"recall_at_1": (ranks <= 1).mean(), "recall_at_10": (ranks <= 10).mean(), "mrr_at_10": mrr}


def search(queries: Array, answers: Array) -> dict[str, float]:
    return metrics.search_metrics(metrics.ranks_of_own_answer(queries, answers))


def test_search() -> None:
    check_search(search)


def test_search_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_QUERIES_AT_ONCE", 7)
    check_search(search)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(optimistic, id="ties count as found"),
        pytest.param(lambda q, a: search(a, q), id="queries and answers swapped"),
        pytest.param(lambda q, a: search(q, np.roll(a, 1, axis=0)), id="answers shifted by one"),
        pytest.param(lambda q, a: search(q, np.roll(a, 1, axis=1)), id="columns shifted by one"),
    ],
)
def test_the_check_of_search_catches(wrong: Callable[[Array, Array], dict[str, float]]) -> None:
    with pytest.raises(AssertionError):
        check_search(wrong)


def test_twin_answers_find_nothing() -> None:
    same = np.ones((4, 3))
    assert search(same, same) == {"recall_at_1": 0, "recall_at_10": 1, "mrr_at_10": 0.25}


def check_cosines(cosines: Callable[[Array, Array], Array]) -> None:
    random = np.random.default_rng(6)
    a, b = random.standard_normal((9, 5)), random.standard_normal((9, 5))
    a[3] = 0
    for x, y, found in zip(a.tolist(), b.tolist(), cosines(a, b).tolist(), strict=True):
        product = math.fsum(p * q for p, q in zip(x, y, strict=True))
        expected = product / (math.hypot(*x) * math.hypot(*y)) if any(x) else 0
        assert math.isclose(found, expected, abs_tol=1e-14)


def test_cosines() -> None:
    check_cosines(metrics.cosines)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda a, b: metrics.cosines(a, b[::-1]), id="order"),
        pytest.param(lambda a, b: (a * b).sum(axis=1), id="not normalized"),
        pytest.param(lambda a, b: np.ones(len(a)), id="always one"),
    ],
)
def test_the_check_of_cosines_catches(wrong: Callable[[Array, Array], Array]) -> None:
    with pytest.raises(AssertionError):
        check_cosines(wrong)


def plain_ranks(values: list[float]) -> list[float]:
    """1 + how many are smaller + half of the others that are equal."""
    return [1 + sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]


def plain_pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    covariance = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(math.fsum((x - mean_a) ** 2 for x in a) * math.fsum((y - mean_b) ** 2 for y in b))


def check_correlations(pearson: Callable[[Array, Array], Any], spearman: Callable[[Array, Array], Any]) -> None:
    random = np.random.default_rng(8)
    for count in (2, 3, 40):
        a = random.integers(0, 12, count) + np.arange(count) / 3
        b = np.exp(a / 4) + random.integers(0, 5, count)
        x, y = a.tolist(), b.tolist()
        assert math.isclose(pearson(a, b), plain_pearson(x, y), rel_tol=1e-12)
        assert math.isclose(spearman(a, b), plain_pearson(plain_ranks(x), plain_ranks(y)), rel_tol=1e-12)


def test_correlations() -> None:
    check_correlations(metrics.pearson, metrics.spearman)


def test_spearman_shares_tied_ranks() -> None:
    a, b = [3.0, 1, 1, 2, 3, 3], [1.0, 2, 2, 0, 5, 4]
    expected = plain_pearson(plain_ranks(a), plain_ranks(b))
    assert metrics.spearman(np.array(a), np.array(b)) == pytest.approx(expected, rel=1e-12)
    assert plain_ranks([3.0, 1, 1]) == [3, 1.5, 1.5]


@pytest.mark.parametrize(
    ("pearson", "spearman"),
    [
        pytest.param(metrics.spearman, metrics.spearman, id="spearman as pearson"),
        pytest.param(metrics.pearson, metrics.pearson, id="pearson as spearman"),
        pytest.param(lambda a, b: metrics.pearson(a, -b), metrics.spearman, id="sign"),
        pytest.param(metrics.pearson, lambda a, b: metrics.spearman(a, np.roll(b, 1)), id="shifted by one"),
    ],
)
def test_the_check_of_correlations_catches(pearson: Any, spearman: Any) -> None:
    with pytest.raises(AssertionError):
        check_correlations(pearson, spearman)


def test_no_correlation_with_a_constant() -> None:
    assert metrics.pearson(np.ones(4), np.arange(4)) is None
    assert metrics.spearman(np.arange(4), np.ones(4)) is None
