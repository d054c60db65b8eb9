"""Decomposition at a byte budget: never above it, exact where it can be, refused in words."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from saten_edge.decomposition.decompose import Decomposition, decompose
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import (
    EqualRows,
    Grouped,
    NOfM,
    NoResidual,
    Pattern,
    Unstructured,
    WholeRows,
    scatter,
)
from saten_edge.decomposition.shapes import full_train_numel, mode_dims
from saten_runtime.errors import BudgetError, CheckpointError, ShapeError, UsageError

PATTERNS = {
    "grouped": Grouped(4),
    "rows": WholeRows(24),
    "unstructured": Unstructured(),
    "equal rows": EqualRows(),
    "2:4": NOfM(2, 4),
    "none": NoResidual(),
}
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
    """What the tensors take: cores, values, indices."""
    factors = sum(core.numel() for core in parts.train.cores)
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
    train=st.sampled_from(["bond", "tt-svd"]),
    split=st.sampled_from([{}, {"share": 0.5}, {"share": 0.9}, {"density": 0.05}]),
    seed=st.integers(0, 1000),
)
def test_the_budget_is_never_exceeded_and_the_bytes_are_true(name, weighing, budget, order, train, split, seed):
    pattern, matrix = PATTERNS[name], normal(*SHAPE, seed=seed)
    recipe = Recipe(order=order, train=train, rounds=2, **({} if name == "none" else split))
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
    budget = train_bytes + pattern.bytes(SHAPE, count) - 5
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


class TestPureCases:
    """svd, tt and sparse are the same code with one part absent, checked against dense numpy."""

    @pytest.mark.parametrize("weighing", ["frobenius", "full"])
    def test_svd_is_eckart_young(self, weighing):
        matrix, sigma = normal(*SHAPE), moments(32)
        root = torch.linalg.cholesky(sigma).T if weighing == "full" else torch.eye(32, dtype=torch.float64)
        seen = sigma if weighing == "full" else None
        parts = decompose(matrix, 1500, NoResidual(), Recipe(order=2), seen)
        rank = 1500 // 4 // sum(SHAPE)
        assert (parts.train.bond, parts.residual.nnz, parts.share) == (rank, 0, 1.0)
        singular = np.linalg.svd((root @ matrix).numpy(), compute_uv=False)
        least = np.linalg.norm(singular[rank:]) / np.linalg.norm(singular)
        assert parts.error == pytest.approx(least, rel=1e-9)
        assert parts.error < np.linalg.norm(singular[rank - 1 :]) / np.linalg.norm(singular)

    def test_sparse_keeps_the_largest_entries(self):
        matrix = normal(*SHAPE)
        parts = decompose(matrix, 1500, Unstructured(), Recipe(share=0))
        count = (1500 - 2 * SHAPE[1]) // 5
        assert (parts.train.bond, parts.residual.nnz, parts.share) == (0, count, 0.0)
        lost = np.sort(np.abs(matrix.numpy()).reshape(-1))[:-count]
        assert parts.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(matrix.numpy()), rel=1e-12)
        assert int((rebuilt(parts, Unstructured()) != 0).sum()) == count

    def test_tt_has_low_inner_ranks_and_no_residual(self):
        matrix = torch.kron(normal(4, 4), normal(8, 6, seed=1)) + 0.01 * normal(*SHAPE, seed=2)
        parts = decompose(matrix, 1000, NoResidual(), Recipe(train="tt-svd"))
        assert parts.residual.nnz == 0
        assert parts.bytes == 4 * sum(core.numel() for core in parts.train.cores) <= 1000
        assert parts.error == pytest.approx(relative(torch.eye(32).double(), matrix, parts.train.dense()), rel=1e-6)

    @pytest.mark.parametrize("name", PATTERNS)
    @settings(max_examples=15, phases=[Phase.generate])
    @given(budget=st.integers(700, 2800), seed=st.integers(0, 1000), noise=st.floats(0, 2), weighed=st.booleans())
    def test_a_measured_split_is_never_behind_the_pure_cases(self, name, budget, seed, noise, weighed):
        low = normal(SHAPE[0], 4, seed=seed) @ normal(4, SHAPE[1], seed=seed + 1)
        matrix = low + noise * normal(*SHAPE, seed=seed + 2) ** 3
        seen, pattern = moments(32) if weighed else None, PATTERNS[name]
        best = decompose(matrix, budget, pattern, Recipe(rounds=2), seen).error
        shares = [1.0] if name == "none" else [1.0, 0.0]
        for share in shares:
            try:
                pure = decompose(matrix, budget, pattern, Recipe(rounds=2, share=share), seen).error
            except BudgetError:
                continue  # too little for one row of each
            assert best <= pure * (1 + 1e-9)


class TestSizesGiven:
    def test_eps_and_density_need_no_budget(self):
        matrix = normal(*SHAPE)
        parts = decompose(matrix, None, Unstructured(), Recipe(rounds=1, eps=0.5, density=0.1))
        assert parts.residual.nnz == int(0.1 * matrix.numel())
        assert float((matrix - parts.train.dense()).norm()) <= 0.5 * float(matrix.norm()) * (1 + 1e-9)
        assert parts.bytes == stored_bytes(parts, Unstructured())

    def test_a_budget_below_them_is_refused(self):
        with pytest.raises(BudgetError, match=r"1500 bytes .* are too few for what --eps and --density ask for"):
            decompose(normal(*SHAPE), 1500, Unstructured(), Recipe(eps=0.1, density=0.1))

    def test_density_fixes_the_residual_and_the_train_takes_the_rest(self):
        few, many = (decompose(normal(*SHAPE), 1900, Unstructured(), Recipe(density=d)) for d in (0.05, 0.2))
        assert [few.residual.nnz, many.residual.nnz] == [38, 153]
        assert few.train.bond > many.train.bond > 0

    def test_eps_fixes_the_train_and_the_residual_takes_the_rest(self):
        rough, fine = (decompose(normal(*SHAPE), 2900, Unstructured(), Recipe(rounds=1, eps=e)) for e in (0.95, 0.85))
        assert rough.train.numel() < fine.train.numel()
        assert rough.residual.nnz > fine.residual.nnz > 0
        assert max(rough.bytes, fine.bytes) <= 2900

    def test_a_density_that_leaves_nothing_for_a_train_is_a_sparse_matrix(self):
        parts = decompose(normal(*SHAPE), 1100, Unstructured(), Recipe(density=0.25))
        assert (parts.train.bond, parts.residual.nnz) == (0, 192)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"density": 1.5}, "--density 1.5: expected a number from 0 to 1"),
            ({"share": -0.1}, "--share -0.1: expected a number from 0 to 1"),
            ({"eps": float("nan")}, "--eps nan: expected a number from 0 to 1"),
            ({"share": 0.5, "density": 0.1}, "--share and --density or --eps both say how the bytes are split"),
            ({"share": 0.5, "eps": 0.1}, "--share and --density or --eps both say how the bytes are split"),
            ({"eps": 0.5, "train": "bond"}, "--eps is the error of a TT-SVD; leave out --train bond"),
            ({"train": "cross"}, "no train 'cross'; there are: bond, tt-svd"),
            ({"shapes": "odd"}, "no shapes 'odd'; there are: balanced, search"),
        ],
    )
    def test_options_that_do_not_fit_are_refused(self, options, message):
        with pytest.raises(UsageError, match=message):
            Recipe(**options)

    def test_a_density_without_pattern_is_refused(self):
        with pytest.raises(UsageError, match=r"--density 0.1 needs a residual, but --pattern is none"):
            decompose(normal(*SHAPE), 1500, NoResidual(), Recipe(density=0.1))

    def test_no_budget_at_all_is_refused(self):
        with pytest.raises(UsageError, match="without --budget both --eps and --density are needed"):
            decompose(normal(*SHAPE), None, Grouped(4), Recipe(density=0.1))


class TestSearch:
    @pytest.mark.parametrize("train", ["bond", "tt-svd"])
    def test_searched_dims_are_no_worse_than_balanced_ones(self, train):
        matrix = torch.kron(normal(2, 8), normal(16, 3, seed=1)) + 0.3 * normal(*SHAPE, seed=2)
        given_shapes = (Recipe(train=train, shapes=shapes, share=1) for shapes in ("balanced", "search"))
        balanced, searched = (decompose(matrix, 1200, Grouped(4), recipe) for recipe in given_shapes)
        assert searched.error <= balanced.error * (1 + 1e-9)
        assert searched.train.shape == SHAPE

    @pytest.mark.parametrize("train", ["bond", "tt-svd"])
    def test_a_prime_side_is_padded(self, train):
        parts = decompose(normal(31, 24), 1500, Grouped(4), Recipe(train=train, shapes="search", share=1))
        assert parts.train.shape == (31, 24)
        assert parts.bytes <= 1500


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("shape", [(1, 24), (32, 1), (31, 24), (37, 53)], ids=str)
@pytest.mark.parametrize("train", ["bond", "tt-svd"])
def test_awkward_shapes(name, shape, train):
    pattern = {"grouped": Grouped(1), "rows": WholeRows(shape[1])}.get(name, PATTERNS[name])
    matrix, budget = normal(*shape), 4 * sum(shape) + 300
    parts = decompose(matrix, budget, pattern, Recipe(train=train, rounds=2))
    assert parts.bytes <= budget
    assert parts.train.shape == shape
    assert parts.error == pytest.approx(
        relative(torch.eye(shape[0]).double(), matrix, rebuilt(parts, pattern)), abs=1e-6
    )


def test_large_matrices_are_worked_on_in_float32_alike(monkeypatch):
    matrix, sigma = planted(Unstructured(), 4, 60), moments(32)
    exact = decompose(matrix, 1500, Unstructured(), Recipe(), sigma)
    monkeypatch.setattr("saten_edge.decomposition.decompose.LARGE_BYTES", 0)
    monkeypatch.setattr("saten_edge.decomposition.linalg.BLOCK_VALUES", 100)
    large = decompose(matrix, 1500, Unstructured(), Recipe(), sigma)
    assert large.error == pytest.approx(exact.error, rel=0.02)  # a block of columns is fitted at a time
    assert large.bytes <= 1500


MEMORY = """
import resource, sys, torch
from saten_edge.decomposition.decompose import decompose
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import pattern_named

