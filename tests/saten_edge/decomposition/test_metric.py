"""The metric against the mean squared output error it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saten_edge.decomposition.metric import Metric

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
    scaled = Metric.from_moments(MOMENTS).norm(WRONG) ** 2
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
    scaled = Metric.from_moments(moments).norm(WRONG) ** 2
    assert scaled != pytest.approx(output_energy(SEEN, WRONG), rel=0, abs=RELATIVE)


def test_a_diagonal_is_the_full_matrix_with_that_diagonal():
    diagonal = MOMENTS.diagonal().clone()
    short, long = Metric.from_moments(diagonal), Metric.from_moments(torch.diag(diagonal))
    assert long.norm(WRONG) == pytest.approx(short.norm(WRONG), rel=64 * EPS)
    assert short.root is not None
    assert long.root is not None
    assert float((torch.diag(short.root) - long.root).norm()) <= 64 * EPS * float(short.root.norm())


def test_without_moments_it_is_frobenius():
    assert Metric.from_moments(None).norm(WRONG) == pytest.approx(float(WRONG.norm()), rel=64 * EPS)


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
    metric = Metric.from_moments(moments)
    assert metric.root is not None
    assert torch.isfinite(metric.root).all()
    assert np.isfinite(metric.norm(MATRIX))


@pytest.mark.parametrize("shape", [(INPUTS, OUTPUTS), (INPUTS, 2 * INPUTS), (INPUTS, INPUTS)], ids=str)
@pytest.mark.parametrize("moments", [None, MOMENTS.diagonal().clone(), MOMENTS], ids=["none", "diagonal", "full"])
def test_the_gram_matrix_has_the_squared_singular_values(shape, moments):
    matrix = normal(*shape, seed=4)
    full = torch.eye(INPUTS, dtype=torch.float64) if moments is None else moments
    root = np.linalg.cholesky((torch.diag(full) if full.ndim == 1 else full).numpy()).T
    expected = np.linalg.svd(root @ matrix.numpy(), compute_uv=False) ** 2
    gram = Metric.from_moments(moments).gram(matrix)
    assert gram.shape == (min(shape), min(shape))
    assert np.abs(np.linalg.eigvalsh(gram.numpy())[::-1] - expected).max() <= 64 * EPS * INPUTS * expected.sum()


class TestFit:
    """Against one dense least-squares problem per column."""

    KEPT = torch.from_numpy(np.random.default_rng(7).random((INPUTS, OUTPUTS)) < 0.4)

    def best(self, root: np.ndarray) -> np.ndarray:
        solution = np.zeros((INPUTS, OUTPUTS))
        for column in range(OUTPUTS):
            rows = self.KEPT[:, column].numpy()
            target = root @ MATRIX[:, column].numpy()
            solution[rows, column] = np.linalg.lstsq(root[:, rows], target, rcond=None)[0]
        return solution

    @pytest.mark.parametrize("block", [1 << 20, 18], ids=["one block", "blocks of two columns"])
    def test_the_values_are_nearly_those_of_least_squares(self, block, monkeypatch):
        monkeypatch.setattr("saten_edge.decomposition.linalg.BLOCK_VALUES", block)
        root, metric = np.linalg.cholesky(MOMENTS.numpy()).T, Metric.from_moments(MOMENTS)
        fitted, best = metric.fit(MATRIX, self.KEPT), self.best(root)
        assert not fitted[~self.KEPT].any()
        left = metric.norm(MATRIX - fitted)
        least = float(np.linalg.norm(root @ (MATRIX.numpy() - best)))
        assert least * (1 - 1e-9) <= left <= least * 1.005  # the gradient fell to 3 %, see FIT_TOLERANCE
        assert metric.norm(MATRIX - MATRIX * self.KEPT) > 1.02 * least  # the twin: values taken as they are

    def test_outputs_that_keep_the_same_inputs_have_the_values_that_each_would_have_alone(self):
        moments = MOMENTS + 0.1 * MOMENTS.diagonal().mean() * torch.eye(INPUTS, dtype=torch.float64)
        kept = torch.zeros(INPUTS, OUTPUTS + 1, dtype=torch.bool)
        kept[[0, 3, 4, 7], :3] = kept[[1, 2, 7, 8], 3:] = True
        metric, rest = Metric.from_moments(moments), normal(INPUTS, OUTPUTS + 1, seed=5)
        alone, together = metric.fit(rest, kept), metric.fit(rest, kept, 3)
        assert not together[~kept].any()
        assert metric.norm(rest - together) == pytest.approx(metric.norm(rest - alone), rel=0.005)  # see FIT_TOLERANCE
        assert metric.norm(rest - together.roll(3, 1)) > 1.02 * metric.norm(rest - alone)  # the twin: other groups

    def test_without_correlations_every_value_is_its_own(self):
        for moments in (None, MOMENTS.diagonal().clone()):
            assert torch.equal(Metric.from_moments(moments).fit(MATRIX, self.KEPT), MATRIX * self.KEPT)

    @pytest.mark.parametrize("moments", [None, MOMENTS.diagonal().clone(), MOMENTS], ids=["none", "diagonal", "full"])
    def test_the_gain_is_what_the_best_value_of_one_entry_wins(self, moments):
        metric, gains = Metric.from_moments(moments), Metric.from_moments(moments).gain(MATRIX)
        before = metric.norm(MATRIX) ** 2
        for entry in [(0, 0), (3, 2), (INPUTS - 1, OUTPUTS - 1)]:
            kept = torch.zeros(INPUTS, OUTPUTS, dtype=torch.bool)
            kept[entry] = True
            won = before - metric.norm(MATRIX - metric.fit(MATRIX, kept)) ** 2
            assert won == pytest.approx(float(gains[entry]), rel=0, abs=1e-12 * before)
