"""Decomposition at a byte budget: never above it, exact where it can be, refused in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from saten_edge.decompose import Decomposition, Recipe, decompose
from saten_edge.residual import EqualRows, Grouped, Pattern, Unstructured, WholeRows, scatter
from saten_edge.tt import full_train_numel, mode_dims
from saten_runtime.errors import BudgetError, CheckpointError, ShapeError

PATTERNS = {"grouped": Grouped(4), "rows": WholeRows(24), "unstructured": Unstructured(), "equal rows": EqualRows()}
SHAPE = (32, 24)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def moments(inputs: int) -> torch.Tensor:
    x = normal(3 * inputs, inputs, seed=5) * torch.logspace(0, -1, inputs, dtype=torch.float64)
    return x.T @ x / len(x)


def rebuilt(parts: Decomposition, pattern: Pattern) -> torch.Tensor:
    where = pattern.positions(parts.residual.indices, parts.train.shape)
    return parts.train.dense() + scatter(parts.residual.values, where, parts.train.shape)


def stored_bytes(parts: Decomposition, pattern: Pattern) -> int:
    """What the tensors take: cores or folded factors, values, indices."""
    a, b = parts.train.factors()
    factors = max(sum(core.numel() for core in parts.train.cores), a.numel() + b.numel())
    if isinstance(pattern, WholeRows):  # looked up through a slot for each row, and a row of zeros
        rows = (parts.residual.nnz + 24) * 4 + 32 * 2 if parts.residual.nnz else 0
        return 4 * factors + rows
    indices = parts.residual.indices.values() if parts.residual.nnz else ()
    return 4 * (factors + parts.residual.nnz) + sum(t.numel() * t.element_size() for t in indices)


def planted(pattern: Pattern, rank: int, count: int) -> torch.Tensor:
    """A matrix of this rank plus `count` large entries in the pattern."""
    low = normal(SHAPE[0], rank) @ normal(rank, SHAPE[1], seed=1)
    chosen = pattern.select(normal(*SHAPE, seed=2).square(), count)
    residual = pattern.extract(5 * normal(*SHAPE, seed=3).sign(), chosen)
    return low + scatter(residual.values, pattern.positions(residual.indices, SHAPE), SHAPE)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("weighing", ["frobenius", "moments"])
@settings(max_examples=12, phases=[Phase.generate])  # an example takes too long to be shrunk
@given(
    budget=st.integers(1000, 4000),
    order=st.integers(2, 6),
    eps=st.sampled_from([0.0, 0.3]),
    share=st.sampled_from([None, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
def test_the_budget_is_never_exceeded_and_the_bytes_are_true(name, weighing, budget, order, eps, share, seed):
    pattern, matrix = PATTERNS[name], normal(*SHAPE, seed=seed)
    recipe = Recipe(order=order, eps=eps, rounds=2, share=share)
    parts = decompose(matrix, budget, pattern, recipe, moments(32) if weighing == "moments" else None)
    assert parts.bytes == stored_bytes(parts, pattern) <= budget


@pytest.mark.parametrize("weighing", ["frobenius", "diagonal", "full"])
def test_the_error_is_that_of_the_output(weighing):
    matrix, pattern = normal(*SHAPE), Grouped(4)
    sigma = moments(32)
    given_moments = {"frobenius": None, "diagonal": sigma.diagonal().clone(), "full": sigma}[weighing]
    full = {"frobenius": torch.eye(32), "diagonal": torch.diag(sigma.diagonal()), "full": sigma}[weighing]
    root = torch.linalg.cholesky(full.double()).T
    parts = decompose(matrix, 1500, pattern, Recipe(rounds=2), given_moments)
    assert parts.error == pytest.approx(relative(root, matrix, rebuilt(parts, pattern)), rel=1e-6)
    parts.residual.values.view(-1)[0] += 1
    assert parts.error != pytest.approx(relative(root, matrix, rebuilt(parts, pattern)), rel=1e-6)


def relative(root: torch.Tensor, matrix: torch.Tensor, approximation: torch.Tensor) -> float:
    return float((root @ (matrix - approximation)).norm() / (root @ matrix).norm())


def test_calibration_lowers_the_error_it_measures():
    """The twin of the above: what is best for Frobenius is not what is best for the inputs seen."""
    matrix, pattern, sigma = normal(*SHAPE), Grouped(4), moments(32)
    root = torch.linalg.cholesky(sigma).T
    blind, seeing = (decompose(matrix, 1500, pattern, Recipe(), seen) for seen in (None, sigma))
    errors = [relative(root, matrix, rebuilt(parts, pattern)) for parts in (blind, seeing)]
    assert errors[1] < 0.99 * errors[0]


@pytest.mark.parametrize("name", ["grouped", "unstructured"])
def test_a_planted_low_rank_and_sparse_sum_is_recovered(name):
    pattern, rank, count = PATTERNS[name], 2, 2 * SHAPE[1]
    matrix = planted(pattern, rank, count)
    train_bytes = 4 * full_train_numel(mode_dims(SHAPE, 4), rank)
    budget = train_bytes + pattern.bytes(SHAPE, count)
    parts = decompose(matrix, budget, pattern, Recipe(rounds=50, share=train_bytes / budget))
    assert parts.train.bond == rank
    assert parts.error < 1e-6


def test_the_planted_sum_is_not_recovered_without_room_for_it():
    pattern, rank, count = Unstructured(), 2, 2 * SHAPE[1]
    matrix = planted(pattern, rank, count)
    train_bytes = 4 * full_train_numel(mode_dims(SHAPE, 4), rank)
    budget = train_bytes + pattern.bytes(SHAPE, count) - 6
    parts = decompose(matrix, budget, pattern, Recipe(rounds=50, share=train_bytes / budget))
    assert parts.residual.nnz == count - 1
    assert parts.error > 1e-3


def test_the_share_is_measured():
    """A matrix of low rank asks for the train, scattered entries for the residual."""
    low_rank = normal(*SHAPE[:1], 6) @ normal(6, SHAPE[1], seed=1)
    scattered = scatter(
        torch.ones(60, dtype=torch.float64), torch.randperm(768, generator=torch.Generator().manual_seed(1))[:60], SHAPE
    )
    shares = [decompose(matrix, 1500, Unstructured(), Recipe(rounds=1)).share for matrix in (low_rank, scattered)]
    assert shares[0] > shares[1]


def test_a_given_share_is_kept():
    parts = decompose(normal(*SHAPE), 1500, Unstructured(), Recipe(share=0.6))
    assert parts.share == 0.6
    assert 4 * parts.train.numel() <= 0.6 * 1500


def test_more_rounds_do_no_harm():
    matrix = planted(Unstructured(), 2, 48)
    once, often = (decompose(matrix, 1000, Unstructured(), Recipe(rounds=rounds, share=0.5)) for rounds in (1, 6))
    assert often.error < once.error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_parts_have_the_dtype_of_the_matrix(dtype):
    parts = decompose(normal(*SHAPE).to(dtype), 1500, Grouped(4), Recipe(rounds=1))
    assert {core.dtype for core in parts.train.cores} | {parts.residual.values.dtype} == {dtype}


def test_the_matrix_is_left_alone():
    matrix = normal(*SHAPE)
    before = matrix.clone()
    decompose(matrix, 1500, Grouped(4), Recipe(rounds=2), moments(32))
    assert torch.equal(matrix, before)


def test_a_matrix_of_zeros_has_no_error():
    parts = decompose(torch.zeros(SHAPE), 1500, Grouped(4), Recipe(rounds=2))
    assert parts.error == 0
    assert not rebuilt(parts, Grouped(4)).any()


@pytest.mark.parametrize(("bad", "count"), [([float("nan")], 1), ([float("inf"), float("-inf"), float("nan")], 3)])
def test_values_that_are_no_numbers_are_refused_with_their_count(bad, count):
    matrix = normal(*SHAPE)
    matrix.view(-1)[: len(bad)] = torch.tensor(bad)
    with pytest.raises(CheckpointError, match=rf"shape \(32, 24\) holds {count} values that are NaN or infinite"):
        decompose(matrix, 1500, Grouped(4), Recipe())


@pytest.mark.parametrize("budget", [0, 50, 351])
def test_a_budget_below_a_train_of_bond_one_is_refused(budget):
    with pytest.raises(BudgetError, match=rf"{budget} bytes for a matrix of 32 × 24 .*raise --budget"):
        decompose(normal(*SHAPE), budget, Grouped(4), Recipe())


def test_a_budget_of_bond_one_is_met():
    """The smallest train leaves no room for a residual; the shares that leave room for one are not affordable."""
    smallest = 4 * full_train_numel(mode_dims(SHAPE, 4), 1)
    parts = decompose(normal(*SHAPE), smallest + 40, Grouped(4), Recipe())
    assert parts.train.bond == 1
    assert parts.bytes <= smallest + 40


def test_a_group_that_does_not_divide_is_refused():
    with pytest.raises(ShapeError, match="24 outputs cannot be grouped by 7"):
        decompose(normal(*SHAPE), 1500, Grouped(7), Recipe())