torch.set_num_threads(1)
rows, columns, kind, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
pattern, matrix = pattern_named(name, kind, group=32, width=columns), torch.randn(rows, columns)
decompose(torch.randn(128, 128), 16384, pattern_named(name, kind, group=32, width=128), Recipe(rounds=1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decompose(matrix, matrix.numel(), pattern, Recipe(rounds=1))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (matrix.numel() * 4))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "columns", "kind", "name"),
    [(65536, 512, "embedding", "grouped"), (65536, 512, "embedding", "unstructured")],
)
def test_the_memory_is_that_of_a_few_copies(rows, columns, kind, name):
    """Large enough for the fixed buffers of the linear algebra library to be small beside it."""
    command = [sys.executable, "-c", MEMORY, str(rows), str(columns), kind, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) <= 4


@pytest.mark.parametrize("budget", [0, 50, 99])
def test_a_budget_below_a_train_of_bond_one_is_refused(budget):
    with pytest.raises(BudgetError, match=rf"{budget} bytes for a matrix of 32 × 24 .*raise --budget"):
        decompose(normal(*SHAPE), budget, Grouped(4), Recipe())


def test_a_budget_of_bond_one_is_met():
    """The smallest train leaves no room for a residual; the shares that leave room for one are not affordable."""
    smallest = 4 * full_train_numel(mode_dims(SHAPE, 4), 1)
    parts = decompose(normal(*SHAPE), smallest + 40, Grouped(4), Recipe(share=0.95))
    assert parts.train.bond == 1
    assert parts.bytes <= smallest + 40


def test_a_group_that_does_not_divide_is_refused():
    with pytest.raises(ShapeError, match="24 outputs cannot be grouped by 7"):
        decompose(normal(*SHAPE), 1500, Grouped(7), Recipe())
