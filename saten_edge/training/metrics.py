"""How good a model's outputs are on data it was not trained on. None of these decides anything."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_metrics", "embedding_metrics", "language_metrics", "top_metrics", "value_metrics"]

Array = NDArray[np.float64]


def class_metrics(logits: Array, labels: Array) -> dict[str, float]:
    """Of logits (n, classes) and labels (n,): accuracy, F1 (of class 1 of two, else the mean) and Matthews."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    found = logits.argmax(1)
    average = "binary" if logits.shape[1] == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(labels, found)),
        "f1": float(f1_score(labels, found, average=average, zero_division=0.0)),
        "matthews": float(matthews_corrcoef(labels, found)),
    }


def top_metrics(logits: Array, labels: Array) -> dict[str, float]:
    """Of logits (n, classes) and labels (n,): the share of first guesses that are right."""
    return {"top_1": class_metrics(logits, labels)["accuracy"]}


def value_metrics(logits: Array, labels: Array) -> dict[str, float | None]:
    """Of logits (n, 1) and real labels (n,): Pearson's and Spearman's correlation, None where one side is constant."""
    from scipy.stats import pearsonr, spearmanr

    values = logits[:, 0]
    if np.ptp(values) == 0 or np.ptp(labels) == 0:
        return {"pearson": None, "spearman": None}
    return {
        "pearson": float(pearsonr(values, labels).statistic),
        "spearman": float(spearmanr(values, labels).statistic),
    }


def language_metrics(losses: Array, counts: Array) -> dict[str, float]:
    """Of summed negative log likelihoods and their numbers of tokens: the perplexity."""
    mean = losses.sum() / counts.sum()
    return {"perplexity": math.exp(min(mean, 700.0))}  # e^700 is the largest a float holds


def embedding_metrics(distances: Array, counts: Array) -> dict[str, float]:
    """Of summed cosine distances to the teacher and their numbers of texts: the mean cosine."""
    return {"cosine": float(1 - distances.sum() / counts.sum())}
