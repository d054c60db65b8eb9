"""Residual patterns: what is kept, where it sits, and what it weighs in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saten_edge.residual import (
    PATTERNS,
    EqualRows,
    Grouped,
    Pattern,
    Residual,
    Unstructured,
    WholeRows,
    pattern_named,
    scatter,
    slot_bytes,
)
from saten_runtime.errors import ShapeError, UsageError

KINDS = ("grouped", "whole rows", "unstructured", "equal rows")


def pattern_of(kind: str, outputs: int, group: int) -> Pattern:
    return {
        "grouped": Grouped(size=group),
        "whole rows": WholeRows(size=outputs),
        "unstructured": Unstructured(),
        "equal rows": EqualRows(),
    }[kind]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pattern, torch.Tensor]:
    """A pattern and a matrix (in, out) without zeros, its outputs a multiple of the group."""
    group = draw(st.integers(1, 5))
    outputs = group * draw(st.integers(1, 5))
    inputs = draw(st.integers(1, 12))
    matrix = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).uniform(0.5, 1.5, (inputs, outputs))
    return pattern_of(draw(st.sampled_from(KINDS)), outputs, group), torch.from_numpy(matrix)


def shape_of(matrix: torch.Tensor) -> tuple[int, int]:
    return (matrix.shape[0], matrix.shape[1])


def rebuilt(pattern: Pattern, residual: Residual, shape: tuple[int, int]) -> torch.Tensor:
    return scatter(residual.values, pattern.positions(residual.indices, shape), shape)


def bytes_in_memory(pattern: Pattern, residual: Residual, shape: tuple[int, int]) -> int:
    """Of the float32 values and the index tensors that are stored.

    A table of whole rows is looked up through a slot for each row, and its row 0 of values is zeros.
    """
    if not residual.nnz:
        return 0
    values = residual.values.float()
    if isinstance(pattern, WholeRows):
        slots = np.zeros(shape[0], dtype=np.uint16 if shape[0] + 1 <= 2**16 else np.int32)
        return (values.numel() + shape[1]) * values.element_size() + slots.nbytes
    return sum(t.numel() * t.element_size() for t in (values, *residual.indices.values()))


class TestRoundTrip:
    @settings(max_examples=200)
    @given(case=cases(), share=st.floats(0, 1))
    def test_scatter_gives_back_exactly_the_kept_entries(self, case, share):
        pattern, matrix = case
        shape = shape_of(matrix)
        residual = pattern.extract(matrix, pattern.select(matrix.square(), int(share * matrix.numel())))
        back = rebuilt(pattern, residual, shape)
        kept = back != 0
        assert int(kept.sum()) == residual.nnz <= share * matrix.numel()
        assert torch.equal(back, matrix * kept)

    @settings(max_examples=50)
    @given(case=cases(), share=st.floats(0.3, 1))
    def test_one_dropped_value_is_noticed(self, case, share):
        pattern, matrix = case
        residual = pattern.extract(matrix, pattern.select(matrix.square(), int(share * matrix.numel())))
        if residual.nnz:
            residual.values.view(-1)[-1] = 0
            back = rebuilt(pattern, residual, shape_of(matrix))
            assert int((back != 0).sum()) == residual.nnz - 1

    @given(case=cases())
    def test_keeping_everything_gives_the_matrix_back(self, case):
        pattern, matrix = case
        residual = pattern.extract(matrix, pattern.select(matrix.square(), matrix.numel()))
        assert torch.equal(rebuilt(pattern, residual, shape_of(matrix)), matrix)

    @given(case=cases())
    def test_keeping_nothing_gives_zeros_and_no_bytes(self, case):
        pattern, matrix = case
        shape = shape_of(matrix)
        residual = pattern.extract(matrix, pattern.select(matrix.square(), 0))
        assert residual.nnz == 0
        assert not rebuilt(pattern, residual, shape).any()
        assert pattern.bytes(shape, 0) == 0

    @given(case=cases(), share=st.floats(0, 1))
    def test_indices_ascend_strictly_in_each_run(self, case, share):
        pattern, matrix = case
        indices = pattern.select(matrix.square(), int(share * matrix.numel()))
        columns = indices["indices"].to(torch.int64)
        if "indptr" in indices:
            bounds = indices["indptr"].tolist()
            assert bounds[0] == 0
            assert bounds[-1] == columns.numel()
            runs = [columns[start:end] for start, end in itertools.pairwise(bounds)]
        else:
            runs = list(columns)
        assert all(bool((run.diff() > 0).all()) for run in runs)

    def test_the_entries_with_most_energy_are_kept(self):
        energy = torch.tensor([[9.0, 0, 0, 0], [0, 0, 5, 5], [0, 8, 0, 1]])
        kept = {
            "grouped": [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]],
            "whole rows": [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
            "unstructured": [[1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]],
            "equal rows": [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]],
        }
        for kind, expected in kept.items():
            pattern = pattern_of(kind, 4, 2)
            energy[1] += kind == "whole rows"  # (1, 1, 6, 6): the heaviest row
            residual = pattern.extract(torch.ones(3, 4), pattern.select(energy, 4))
            assert rebuilt(pattern, residual, (3, 4)).tolist() == expected, kind


class TestBytes:
    @settings(max_examples=200)
    @given(case=cases(), share=st.floats(0, 1))
    def test_bytes_are_those_of_the_tensors(self, case, share):
        pattern, matrix = case
        shape = shape_of(matrix)
        residual = pattern.extract(matrix, pattern.select(matrix.square(), int(share * matrix.numel())))
        assert pattern.bytes(shape, residual.nnz) == bytes_in_memory(pattern, residual, shape)

    @settings(max_examples=200)
    @given(case=cases(), budget=st.integers(-100, 2000))
    def test_what_is_affordable_stays_within_the_budget(self, case, budget):
        pattern, matrix = case
        shape = shape_of(matrix)
        residual = pattern.extract(matrix, pattern.select(matrix.square(), pattern.affordable(shape, budget)))
        assert bytes_in_memory(pattern, residual, shape) <= max(0, budget)

    @settings(max_examples=200)
    @given(case=cases(), share=st.floats(0.01, 1))
    def test_the_bytes_of_an_entry_count_pay_for_it_and_no_byte_fewer_does(self, case, share):
        pattern, matrix = case
        shape = shape_of(matrix)
        indices = pattern.select(matrix.square(), int(share * matrix.numel()))
        count = pattern.extract(matrix, indices).nnz
        if count and not isinstance(pattern, WholeRows):
            assert pattern.affordable(shape, pattern.bytes(shape, count)) == count
            assert pattern.affordable(shape, pattern.bytes(shape, count) - 1) < count

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_budget_affords_more_than_the_matrix(self, kind):
        assert pattern_of(kind, 8, 4).affordable((6, 8), 10**9) == 48

    def test_column_numbers_take_two_bytes_where_they_fit(self):
        for inputs, dtype in ((2**16, torch.uint16), (2**16 + 1, torch.int32)):
            energy = torch.zeros(inputs, 1)
            energy[-1] = 1
            indices = Unstructured().select(energy, 1)
            assert indices["indices"].dtype == dtype
            assert indices["indptr"].dtype == torch.int32
            assert indices["indices"].to(torch.int64).item() == inputs - 1
            assert Unstructured().bytes((inputs, 1), 1) == 4 + indices["indices"].element_size() + 4 * 2

    def test_block_numbers_take_four_bytes(self):
        assert Grouped(size=2).select(torch.ones(3, 4), 8)["indices"].dtype == torch.int32
        assert Grouped(size=2).bytes((3, 4), 8) == 8 * 4 + 4 * 4

    def test_slots_leave_room_for_the_one_that_means_none(self):
        assert (slot_bytes(2**16 - 1), slot_bytes(2**16)) == (2, 4)


class TestChoice:
    @pytest.mark.parametrize("name", PATTERNS)
    @pytest.mark.parametrize("kind", ["linear", "embedding"])
    def test_every_pattern_has_a_form_for_both_kinds(self, name, kind):
        pattern = pattern_named(name, kind, group=4, width=12)
        residual = pattern.extract(torch.ones(6, 12), pattern.select(torch.ones(6, 12), 24))
        assert residual.nnz == 24
        assert pattern.name == name

    def test_an_unknown_pattern_is_refused_naming_those_there_are(self):
        with pytest.raises(UsageError, match="no residual pattern 'blocky'; there are: grouped, unstructured"):
            pattern_named("blocky", "linear", group=4, width=12)

    def test_a_group_that_does_not_divide_is_refused(self):
        with pytest.raises(ShapeError, match="10 outputs cannot be grouped by 4; choose a --group that divides them"):
            Grouped(size=4).select(torch.ones(3, 10), 10)
        with pytest.raises(ShapeError, match="cannot be grouped"):
            Grouped(size=4).affordable((3, 10), 100)

    def test_the_gradient_of_scatter_reaches_every_value(self):
        values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        weights = torch.arange(6.0).reshape(2, 3)
        (scatter(values, torch.tensor([5, 0, 2]), (2, 3)) * weights).sum().backward()
        assert values.grad is not None
        assert values.grad.tolist() == [5.0, 0.0, 2.0]
