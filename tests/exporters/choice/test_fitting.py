"""Prices from times: what they were made of is found again, and no price is below zero."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from saten_exporters.choice.fitting import Sample, fitted, nonnegative_least_squares, predicted_ns
from saten_exporters.choice.prices import Rates
from saten_exporters.forms import Work

RATES = {"product fp32": Rates(500.0, 0.02, 0.01, 0.1), "add fp32": Rates(200.0, 0.0, 0.0, 0.3)}


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(40):
        macs, weights, moved = (int(amount) for amount in rng.integers(1, 10**5, 3))
        steps = (("fp32", Work("product", macs, weights, moved)), ("fp32", Work("add", moved=moved)))
        for rows in (1, 8, 32, 128):
            empty = Sample(steps, rows, 0.0)
            made.append(dataclasses.replace(empty, ns=predicted_ns(RATES, empty)))
    return made


def test_prices_are_found_again_from_times_made_of_them() -> None:
    made = samples()
    found = fitted(made)
    errors = [predicted_ns(found, sample) / sample.ns - 1 for sample in made]
    assert np.abs(errors).max() < 0.01  # prices are kept with three digits


def test_other_times_have_other_prices() -> None:
    slower = [dataclasses.replace(sample, ns=2 * sample.ns) for sample in samples()]
    assert fitted(slower)["product fp32"].mac == pytest.approx(2 * RATES["product fp32"].mac, rel=0.01)


def test_a_family_that_takes_no_time_still_has_a_price() -> None:
    free = [Sample((("fp32", Work("add", moved=k)),), 1, 1e-9) for k in (1, 2)]
    assert fitted(free)["add fp32"].call == 1.0


@pytest.mark.parametrize("shape", [(30, 5), (60, 20), (20, 20), (8, 12)])
def test_the_least_squares_are_the_least(shape: tuple[int, int]) -> None:
    """By the conditions of Karush, Kuhn and Tucker, which hold at the least and nowhere else."""
    rng = np.random.default_rng(sum(shape))
    matrix, target = rng.standard_normal(shape), rng.standard_normal(shape[0])
    x = nonnegative_least_squares(matrix, target)
    gradient = matrix.T @ (matrix @ x - target)
    small = 1e-8 * np.abs(matrix.T @ target).max()
    assert (x >= 0).all()
    assert (gradient >= -small).all()
    assert np.abs(gradient[x > 0]).max(initial=0) <= small
    assert (x == 0).any()  # the twin: the plain least squares lie elsewhere
    plain = np.linalg.lstsq(matrix, target, rcond=None)[0]
    assert (plain < 0).any()
