"""Factorizations of a train's two sides: exact, balanced, padded, and all of them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saten_edge.decomposition.shapes import all_dims, balanced_dims, balanced_factors, mode_dims
from saten_runtime.errors import ShapeError, UsageError


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
        for ins, outs in balanced_dims((rows, columns), order):
            assert math.prod(ins) >= rows
            assert math.prod(outs) >= columns
        sides = zip(balanced_dims((rows, columns), order)[-1], (rows, columns), strict=True)
        assert all(max(dims) <= 2 * min(dims) for dims, _ in sides)

    @pytest.mark.parametrize(
        ("shape", "padded"),
        [((30522, 384), (131, 233)), ((50257, 768), (206, 244)), ((97, 384), (7, 14))],
    )
    def test_known_sizes(self, shape, padded):
        assert balanced_dims(shape, 4)[-1][0] == padded
        between = range(shape[0], math.prod(padded))
        assert all(max(balanced_factors(n, 2)) > 2 * min(balanced_factors(n, 2)) for n in between)

    def test_a_size_with_balanced_factors_is_not_padded(self):
        assert balanced_dims((384, 1536), 4) == [mode_dims((384, 1536), 4)]


class TestAll:
    @pytest.mark.parametrize(("shape", "order"), [((12, 8), 4), ((24, 6), 3), ((36, 30), 5), ((6, 4), 2)])
    def test_they_are_those_of_brute_force(self, shape, order):
        def brute(n: int, parts: int) -> set[tuple[int, ...]]:
            return {dims for dims in itertools.product(range(2, n + 1), repeat=parts) if math.prod(dims) == n}

        parts = (order - order // 2, order // 2)
        expected = set(itertools.product(brute(shape[0], parts[0]), brute(shape[1], parts[1])))
        found = all_dims(shape, order)
        assert set(found) == expected
        assert len(found) == len(expected)

    @pytest.mark.parametrize(
        ("shape", "side"), [((97, 24), "97 inputs"), ((24, 97), "97 outputs"), ((1, 8), "1 inputs")]
    )
    def test_a_prime_side_is_refused(self, shape, side):
        with pytest.raises(ShapeError, match=f"{side} have no 2 factors above 1; lower --order or leave out"):
            all_dims(shape, 4)

    def test_too_many_are_refused(self):
        with pytest.raises(
            UsageError, match=r"--shape-search: 55440 × 55440 has .* expected at most 5000; lower --order"
        ):
            all_dims((55440, 55440), 6)
