"""Tensor trains against dense numpy; every oracle has a twin that is fed a wrong train and must notice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.shapes import balanced_sides, full_train_numel, mode_dims, searched_sides
from saten_edge.decomposition.tt import (
    TensorTrain,
    TtSvd,
    rounded,
    tensor_train,
    truncated_factors,
    tt_svd,
)
from saten_runtime.errors import BudgetError, ShapeError

EPS = np.finfo(np.float64).eps
DIMS = [((6,), (8,)), ((6,), (2, 4)), ((3, 4), (5, 2)), ((2, 3, 4), (4, 3, 2)), ((4, 3, 2), (2, 3, 2))]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def decaying(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values fall by a factor of 0.7 each."""
    u, _, vh = np.linalg.svd(np.random.default_rng(seed).standard_normal((rows, columns)), full_matrices=False)
    return torch.from_numpy((u * 0.7 ** np.arange(min(rows, columns))) @ vh)


def dense_entry_by_entry(train: TensorTrain) -> np.ndarray:
    """The definition: M[i_1 … i_p, o_1 … o_q] = G_1[i_1] … G_{p+q}[o_q], as a product of small matrices."""
    cores = [core.numpy() for core in train.cores]
    sizes = [core.shape[1] for core in cores]
    flat = np.array(
        [
            np.linalg.multi_dot([np.ones((1, 1)), *(core[:, i] for core, i in zip(cores, index, strict=True))])[0, 0]
            for index in itertools.product(*map(range, sizes))
        ]
    )
    return flat.reshape(math.prod(sizes[: train.inputs]), math.prod(sizes[train.inputs :]))


def rounding(train: TensorTrain) -> float:
    """Frobenius bound of one contraction's rounding: k·eps·‖cores‖, k the longest sum times their number."""
    longest = max(core.shape[0] * core.shape[1] for core in train.cores)
    return len(train.cores) * longest * EPS * math.prod(float(core.norm()) for core in train.cores)


