"""Accuracy measures. Vectors are rows; every function takes arrays and gives floats."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.run.entities import entities

__all__ = [
    "accuracy",
    "answer_f1",
    "binary_f1",
    "class_metrics",
    "cosines",
    "entity_counts",
    "exact_match",
    "f1_from_counts",
    "macro_f1",
    "matthews",
    "mcnemar",
    "pearson",
    "ranks_of_own_answer",
    "search_metrics",
    "spearman",
]

Array = npt.NDArray[Any]

_QUERIES_AT_ONCE = 1024  # bounds the score matrix to this many rows
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


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


def search_metrics(ranks: Array) -> dict[str, float]:
    """Recall at 1 and 10, and mean reciprocal rank where a rank beyond 10 counts 0; ranks: (n,)."""
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


def accuracy(predicted: Array, wanted: Array) -> float:
    """Share of the classes (n,) that are right."""
    return float((predicted == wanted).mean())


def macro_f1(predicted: Array, wanted: Array) -> float:
    """Mean over all classes that occur of F1 = 2 TP / (2 TP + FP + FN); classes (n,)."""
    table = _confusion(predicted, wanted)
    right = np.diag(table)
    return float((2 * right / (table.sum(axis=0) + table.sum(axis=1))).mean())


def binary_f1(predicted: Array, wanted: Array) -> float | None:
    """F1 of class 1 of two, as GLUE scores MRPC and QQP; classes (n,). None where there are more classes.

    0 when class 1 neither occurs nor is predicted.
    """
    if not np.isin(np.concatenate([predicted, wanted]), (0, 1)).all():
        return None
    found = int(((predicted == 1) & (wanted == 1)).sum())
    return f1_from_counts(found, int((predicted == 1).sum()), int((wanted == 1).sum())) or 0.0


def class_metrics(predicted: Array, wanted: Array) -> dict[str, float | None]:
    """Everything that classes (n,) are scored by."""
    return {
        "accuracy": accuracy(predicted, wanted),
        "binary_f1": binary_f1(predicted, wanted),
        "macro_f1": macro_f1(predicted, wanted),
        "matthews": matthews(predicted, wanted),
    }


def matthews(predicted: Array, wanted: Array) -> float:
    """Matthews' correlation of classes (n,), also for more than two; 0 when either does not vary.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    table = _confusion(predicted, wanted)
    total, right = table.sum(), np.trace(table)
    said, true = table.sum(axis=0), table.sum(axis=1)
    scale = math.sqrt(float(total**2 - said @ said) * float(total**2 - true @ true))
    return float(total * right - said @ true) / scale if scale else 0.0


def mcnemar(right: Array, other_right: Array) -> float:
    """Probability that two models which are equally good differ on so many examples, two-sided and exact.

    right, other_right: (n,) bool. Of the k examples that one of them alone gets right, each side has a
    chance of 1/2 (McNemar 1947; the binomial form).
    """
    only_one, only_other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    count, fewer = only_one + only_other, min(only_one, only_other)
    ways = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, float(2 * ways / 2**count))


def exact_match(answer: str, wanted: Sequence[str]) -> float:
    """1.0 when the answer is one of those wanted, without case, articles and punctuation (as SQuAD 1.1 scores)."""
    return float(any(_plain(answer) == _plain(one) for one in wanted))


def answer_f1(answer: str, wanted: Sequence[str]) -> float:
    """F1 of the answer's words with the best of those wanted (as SQuAD 1.1 scores)."""
    return max((_word_f1(_plain(answer), _plain(one)) for one in wanted), default=0.0)


def entity_counts(predicted: Sequence[str], wanted: Sequence[str]) -> tuple[int, int, int]:
    """Entities of one text that were found with type and both ends, that were predicted, that there are."""
    said, true = set(entities(predicted)), set(entities(wanted))
    return len(said & true), len(said), len(true)


def f1_from_counts(found: int, predicted: int, wanted: int) -> float | None:
    """F1 from counts; None when there is nothing to find and nothing was predicted."""
    return 2 * found / (predicted + wanted) if predicted + wanted else None


def _mean_ranks(values: Array) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def _confusion(predicted: Array, wanted: Array) -> npt.NDArray[np.int64]:
    """How often each class that occurs (row) was called which (column)."""
    classes, indices = np.unique(np.concatenate([wanted, predicted]), return_inverse=True)
    table = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(table, (indices[: len(wanted)], indices[len(wanted) :]), 1)
    return table


def _plain(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _word_f1(answer: str, wanted: str) -> float:
    said, true = answer.split(), wanted.split()
    if not said or not true:
        return float(said == true)
    common = sum((Counter(said) & Counter(true)).values())
    return 2 * common / (len(said) + len(true))
