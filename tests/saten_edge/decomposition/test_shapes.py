"""Factorizations of a train's two sides: exact, balanced, padded, and all of them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saten_edge.decomposition.shapes import (
    balanced_factors,
    balanced_sides,
    mode_dims,
    searched_sides,
    side_dims,
)


class TestBalanced:
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


class TestPadded:
    @given(rows=st.integers(1, 60_000), columns=st.integers(1, 4000), order=st.integers(2, 6))
    def test_padded_dims_cover_the_shape_and_are_balanced(self, rows, columns, order):
        for side, size in zip(balanced_sides((rows, columns), order), (rows, columns), strict=True):
            assert all(math.prod(dims) >= size for dims in side)
            assert max(side[-1]) <= 2 * min(side[-1])

    @pytest.mark.parametrize(
        ("shape", "padded"),
        [((30522, 384), (131, 233)), ((50257, 768), (206, 244)), ((97, 384), (7, 14))],
    )
    def test_known_sizes(self, shape, padded):
        assert balanced_sides(shape, 4)[0][-1] == padded
        between = range(shape[0], math.prod(padded))
        assert all(max(balanced_factors(n, 2)) > 2 * min(balanced_factors(n, 2)) for n in between)

    def test_a_size_with_balanced_factors_is_not_padded(self):
        ins, outs = mode_dims((384, 1536), 4)
        assert balanced_sides((384, 1536), 4) == ((ins,), (outs,))


class TestSearched:
    @pytest.mark.parametrize(("n", "parts"), [(12, 2), (36, 3), (60, 2), (97, 2), (360, 3), (1, 2), (2, 2)])
    def test_every_exact_factorization_is_there(self, n, parts):
        brute = {dims for dims in itertools.product(range(2, n + 1), repeat=parts) if math.prod(dims) == n}
        assert {dims for dims in side_dims(n, parts) if math.prod(dims) == n} == brute

    @given(n=st.integers(1, 60_000), parts=st.integers(1, 3))
    def test_padded_ones_are_of_like_size_and_pad_little(self, n, parts):
        found = side_dims(n, parts)
        assert len(set(found)) == len(found)
        for dims in found:
            assert len(dims) == parts
            assert n <= math.prod(dims) <= 1.02 * n
            assert math.prod(dims) == n or max(dims) <= 8 * min(dims)

    @pytest.mark.parametrize("n", [30522, 49152, 50257, 128_256])
    def test_every_padded_pair_has_one_like_it_and_no_better_one(self, n):
        """Brute force over all first dims; alike is the same twentieth of a doubling of size, roughly."""
        found = {dims[0]: math.prod(dims) for dims in side_dims(n, 2)}
        pairs = ((a, -(-n // a)) for a in range(2, n))
        pairs = [(a, b) for a, b in pairs if max(a, b) <= 8 * min(a, b) and n <= a * b <= 1.02 * n]
        assert len(found) < 100 < len(pairs)  # few are tried of many
        for a, b in pairs:
            near = [size for first, size in found.items() if a / 1.05 < first < a * 1.05]
            assert near, (a, b)
            assert min(near) <= a * b

    @pytest.mark.parametrize("shape", [(30522, 384), (50257, 768), (97, 24), (13, 7), (1, 8), (384, 1536)], ids=str)
    @pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
    def test_the_balanced_dims_come_first_and_the_out_side_runs_the_other_way(self, shape, order):
        found, balanced = searched_sides(shape, order), balanced_sides(shape, order)
        assert [side[: len(first)] for side, first in zip(found, balanced, strict=True)] == [*balanced]
        parts = (order - order // 2, order // 2)
        assert set(side_dims(shape[0], parts[0])) <= set(found[0])
        assert {tuple(reversed(dims)) for dims in side_dims(shape[1], parts[1])} <= set(found[1])
