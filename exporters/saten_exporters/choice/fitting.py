"""From measured times to prices: non-negative least squares of the relative error, of all families at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saten_exporters.choice.prices import Rates
from saten_exporters.forms import Work

__all__ = ["Sample", "Steps", "fitted", "nonnegative_least_squares", "predicted_ns"]

Steps = tuple[tuple[str, Work], ...]  # (precision, step)
Array = NDArray[np.float64]

PRICES = ("call", "weight", "mac", "move")
_LEAST_CALL_NS = 1.0  # a family whose time is lost in the noise still has a price
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Sample:
    """What a form of these steps took on `rows` rows."""

    steps: Steps
    rows: int
    ns: float


def fitted(samples: Sequence[Sample]) -> dict[str, Rates]:
    """Prices, by "family precision", that make the relative errors of all predictions small at once."""
    keys = sorted({key for sample in samples for key, _ in _amounts(sample)})
    column = {key: len(PRICES) * k for k, key in enumerate(keys)}
    matrix = np.zeros((len(samples), len(PRICES) * len(keys)))
    for line, sample in zip(matrix, samples, strict=True):
        for key, amounts in _amounts(sample):
            line[column[key] : column[key] + len(PRICES)] += np.divide(amounts, sample.ns)
    scale = matrix.max(axis=0, initial=0)
    scale[scale == 0] = 1
    solution = nonnegative_least_squares(matrix / scale, np.ones(len(samples))) / scale
    return {key: _rates(solution[column[key] : column[key] + len(PRICES)]) for key in keys}


def predicted_ns(prices: Mapping[str, Rates], sample: Sample) -> float:
    """What the prices say that a sample takes."""
    return sum(prices[f"{step.family} {precision}"].time_ns(step, sample.rows) for precision, step in sample.steps)


def nonnegative_least_squares(matrix: NDArray[Any], target: NDArray[Any]) -> Array:
    """The x ≥ 0 that makes ‖matrix x − target‖₂ least, (columns).

    Bro and de Jong, A fast non-negativity-constrained least squares algorithm, Journal of Chemometrics 11 (1997):
    Lawson and Hanson's active sets, on the normal equations.
    """
    gram, right = matrix.T @ matrix, matrix.T @ target
    x = np.zeros(len(right))
    free = np.zeros(len(right), bool)
    limit = _TOLERANCE * max(float(np.abs(right).max(initial=0)), 1.0)
    for _ in range(10 * len(right)):
        gradient = np.where(free, -np.inf, right - gram @ x)
        best = int(np.argmax(gradient))
        if gradient[best] <= limit:
            break
        free[best] = True
        x, free = _feasible(gram, right, x, free)
    return x


def _feasible(gram: Array, right: Array, x: Array, free: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    """The least squares over the free columns; those that would be negative are fixed at 0, one step at a time."""
    free = free.copy()
    while True:
        wanted = np.zeros_like(x)
        wanted[free] = np.linalg.lstsq(gram[np.ix_(free, free)], right[free], rcond=None)[0]
        negative = free & (wanted <= 0)
        if not negative.any():
            return wanted, free
        step = float(np.min(x[negative] / (x[negative] - wanted[negative] + np.finfo(float).tiny)))
        x = np.maximum(x + step * (wanted - x), 0)
        blocked = negative & (x <= _TOLERANCE * max(float(x.max()), 1e-300))
        free &= ~(blocked if blocked.any() else negative)
        x[~free] = 0


def _amounts(sample: Sample) -> list[tuple[str, tuple[float, ...]]]:
    """(family precision, what is multiplied by each of its prices) of every step."""
    return [
        (f"{step.family} {precision}", (step.calls, step.weights, sample.rows * step.macs, sample.rows * step.moved))
        for precision, step in sample.steps
    ]


def _rates(values: Array) -> Rates:
    call, *units = (float(f"{value:.3g}") for value in values)
    return Rates(max(call, _LEAST_CALL_NS), *units)
