"""How good a model's outputs are on data it was not trained on. None of these decides anything."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from saten_runtime.accuracy import metrics

__all__ = [
    "answer_metrics",
    "class_metrics",
    "embedding_metrics",
    "entity_metrics",
    "language_metrics",
    "top_metrics",
    "value_metrics",
]

Array = NDArray[np.float64]


def class_metrics(logits: Array, labels: Array) -> dict[str, float | None]:
    """Of logits (n, classes) and labels (n,): what a bundle's evaluation computes, see `accuracy.metrics`."""
    return metrics.class_metrics(logits.argmax(1), labels)


def top_metrics(logits: Array, labels: Array) -> dict[str, float | None]:
    """Of logits (n, classes) and labels (n,): the share of first guesses that are right."""
    return {"top_1": metrics.accuracy(logits.argmax(1), labels)}


def value_metrics(logits: Array, labels: Array) -> dict[str, float | None]:
    """Of logits (n, 1) and real labels (n,): Pearson's and Spearman's correlation, None where one side is constant."""
    values = logits[:, 0]
    return {"pearson": metrics.pearson(values, labels), "spearman": metrics.spearman(values, labels)}


def language_metrics(losses: Array, counts: Array) -> dict[str, float]:
    """Of summed negative log likelihoods and their numbers of tokens: the perplexity."""
    mean = losses.sum() / counts.sum()
    return {"perplexity": math.exp(min(mean, 700.0))}  # e^700 is the largest a float holds


def embedding_metrics(distances: Array, counts: Array) -> dict[str, float]:
    """Of summed cosine distances to the teacher and their numbers of texts: the mean cosine."""
    return {"cosine": float(1 - distances.sum() / counts.sum())}


def entity_metrics(entities: Array, words: Array) -> dict[str, float | None]:
    """Of each example the entities found, predicted and wanted, and the words that are right, and all."""
    found, predicted, wanted = (int(count) for count in entities.sum(0))
    right, count = (int(total) for total in words.sum(0))
    return {
        "entity_f1": metrics.f1_from_counts(found, predicted, wanted),
        "accuracy": right / count if count else None,
    }


def answer_metrics(places: Array, scores: Array) -> dict[str, float]:
    """Of each window its example's number and the score of its answer, and that answer's exact match and F1.

    An example's answer is that of its window with the largest score.
    """
    best: dict[float, tuple[float, int]] = {}
    for row, (number, score) in enumerate(places.tolist()):
        best[number] = max(best.get(number, (-math.inf, row)), (score, row))
    chosen = scores[[row for _, row in best.values()]]
    return dict(zip(("exact_match", "f1"), chosen.mean(0).tolist(), strict=True))