def splitting_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Frobenius bound of the rounding of the SVDs that split A B exactly: a few times eps·√n·‖A‖‖B‖."""
    return 8 * EPS * math.sqrt(a.numel() + b.numel()) * float(a.norm() * b.norm())


def same(found: torch.Tensor, expected: np.ndarray, bound: float) -> bool:
    return bool(np.linalg.norm(found.numpy() - expected) <= bound)


class TestTensorTrain:
    @pytest.mark.parametrize("dims", DIMS, ids=str)
    def test_dense_is_the_product_of_core_slices(self, dims):
        train = tensor_train(normal(math.prod(dims[0]), 4), normal(4, math.prod(dims[1]), seed=1), dims)
        assert same(train.dense(), dense_entry_by_entry(train), rounding(train))

    @pytest.mark.parametrize("dims", DIMS[1:], ids=str)
    @pytest.mark.parametrize("damage", ["reversed", "zeroed", "dropped"])
    def test_the_oracle_notices_a_wrong_train(self, dims, damage):
        train = tensor_train(normal(math.prod(dims[0]), 4), normal(4, math.prod(dims[1]), seed=1), dims)
        cores = [core.clone() for core in train.cores]
        if damage == "reversed":
            cores[-1] = cores[-1].flip(1)
        elif damage == "zeroed":
            cores[0].zero_()
        else:
            cores[1][0, 0, 0] = 0
        wrong = TensorTrain(tuple(cores), train.inputs)
        assert not same(wrong.dense(), dense_entry_by_entry(train), rounding(train))

    def test_shape_ranks_and_bond(self):
        train = TensorTrain((torch.zeros(1, 3, 5), torch.zeros(5, 4, 2), torch.zeros(2, 7, 1)), inputs=2)
        assert (train.shape, train.ranks, train.bond) == ((12, 7), [5, 2], 2)

    def test_numel_is_that_of_the_cores(self):
        train = TensorTrain((torch.zeros(1, 3, 9), torch.zeros(9, 4, 1), torch.zeros(1, 2, 1)), inputs=2)
        assert train.numel() == 27 + 36 + 2

    def test_padding_is_counted_and_never_addressed(self):
        cores = (torch.ones(1, 3, 2), torch.ones(2, 4, 3), torch.ones(3, 5, 1))
        train = TensorTrain(cores, 2, true_shape=(11, 4))
        assert (train.shape, train.padded_shape) == ((11, 4), (12, 5))
        assert train.numel() == 6 + 24 + 15
        whole = TensorTrain(cores, 2).dense()
        assert torch.equal(train.dense(), whole[:11, :4])
        assert [tuple(factor.shape) for factor in train.factors()] == [(11, 3), (3, 4)]

    @pytest.mark.parametrize("true_shape", [(13, 4), (11, 6)])
    def test_cores_over_fewer_rows_than_the_matrix_are_refused(self, true_shape):
        with pytest.raises(ShapeError, match=r"cores over \(12, 5\), fewer than the"):
            TensorTrain((torch.ones(1, 12, 3), torch.ones(3, 5, 1)), 1, true_shape)

    def test_a_train_that_is_absent_is_a_matrix_of_zeros(self):
        train = TensorTrain.absent((5, 3), torch.ones(1, dtype=torch.float64))
        assert (train.shape, train.ranks, train.bond, train.numel()) == ((5, 3), [0], 0, 0)
        assert torch.equal(train.dense(), torch.zeros(5, 3, dtype=torch.float64))

    @pytest.mark.parametrize(
        ("shapes", "inputs", "message"),
        [
            ([(1, 3, 2), (2, 3)], 1, r"core 1: expected 3 axes .* found shape \(2, 3\)"),
            ([(2, 3, 2), (2, 3, 1)], 1, "core 0: left rank 2, but the core before it ends in 1"),
            ([(1, 3, 2), (2, 3, 4), (3, 3, 1)], 1, "core 2: left rank 3, but the core before it ends in 4"),
            ([(1, 3, 2), (2, 3, 5)], 1, "core 1: the last right rank is 5, expected 1"),
            ([(1, 3, 2), (2, 3, 1)], 0, "0 input cores of 2; expected at least one on each side"),
            ([(1, 3, 2), (2, 3, 1)], 2, "2 input cores of 2; expected at least one on each side"),
            ([(1, 2, 1)] * 17, 1, "1 input cores of 17; expected at least one on each side, and 16 at most"),
            ([(1, 3, 0), (0, 3, 1), (1, 2, 1)], 1, r"core 0: shape \(1, 3, 0\) holds no value"),
            ([(1, 0, 2), (2, 3, 1)], 1, r"core 0: shape \(1, 0, 2\) holds no value"),
        ],
    )
    def test_a_chain_that_does_not_fit_is_refused_naming_the_core(self, shapes, inputs, message):
        with pytest.raises(ShapeError, match=message):
            TensorTrain(tuple(torch.zeros(shape) for shape in shapes), inputs)

    def test_cores_of_two_dtypes_are_refused(self):
        with pytest.raises(ShapeError, match=r"core 1: dtype torch.float64, but core 0 has torch.float32"):
            TensorTrain((torch.zeros(1, 3, 2), torch.zeros(2, 3, 1, dtype=torch.float64)), 1)


class TestSplitting:
    @pytest.mark.parametrize("dims", DIMS, ids=str)
    @pytest.mark.parametrize("rank", [1, 3, 6])
    def test_without_eps_the_product_survives_in_its_axis_order(self, dims, rank):
        a, b = normal(math.prod(dims[0]), rank), normal(rank, math.prod(dims[1]), seed=1)
        train = tensor_train(a, b, dims)
        assert same(train.dense(), a.numpy() @ b.numpy(), splitting_error(a, b))
        assert tuple(core.shape[1] for core in train.cores) == (*dims[0], *dims[1])
        assert train.inputs == len(dims[0])

    def test_a_train_over_mirrored_output_dims_is_noticed(self):
        a, b = normal(12, 3), normal(3, 10, seed=1)
        train = tensor_train(a, b, ((3, 4), (5, 2)))
        swapped = train.dense().reshape(12, 5, 2).permute(0, 2, 1).reshape(12, 10)
        assert not same(swapped, a.numpy() @ b.numpy(), splitting_error(a, b))

    def test_a_matrix_of_zeros_stays_finite(self):
        zeros = torch.zeros(24, 24, dtype=torch.float64)
        train = tensor_train(*truncated_factors(zeros, 3), ((2, 3, 4), (4, 3, 2)))
        assert all(torch.isfinite(core).all() for core in train.cores)
        assert not train.dense().any()

    def test_lost_singular_values_leave_cores_that_fit_float32(self):
        """A rank-1 matrix asked for rank 6: rounding noise is divided by roots of vanishing singular values."""
        a, b = normal(24, 1) @ torch.ones(1, 6, dtype=torch.float64), normal(6, 24, seed=1)
        train = tensor_train(a, b, ((2, 3, 4), (4, 3, 2)))
        assert all(torch.isfinite(core.float()).all() for core in train.cores)
        assert same(train.dense(), (a @ b).numpy(), splitting_error(a, b))


def squared(matrix: np.ndarray) -> float:
    """Bound of a squared singular value read off a Gram matrix: a few times eps·√n·‖M‖²."""
    return float(64 * EPS * math.sqrt(matrix.size) * np.linalg.norm(matrix) ** 2)


PADDED = [((3, 4), (5, 2)), ((4, 4), (5, 2)), ((4, 4), (4, 4)), ((13,), (3, 4)), ((3, 3, 2), (3, 2, 2))]


class TestTtSvd:
    """Every bound holds for the matrix of zeros too, and for dims that pad it."""

    def test_a_product_of_kronecker_factors_has_ranks_of_one(self):
        """u₁⊗u₂ · v₁⊗v₂ needs no rank above one; what rounding adds is √eps, as singular values come from squares."""
        u, v = torch.kron(normal(4, 1), normal(3, 1, seed=1)), torch.kron(normal(1, 2, seed=2), normal(1, 5, seed=3))
        train = tt_svd(u @ v, ((4, 3), (2, 5)), eps=1e-6)
        assert train.ranks == [1, 1, 1]
        assert same(train.dense(), (u @ v).numpy(), 1e-6 * float((u @ v).norm()))

    @pytest.mark.parametrize("dims", [((4, 4), (16,)), ((16,), (4, 4)), ((16,), (16,))], ids=str)
    @pytest.mark.parametrize("eps", [0.05, 0.2, 0.5])
    def test_the_bond_is_the_smallest_whose_discarded_singular_values_fit(self, dims, eps):
        matrix = decaying(16, 16, seed=3)
        train = tt_svd(matrix, dims, eps=eps)
        allowed = eps * float(matrix.norm()) / math.sqrt(len(train.cores) - 1)
        singular = np.linalg.svd(matrix.numpy(), compute_uv=False)
        assert np.linalg.norm(singular[train.bond :]) <= allowed
        assert np.linalg.norm(singular[train.bond - 1 :]) > allowed

    @pytest.mark.parametrize("eps", [0.05, 0.2, 0.5])
    def test_the_error_of_one_split_is_what_it_discards(self, eps):
        matrix = decaying(16, 12, seed=3)
        train = tt_svd(matrix, ((16,), (12,)), eps=eps)
        discarded = np.linalg.norm(np.linalg.svd(matrix.numpy(), compute_uv=False)[train.bond :])
        found = float((train.dense() - matrix).norm())
        assert abs(found**2 - discarded**2) <= squared(matrix.numpy())
        assert found > 0

    @settings(max_examples=80)
    @given(dims=st.sampled_from(PADDED), eps=st.floats(0.01, 0.9), decay=st.floats(0, 3), seed=st.integers(0, 9999))
    def test_the_error_is_within_eps_and_above_the_best_of_each_split(self, dims, eps, decay, seed):
        """Above: eps. Below: at each split, the best matrix of the rank that was kept (Eckart–Young)."""
        matrix = normal(11, 9, seed=seed) * torch.logspace(0, -decay, 11, dtype=torch.float64)[:, None]
        train = tt_svd(matrix, dims, eps=eps)
        assert train.shape == (11, 9)
        assert train.dims == dims
        found = float((train.dense() - matrix).norm()) ** 2
        assert found <= (eps * float(matrix.norm())) ** 2 + squared(matrix.numpy())
        padded = np.zeros(train.padded_shape)
        padded[:11, :9] = matrix.numpy()
        sizes = np.cumprod([core.shape[1] for core in train.cores])
        for rows, kept in zip(sizes[:-1], train.ranks, strict=True):
            unfolded = padded.reshape(rows, -1)
            assert kept <= min(unfolded.shape)
            tail = np.linalg.svd(unfolded, compute_uv=False)[kept:]
            assert found >= np.linalg.norm(tail) ** 2 - squared(matrix.numpy())

    def test_the_oracle_notices_a_rank_too_few(self):
        matrix = decaying(16, 16, seed=3)
        train = tt_svd(matrix, ((16,), (16,)), eps=0.1)
        a, b = train.factors()
        poorer = tensor_train(a[:, :-1], b[:-1], train.dims)
        assert (
            float((poorer.dense() - matrix).norm())
            > 0.1 * float(matrix.norm())
            > float((train.dense() - matrix).norm())
        )

    @settings(max_examples=40)
    @given(dims=st.sampled_from(PADDED), values=st.integers(20, 250), seed=st.integers(0, 9999))
    def test_a_size_is_never_exceeded_and_a_larger_one_is_no_worse(self, dims, values, seed):
        matrix = decaying(11, 9, seed=seed)
        errors = []
        for size in (values, 2 * values, 4000):
            train = tt_svd(matrix, dims, values=size)
            assert train.numel() == sum(core.numel() for core in train.cores) <= size
            errors.append(float((train.dense() - matrix).norm()))
        assert errors[1] <= errors[0] * 1.2 + 1e-9  # one eps for all splits: nearly, not strictly, falling
        assert errors[2] <= 1e-4 * float(matrix.norm())

    def test_a_size_below_ranks_of_one_is_refused(self):
        with pytest.raises(BudgetError, match=r"13 values for a train over .*, whose ranks of 1 take 14"):
            tt_svd(normal(12, 10), ((3, 4), (5, 2)), values=13)

    @pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (7, 13)], ids=str)
    @pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
    def test_awkward_sizes_work_at_every_order(self, shape, order):
        matrix = normal(*shape)
        for dims in itertools.product(*balanced_sides(shape, order)):
            train = tt_svd(matrix, dims, eps=1e-4)
            assert train.shape == shape
            assert same(train.dense(), matrix.numpy(), 1e-4 * float(matrix.norm()))

    def test_zeros_stay_finite(self):
        train = tt_svd(torch.zeros(24, 24, dtype=torch.float64), ((2, 3, 4), (4, 3, 2)), eps=0.1)
        assert all(torch.isfinite(core).all() for core in train.cores)
        assert not train.dense().any()

    def test_a_large_matrix_is_split_in_blocks_alike(self, monkeypatch):
        matrix = decaying(24, 20, seed=5)
        whole = tt_svd(matrix, ((4, 6), (5, 4)), eps=0.2)
        monkeypatch.setattr("saten_edge.decomposition.linalg.BLOCK_VALUES", 50)
        blocked = tt_svd(matrix, ((4, 6), (5, 4)), eps=0.2)
        assert blocked.ranks == whole.ranks
        assert same(blocked.dense(), whole.dense().numpy(), math.sqrt(squared(matrix.numpy())))


class TestSearch:
    SIDES = searched_sides((12, 24), 4)

    @staticmethod
    def matrix() -> torch.Tensor:
        return torch.kron(decaying(3, 4, seed=1), decaying(4, 6, seed=2)) + 0.05 * normal(12, 24)

    @pytest.mark.parametrize("eps", [0.1, 0.3, 0.6])
    def test_sides_minimised_apart_give_the_smallest_of_all_products(self, eps):
        """Every pair of dims decomposed on its own, nothing shared."""
        best = TtSvd(self.matrix()).best(self.SIDES, eps=eps)
        alone = [tt_svd(self.matrix(), dims, eps=eps).numel() for dims in itertools.product(*self.SIDES)]
        assert best.numel() == min(alone)
        assert best.numel() < max(alone)

    @pytest.mark.parametrize("values", [60, 120, 200])
    def test_within_a_size_no_product_needs_a_smaller_eps(self, values):
        matrix = self.matrix()
        best, svd = TtSvd(matrix).best(self.SIDES, values=values), TtSvd(matrix)
        assert best.numel() <= values
        needed = {dims: svd.eps_within(dims, values) for dims in itertools.product(*self.SIDES)}
        first = tt_svd(matrix, (self.SIDES[0][0], self.SIDES[1][0]), values=values)
        found = (float((train.dense() - matrix).norm()) for train in (best, first))
        assert next(found) <= next(found) * (1 + 1e-9)
        if best.dims != first.dims:
            assert needed[best.dims] <= min(needed.values()) * 1.001
        assert min(needed.values()) < 0.99 * max(needed.values())

    def test_a_planted_train_is_found(self):
        planted = ((5, 7), (13, 11))
        shapes = [(1, 5, 7), (7, 7, 6), (6, 13, 6), (6, 11, 1)]
        train = TensorTrain(tuple(normal(a, n * b, seed=9 + a).reshape(a, n, b) for a, n, b in shapes), 2)
        svd, sides = TtSvd(train.dense()), searched_sides((35, 143), 4)
        assert svd.smallest(sides, 1e-6) == planted
        others = (tuple(dims for dims in sides[0] if dims != planted[0]), sides[1])  # without it none is as small
        assert svd.numel(svd.smallest(others, 1e-6), 1e-6) > svd.numel(planted, 1e-6)

    @pytest.mark.parametrize("shape", [(97, 24), (31, 13), (101, 64)], ids=str)
    @pytest.mark.parametrize("eps", [0.2, 0.5])
    def test_primes_are_padded_and_never_worse_than_balanced(self, shape, eps):
        svd = TtSvd(decaying(*shape))
        searched, balanced = (svd.best(make(shape, 4), eps=eps) for make in (searched_sides, balanced_sides))
        assert searched.shape == shape
        assert searched.numel() <= balanced.numel()
        assert svd.error(searched) <= eps * svd.norm * (1 + 1e-9)

    @pytest.mark.parametrize(
        "shape",
        [
            (30522, 24),
            (30011, 24),
            (50257, 24),
            pytest.param((30522, 384), marks=pytest.mark.slow),
        ],
        ids=str,
    )
    def test_a_vocabulary_takes_few_evaluations_and_no_more_values_than_balanced(self, shape, monkeypatch):
        falling = torch.arange(1, shape[1] + 1, dtype=torch.float32) ** -0.35
        svd, searched = TtSvd(normal(*shape).float() * falling), searched_sides(shape, 4)
        split, splits = svd._split, []
        monkeypatch.setattr(svd, "_split", lambda *how: splits.append(how) or split(*how))
        sizes = [svd.numel(svd.smallest(sides, 0.5), 0.5) for sides in (searched, balanced_sides(shape, 4))]
        assert sizes[0] <= sizes[1]
        together = math.prod(map(len, searched))
        assert {how[:2] for how in splits} == {(0, dims) for dims in searched[0]} | {
            (1, tuple(reversed(dims))) for dims in searched[1]
        }
        assert len(set(splits)) == len(splits) < together / 3  # none twice, and either side apart

    def test_a_larger_eps_takes_no_more_values(self):
        svd = TtSvd(self.matrix())
        sizes = [svd.numel(svd.smallest(self.SIDES, eps), eps) for eps in (0.05, 0.1, 0.2, 0.4, 0.8)]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] > sizes[-1]


class TestRounding:
    @pytest.mark.parametrize("dims", DIMS[1:], ids=str)
    @pytest.mark.parametrize("eps", [1e-12, 0.1, 0.5])
    def test_the_error_stays_within_eps_and_the_ranks_fall(self, dims, eps):
        a, b = normal(math.prod(dims[0]), 5), normal(5, math.prod(dims[1]), seed=1)
        train = tensor_train(a, b, dims)
        lower = rounded(train, eps)
        found = float((lower.dense() - train.dense()).norm())
        assert found <= eps * float(train.dense().norm()) + splitting_error(a, b)
        assert all(new <= old for new, old in zip(lower.ranks, train.ranks, strict=True))
        sizes = np.cumprod([core.shape[1] for core in train.cores])[:-1]
        for rows, kept in zip(sizes, lower.ranks, strict=True):
            tail = np.linalg.svd(train.dense().numpy().reshape(rows, -1), compute_uv=False)[kept:]
            assert found >= np.linalg.norm(tail) - splitting_error(a, b)

    def test_a_sum_of_equal_trains_is_rounded_to_the_ranks_of_one(self):
        train = tensor_train(normal(12, 2), normal(2, 10, seed=1), ((3, 4), (5, 2)))
        first, *middle, last = train.cores
        doubled = [torch.cat([first, first], 2)]
        doubled += [torch.cat([torch.cat([c, 0 * c], 2), torch.cat([0 * c, c], 2)]) for c in middle]
        double = TensorTrain((*doubled, torch.cat([last, last])), 2)
        back = rounded(double, 1e-12)
        assert back.ranks == train.ranks
        assert same(back.dense(), 2 * train.dense().numpy(), 1e-10 * float(train.dense().norm()))

    def test_padding_stays_cropped(self):
        train = tt_svd(decaying(11, 9), ((4, 3), (5, 2)), eps=0.01)
        assert rounded(train, 0.1).shape == (11, 9)


class TestTruncatedFactors:
    @staticmethod
    def whitened_best(matrix: np.ndarray, root: np.ndarray, rank: int) -> float:
        """The least ‖Σ^½ (M − L)‖_F of any L of this rank: the discarded singular values of Σ^½ M."""
        return float(np.linalg.norm(np.linalg.svd(root @ matrix, compute_uv=False)[rank:]))

    @staticmethod
    def metric_and_root(kind: str, inputs: int) -> tuple[Metric, np.ndarray]:
        if kind == "identity":
            return Metric.from_moments(None), np.eye(inputs)
        if kind == "diagonal":
            moments = normal(inputs, seed=9).abs() + 0.01
            return Metric.from_moments(moments), np.diag(np.sqrt(moments.numpy()))
        x = normal(3 * inputs, inputs, seed=9) * torch.logspace(0, -2, inputs, dtype=torch.float64)
        values, vectors = np.linalg.eigh((x.T @ x).numpy())
        return Metric.from_moments(x.T @ x), (vectors * np.sqrt(values)) @ vectors.T

    @pytest.mark.parametrize("kind", ["identity", "diagonal", "full"])
    @pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)], ids=str)
    @pytest.mark.parametrize("rank", [1, 3, 6])
    def test_no_factors_of_this_rank_are_nearer(self, kind, shape, rank):
        matrix = normal(*shape)
        metric, root = self.metric_and_root(kind, shape[0])
        a, b = truncated_factors(matrix, rank, metric)
        assert (a.shape, b.shape) == ((shape[0], rank), (rank, shape[1]))
        found = float(np.linalg.norm(root @ (matrix - a @ b).numpy()))
        best = self.whitened_best(matrix.numpy(), root, rank)
        # the factors come from an eigendecomposition of the squared matrix: its rounding is eps·√n·‖·‖ in the square
        squared = 8 * EPS * math.sqrt(matrix.numel()) * np.linalg.norm(root @ matrix.numpy()) ** 2
        assert best**2 - squared <= found**2 <= best**2 + squared

    def test_the_oracle_notices_the_optimum_of_another_metric(self):
        matrix = normal(12, 7)
        _, root = self.metric_and_root("full", 12)
        plain = truncated_factors(matrix, 3)
        found = float(np.linalg.norm(root @ (matrix - plain[0] @ plain[1]).numpy()))
        assert found > 1.01 * self.whitened_best(matrix.numpy(), root, 3)

    def test_full_rank_recovers_the_matrix(self):
        matrix = normal(8, 5)
        a, b = truncated_factors(matrix, 5)
        assert same(a @ b, matrix.numpy(), 8 * EPS * math.sqrt(40) * float(a.norm() * b.norm()))

    def test_magnitudes_are_balanced(self):
        a, b = truncated_factors(1000 * normal(20, 10), 4)
        assert torch.allclose(a.norm(dim=0), b.norm(dim=1), rtol=1e-10)


class TestSizes:
    @settings(max_examples=60)
    @given(rows=st.integers(2, 40), columns=st.integers(2, 40), order=st.integers(2, 6), data=st.data())
    def test_full_train_numel_is_what_a_train_takes(self, rows, columns, order, data):
        bond = data.draw(st.integers(1, min(rows, columns)))
        dims = mode_dims((rows, columns), order)
        train = tensor_train(normal(rows, bond), normal(bond, columns, seed=1), dims)
        assert train.numel() == full_train_numel(dims, bond) >= bond * (rows + columns)

    @given(order=st.integers(2, 6), bond=st.integers(1, 63))
    def test_full_train_numel_grows_with_the_bond(self, order, bond):
        dims = mode_dims((64, 64), order)
        assert full_train_numel(dims, bond) < full_train_numel(dims, bond + 1)
