"""Tensor trains against dense numpy; every oracle has a twin that is fed a wrong train and must notice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saten_edge.metric import Metric
from saten_edge.tt import (
    TensorTrain,
    balanced_factors,
    full_train_numel,
    mode_dims,
    tensor_train,
    truncated_factors,
)
from saten_runtime.errors import ShapeError

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

    def test_numel_is_the_larger_of_cores_and_factors(self):
        cores_larger = TensorTrain((torch.zeros(1, 3, 9), torch.zeros(9, 4, 1), torch.zeros(1, 2, 1)), inputs=2)
        factors_larger = TensorTrain((torch.zeros(1, 3, 1), torch.zeros(1, 4, 2), torch.zeros(2, 2, 1)), inputs=2)
        assert cores_larger.numel() == 27 + 36 + 2
        assert factors_larger.numel() == 2 * (12 + 2)

    @pytest.mark.parametrize(
        ("shapes", "inputs", "message"),
        [
            ([(1, 3, 2), (2, 3)], 1, r"core 1: expected 3 axes .* found shape \(2, 3\)"),
            ([(2, 3, 2), (2, 3, 1)], 1, "core 0: left rank 2, but the core before it ends in 1"),
            ([(1, 3, 2), (2, 3, 4), (3, 3, 1)], 1, "core 2: left rank 3, but the core before it ends in 4"),
            ([(1, 3, 2), (2, 3, 5)], 1, "core 1: the last right rank is 5, expected 1"),
            ([(1, 3, 2), (2, 3, 1)], 0, "0 input cores of 2; expected at least one on each side"),
            ([(1, 3, 2), (2, 3, 1)], 2, "2 input cores of 2; expected at least one on each side"),
        ],
    )
    def test_a_chain_that_does_not_fit_is_refused_naming_the_core(self, shapes, inputs, message):
        with pytest.raises(ShapeError, match=message):
            TensorTrain(tuple(torch.zeros(shape) for shape in shapes), inputs)


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

    def test_a_product_of_kronecker_factors_has_ranks_of_one(self):
        """u₁⊗u₂ · v₁⊗v₂ needs no rank above one, so nothing above is kept when rounding may go."""
        u, v = torch.kron(normal(4, 1), normal(3, 1, seed=1)), torch.kron(normal(1, 2, seed=2), normal(1, 5, seed=3))
        train = tensor_train(u, v, ((4, 3), (2, 5)), eps=1e-12)
        assert train.ranks == [1, 1, 1]
        assert same(train.dense(), (u @ v).numpy(), 2e-12 * float((u @ v).norm()))

    @pytest.mark.parametrize("dims", [((4, 4), (16,)), ((16,), (4, 4))], ids=str)
    @pytest.mark.parametrize("eps", [0.05, 0.2, 0.5])
    def test_the_error_of_one_split_is_what_it_discards(self, dims, eps):
        """One split of a matrix of full rank: the error equals √Σ discarded² of that unfolding, from both sides."""
        matrix = decaying(16, 16, seed=3)
        train = tensor_train(*truncated_factors(matrix, 16), dims, eps)
        unfolded = matrix.numpy().reshape(4, 64) if len(dims[0]) == 2 else matrix.numpy().reshape(64, 4)
        rank = train.ranks[0] if len(dims[0]) == 2 else train.ranks[-1]
        singular = np.linalg.svd(unfolded, compute_uv=False)
        discarded = np.linalg.norm(singular[rank:])
        bound = 64 * EPS * math.sqrt(256) * np.linalg.norm(singular)
        found = float((train.dense() - matrix).norm())
        assert abs(found - discarded) <= bound
        assert found <= eps * np.linalg.norm(singular) + bound
        assert rank == 1 or np.linalg.norm(singular[rank - 1 :]) > eps * np.linalg.norm(singular)

    @settings(max_examples=60)
    @given(
        dims=st.sampled_from(DIMS[1:]),
        rank=st.integers(1, 6),
        eps=st.floats(0.01, 0.7),
        decay=st.floats(0, 3),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_all_splits_together_stay_within_eps_and_above_the_best(self, dims, rank, eps, decay, seed):
        """Above: eps. Below: at each split, the best matrix of the rank that was kept (Eckart–Young)."""
        a, b = normal(math.prod(dims[0]), rank, seed=seed), normal(rank, math.prod(dims[1]), seed=seed + 1)
        a *= torch.logspace(0, -decay, math.prod(dims[0]), dtype=torch.float64)[:, None]
        product = (a @ b).numpy()
        train = tensor_train(a, b, dims, eps)
        found, rounded = float(np.linalg.norm(train.dense().numpy() - product)), 8 * splitting_error(a, b)
        assert found <= eps * np.linalg.norm(product) + rounded
        sizes = np.cumprod([core.shape[1] for core in train.cores])[:-1]
        for rows, kept in zip(sizes, train.ranks, strict=True):
            tail = np.linalg.svd(product.reshape(rows, -1), compute_uv=False)[kept:]
            assert found >= np.linalg.norm(tail) - rounded

    def test_a_matrix_of_zeros_stays_finite(self):
        zeros = torch.zeros(24, 24, dtype=torch.float64)
        for eps in (0.0, 0.1):
            train = tensor_train(*truncated_factors(zeros, 3), ((2, 3, 4), (4, 3, 2)), eps)
            assert all(torch.isfinite(core).all() for core in train.cores)
            assert not train.dense().any()

    def test_lost_singular_values_leave_cores_that_fit_float32(self):
        """A rank-1 matrix asked for rank 6: rounding noise is divided by roots of vanishing singular values."""
        a, b = normal(24, 1) @ torch.ones(1, 6, dtype=torch.float64), normal(6, 24, seed=1)
        train = tensor_train(a, b, ((2, 3, 4), (4, 3, 2)))
        assert all(torch.isfinite(core.float()).all() for core in train.cores)
        assert same(train.dense(), (a @ b).numpy(), splitting_error(a, b))


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


class TestDims:
    @given(n=st.integers(1, 50_000), parts=st.integers(1, 4))
    def test_balanced_factors_multiply_to_n_ascending(self, n, parts):
        factors = balanced_factors(n, parts)
        assert math.prod(factors) == n
        assert len(factors) == parts
        assert list(factors) == sorted(factors)

    @given(n=st.integers(2, 3000))
    def test_two_factors_are_the_most_equal_that_there_are(self, n):
        small, _ = balanced_factors(n, 2)
        assert small == max(d for d in range(1, n + 1) if n % d == 0 and d * d <= n)

    @pytest.mark.parametrize(
        ("n", "parts", "factors"), [(384, 2, (16, 24)), (1536, 2, (32, 48)), (30522, 2, (6, 5087)), (64, 3, (4, 4, 4))]
    )
    def test_known_factors(self, n, parts, factors):
        assert balanced_factors(n, parts) == factors

    @given(rows=st.integers(1, 40_000), columns=st.integers(1, 4000), order=st.integers(2, 6))
    def test_mode_dims_cover_the_shape_with_small_dims_at_the_ends(self, rows, columns, order):
        ins, outs = mode_dims((rows, columns), order)
        assert (math.prod(ins), math.prod(outs)) == (rows, columns)
        assert len(ins) + len(outs) <= order
        assert list(ins) == sorted(ins)
        assert list(outs) == sorted(outs, reverse=True)

    def test_a_vocabulary_with_a_large_prime_factor_stays_one_dim(self):
        assert mode_dims((30522, 384), 4) == ((30522,), (24, 16))

    @settings(max_examples=60)
    @given(rows=st.integers(2, 40), columns=st.integers(2, 40), order=st.integers(2, 6), data=st.data())
    def test_full_train_numel_is_what_a_train_takes(self, rows, columns, order, data):
        bond = data.draw(st.integers(1, min(rows, columns)))
        dims = mode_dims((rows, columns), order)
        train = tensor_train(normal(rows, bond), normal(bond, columns, seed=1), dims)
        assert train.numel() == full_train_numel(dims, bond)

    @given(order=st.integers(2, 6), bond=st.integers(1, 63))
    def test_full_train_numel_grows_with_the_bond(self, order, bond):
        dims = mode_dims((64, 64), order)
        assert full_train_numel(dims, bond) < full_train_numel(dims, bond + 1)
