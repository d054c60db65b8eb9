"""The metric against the mean squared output error it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saten_edge.metric import Metric

INPUTS, OUTPUTS, SAMPLES = 9, 5, 40
EPS = np.finfo(np.float64).eps


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


MATRIX, WRONG = normal(INPUTS, OUTPUTS), normal(INPUTS, OUTPUTS, seed=1)
SEEN = normal(SAMPLES, INPUTS, seed=2) * torch.logspace(0, -2, INPUTS, dtype=torch.float64)
MOMENTS = SEEN.T @ SEEN / SAMPLES
# Σ^½ comes from an eigendecomposition, whose rounding is eps·√n·‖Σ‖ in the square
RELATIVE = 64 * EPS * np.sqrt(INPUTS) * float(MOMENTS.norm() * MATRIX.norm() ** 2)


def output_energy(seen: torch.Tensor, error: torch.Tensor) -> float:
    """The mean over samples of ‖x E‖²."""
    return float(np.mean(np.sum((seen.numpy() @ error.numpy()) ** 2, axis=1)))


def test_the_norm_is_the_mean_squared_output():
    scaled = float(Metric.from_moments(MOMENTS).scale(WRONG).norm()) ** 2
    assert scaled == pytest.approx(output_energy(SEEN, WRONG), rel=0, abs=RELATIVE)


@pytest.mark.parametrize("damage", ["permuted", "zeroed", "dropped"])
def test_the_oracle_notices_wrong_moments(damage):
    moments = MOMENTS.clone()
    if damage == "permuted":
        moments = moments.flip(0, 1)
    elif damage == "zeroed":
        moments.zero_()
    else:
        moments[0, 1] = moments[1, 0] = 0
    scaled = float(Metric.from_moments(moments).scale(WRONG).norm()) ** 2
    assert scaled != pytest.approx(output_energy(SEEN, WRONG), rel=0, abs=RELATIVE)


def test_a_diagonal_is_the_full_matrix_with_that_diagonal():
    diagonal = MOMENTS.diagonal().clone()
    short = Metric.from_moments(diagonal).scale(WRONG)
    long = Metric.from_moments(torch.diag(diagonal)).scale(WRONG)
    assert float((short - long).norm()) <= 64 * EPS * float(short.norm())


def test_without_moments_it_is_frobenius():
    assert torch.equal(Metric.from_moments(None).scale(WRONG), WRONG)


@pytest.mark.parametrize("moments", [None, MOMENTS.diagonal().clone(), MOMENTS], ids=["none", "diagonal", "full"])
def test_relative_error_is_the_ratio_of_output_errors(moments):
    full = torch.eye(INPUTS, dtype=torch.float64) if moments is None else moments
    root = torch.linalg.cholesky(torch.diag(full) if full.ndim == 1 else full).T  # Σ = RᵀR, so ‖Σ^½ E‖ = ‖R E‖
    expected = float((root @ (MATRIX - WRONG)).norm() / (root @ MATRIX).norm())
    metric = Metric.from_moments(moments)
    assert metric.relative_error(MATRIX, WRONG) == pytest.approx(expected, rel=1e-9)
    assert metric.relative_error(MATRIX, MATRIX) == 0
    assert metric.relative_error(MATRIX, torch.zeros_like(MATRIX)) == pytest.approx(1, rel=1e-12)


def test_a_matrix_of_zeros_has_no_error():
    zeros = torch.zeros(INPUTS, OUTPUTS, dtype=torch.float64)
    assert Metric.from_moments(MOMENTS).relative_error(zeros, zeros) == 0


def test_moments_that_rounding_made_indefinite_stay_real():
    dependent = normal(2, INPUTS)
    moments = dependent.T @ dependent - 1e-12 * torch.eye(INPUTS, dtype=torch.float64)
    assert torch.isfinite(Metric.from_moments(moments).scale(MATRIX)).all()
