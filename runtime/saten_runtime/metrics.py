"""Accuracy measures. Vectors are rows; every function takes arrays and gives floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["cosines", "pearson", "ranks_of_own_answer", "search_metrics", "spearman"]

Array = npt.NDArray[Any]

_QUERIES_AT_ONCE = 1024  # bounds the score matrix to this many rows


def ranks_of_own_answer(queries: Array, answers: Array) -> npt.NDArray[np.int64]:
    """Place, from 1 on, of answer k among all answers by dot product with query k, shape (n,).

    queries, answers: (n, width). Answers that tie with the right one count as before it.
    """
    ranks = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        scores = queries[start : start + _QUERIES_AT_ONCE] @ answers.T  # (part, n)
        own = scores[np.arange(len(scores)), np.arange(start, start + len(scores))]
        ranks.append((scores >= own[:, None]).sum(axis=1))  # the right one ties with itself: 1 is counted
    return np.concatenate(ranks).astype(np.int64)


def search_metrics(queries: Array, answers: Array) -> dict[str, float]:
    """Recall at 1 and 10, and mean reciprocal rank where a rank beyond 10 counts 0."""
    ranks = ranks_of_own_answer(queries, answers)
    return {
        "recall_at_1": float((ranks <= 1).mean()),
        "recall_at_10": float((ranks <= 10).mean()),
        "mrr_at_10": float(np.where(ranks <= 10, 1 / ranks, 0).mean()),
    }


def cosines(a: Array, b: Array) -> npt.NDArray[np.float64]:
    """Cosine of row k of `a` with row k of `b`, shape (n,); 0 where a row is all zeros."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    return np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), 0)


def pearson(a: Array, b: Array) -> float | None:
    """Linear correlation of two (n,) arrays; None when one does not vary."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale > 0 else None


def spearman(a: Array, b: Array) -> float | None:
    """Correlation of the ranks of two (n,) arrays, ties sharing their mean rank; None as `pearson`."""
    return pearson(_mean_ranks(a), _mean_ranks(b))


def _mean_ranks(values: Array) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]
