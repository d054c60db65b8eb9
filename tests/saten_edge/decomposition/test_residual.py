"""Residual patterns: what is kept, where it sits, and what it weighs in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saten_edge.decomposition.fitting import fitting
from saten_edge.decomposition.residual import (
    PATTERNS,
    EqualRows,
    Grouped,
    NOfM,
    NoResidual,
    Pattern,
    Residual,
    Unstructured,
    WholeRows,
    pattern_named,
    scatter,
    slot_bytes,
)
from saten_runtime.errors import ShapeError, UsageError

KINDS = ("grouped", "whole rows", "unstructured", "equal rows", "2:4", "1:3", "5:8", "1:8", "1:16", "none")


def pattern_of(kind: str, outputs: int, group: int) -> Pattern:
    return {
        "grouped": Grouped(size=group),
        "whole rows": WholeRows(size=outputs),
        "unstructured": Unstructured(),
        "equal rows": EqualRows(),
        "2:4": NOfM(2, 4),
        "1:3": NOfM(1, 3),
        "5:8": NOfM(5, 8),
        "1:8": NOfM(1, 8),
        "1:16": NOfM(1, 16),
        "none": NoResidual(),
    }[kind]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pattern, torch.Tensor]:
    """A pattern and a matrix (in, out) without zeros, its outputs a multiple of the group."""
    group = draw(st.integers(1, 5))
    outputs = group * draw(st.integers(1, 5))
    inputs = draw(st.integers(1, 12) | st.integers(500, 600))
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

    @given(case=cases(), share=st.floats(0, 1))
    def test_a_mask_is_where_the_selected_entries_sit(self, case, share):
        pattern, matrix = case
        shape, count = shape_of(matrix), int(share * matrix.numel())
        mask, indices = pattern.mask(matrix.square(), count), pattern.select(matrix.square(), count)
        if isinstance(pattern, Unstructured) and shape[0] > 256:  # select has fillers for some of the weakest
            assert sorted(matrix[mask].tolist()) == sorted(matrix.reshape(-1).tolist())[matrix.numel() - count :]
            return
        wanted = torch.zeros(shape, dtype=torch.bool)
        wanted.view(-1)[pattern.positions(indices, shape).reshape(-1)] = True
        assert torch.equal(mask, wanted)

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
        if isinstance(pattern, (NoResidual, NOfM)):
            return
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
        columns = indices.get("outputs", indices.get("indices", torch.zeros(0))).to(torch.int64)
        runs = list(columns) if columns.ndim == 2 else [columns]
        assert all(bool((run.diff() > 0).all()) for run in runs)

    def test_the_entries_with_most_energy_are_kept(self):
        energy = torch.tensor([[9.0, 0, 0, 0], [0, 0, 5, 5], [0, 8, 0, 1]])
        kept = {
            "grouped": [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]],
            "whole rows": [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
            "unstructured": [[1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]],
            "equal rows": [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]],
            "1:3": [[1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]],
            "none": [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
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
        if count and not isinstance(pattern, WholeRows):  # whose rows pay for slots and a row of zeros too
            assert pattern.affordable(shape, pattern.bytes(shape, count)) == count
            assert pattern.affordable(shape, pattern.bytes(shape, count) - 1) < count

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_budget_affords_more_than_the_matrix(self, kind):
        most = {"2:4": (2 + 2) * 8, "1:3": 2 * 8, "5:8": 5 * 8, "1:8": 8, "1:16": 8, "none": 0}
        assert pattern_of(kind, 8, 4).affordable((6, 8), 10**9) == most.get(kind, 48)

    def test_column_numbers_take_two_bytes_where_they_fit(self):
        for inputs, dtype in ((2**16, torch.uint16), (2**16 + 1, torch.int32)):
            energy = torch.zeros(inputs, 1)
            energy[-1] = 1
            indices = Unstructured().encode(energy > 0)  # one entry, and the steps that lead to it
            laid_out = Unstructured().lay_out(Unstructured().extract(energy, indices), (inputs, 1))
            assert laid_out.indices["indices"].dtype == dtype
            assert laid_out.indices["indptr"].dtype == torch.int32
            assert laid_out.indices["indices"].to(torch.int64)[-1].item() == inputs - 1

    def test_the_length_of_a_full_row_takes_two_bytes_where_it_fits(self):
        for inputs, dtype in ((2**16 - 1, torch.uint16), (2**16, torch.int32)):
            indices = Unstructured().select(torch.ones(inputs, 1), inputs)
            assert indices["lengths"].dtype == dtype
            assert indices["lengths"].to(torch.int64).item() == inputs
            assert Unstructured().bytes((inputs, 1), inputs) == 5 * inputs + indices["lengths"].element_size()

    def test_block_numbers_take_four_bytes(self):
        assert Grouped(size=2).select(torch.ones(3, 4), 8)["indices"].dtype == torch.int32
        assert Grouped(size=2).bytes((3, 4), 8) == 8 * 4 + 4 * 4

    def test_slots_leave_room_for_the_one_that_means_none(self):
        assert (slot_bytes(2**16 - 1), slot_bytes(2**16)) == (2, 4)


class TestSteps:
    """The coded steps of the unstructured pattern, against a loop."""

    @staticmethod
    def walk(lengths: list[int], steps: list[int]) -> list[tuple[int, int]]:
        """(input, output) of each stored value."""
        found, at = [], 0
        for output, length in enumerate(lengths):
            column = -1
            for step in steps[at : at + length]:
                column += step + 1
                found.append((column, output))
            at += length
        assert at == len(steps)
        return found

    @settings(max_examples=60)
    @given(
        inputs=st.sampled_from([1, 2, 255, 256, 257, 512, 513, 1500]),
        outputs=st.integers(1, 4),
        density=st.sampled_from([0, 0.001, 0.01, 0.3, 1]),
        seed=st.integers(0, 9999),
    )
    def test_the_entries_and_fillers_are_where_the_steps_lead(self, inputs, outputs, density, seed):
        kept = torch.from_numpy(np.random.default_rng(seed).random((inputs, outputs)) < density)
        indices = Unstructured().encode(kept)
        assert indices["steps"].dtype == torch.uint8
        found = self.walk(indices["lengths"].tolist(), indices["steps"].tolist())
        flat = [column * outputs + output for column, output in found]
        assert Unstructured().positions(indices, (inputs, outputs)).tolist() == flat
        assert len(set(flat)) == len(flat)
        assert all(0 <= column < inputs for column, _ in found)
        wanted = {tuple(entry) for entry in kept.nonzero().tolist()}
        assert wanted <= set(found)
        gaps = [[-1, *sorted(column for column, row in wanted if row == output)] for output in range(outputs)]
        fillers = sum((b - a - 1) // 256 for columns in gaps for a, b in itertools.pairwise(columns))
        assert len(found) == len(wanted) + fillers

    @settings(max_examples=60)
    @given(inputs=st.integers(1, 1200), outputs=st.integers(1, 3), count=st.integers(0, 40), seed=st.integers(0, 9999))
    def test_fillers_are_part_of_the_count_which_is_used_up(self, inputs, outputs, count, seed):
        energy = torch.from_numpy(np.random.default_rng(seed).random((inputs, outputs)))
        indices = Unstructured().select(energy, count)
        assert indices["steps"].numel() == min(count, energy.numel())


class TestNOfM:
    @settings(max_examples=100)
    @given(
        numbers=st.sampled_from([(1, 1), (2, 4), (1, 8), (3, 5), (4, 4), (7, 16), (1, 256)]),
        inputs=st.integers(1, 40),
        outputs=st.integers(1, 6),
        share=st.floats(0, 1),
        seed=st.integers(0, 9999),
    )
    def test_no_group_keeps_more_and_the_best_are_kept(self, numbers, inputs, outputs, share, seed):
        """Against all groups of all outputs, one at a time."""
        kept_of = NOfM(*numbers)
        energy = torch.from_numpy(np.random.default_rng(seed).random((inputs, outputs))) + 0.1
        count = int(share * kept_of.affordable((inputs, outputs), 10**9))
        residual = kept_of.extract(energy, kept_of.select(energy, count))
        mask = rebuilt(kept_of, residual, (inputs, outputs)) != 0
        gains, best = [], torch.zeros_like(mask)
        for output in range(outputs):
            for start in range(0, inputs, numbers[1]):
                group = energy[start : start + numbers[1], output]
                best[start + group.topk(min(numbers[0], len(group))).indices, output] = True
            gains.append(float((energy * best)[:, output].sum()))
        per_output = int(best[:, 0].sum())
        chosen = sorted(np.argsort(gains)[::-1][: count // per_output])
        assert residual.indices["outputs"].tolist() == chosen
        expected = torch.zeros_like(mask)
        expected[:, chosen] = best[:, chosen]
        assert torch.equal(mask, expected)

    def test_positions_take_as_many_bits_as_the_group_needs(self):
        for numbers, bits in (((2, 4), 2), ((1, 8), 3), ((1, 5), 3), ((1, 1), 0), ((1, 256), 8)):
            pattern = NOfM(*numbers)
            indices = pattern.select(torch.rand(numbers[1] * 3, 5), pattern.affordable((numbers[1] * 3, 5), 10**9))
            assert indices["codes"].numel() == -(-5 * 3 * numbers[0] * bits // 8)
            assert indices["codes"].dtype == torch.uint8

    def test_there_is_a_residual_at_every_byte_budget(self):
        """One output of 64 inputs under 2:4: 32 values, 8 bytes of codes, 2 of its number."""
        one = 32 * 4 + 8 + 2
        assert [NOfM().affordable((64, 10), size) // 32 for size in (one - 1, one, 5 * one, 100 * one)] == [0, 1, 5, 10]


class TestLayouts:
    """What the exporter is handed names the same entries."""

    @staticmethod
    def from_layout(pattern: Pattern, laid_out: Residual, shape: tuple[int, int]) -> np.ndarray:
        table, values = np.zeros(shape), laid_out.values.numpy()
        indices = {name: tensor.to(torch.int64).numpy() for name, tensor in laid_out.indices.items()}
        if pattern.layout == "csr":
            for output in range(shape[1]):
                where = slice(*indices["indptr"][output : output + 2])
                assert (np.diff(indices["indices"][where]) > 0).all()
                table[indices["indices"][where], output] = values[where]
        elif pattern.layout == "n:m":
            kept, of = indices["numbers"]
            bits, rest = int(of - 1).bit_length(), int.from_bytes(indices["codes"].astype(np.uint8).tobytes(), "little")
            for output, line in zip(indices["outputs"], values, strict=True):
                for k, value in enumerate(line):
                    rest, place = divmod(rest, 1 << bits)
                    table[k // kept * of + place, output] = value
        elif pattern.layout == "rows":
            table[indices["rows"]] = values
        elif pattern.layout == "ell":
            np.put_along_axis(table, indices["indices"], values, axis=1)
        elif pattern.layout == "grouped":
            for group, (chosen, block) in enumerate(zip(indices["indices"], values, strict=True)):
                table[chosen, group * block.shape[0] : (group + 1) * block.shape[0]] = block.T
        return table

    @settings(max_examples=150)
    @given(case=cases(), share=st.floats(0, 1))
    def test_they_hold_the_entries_of_the_pattern(self, case, share):
        pattern, matrix = case
        shape = shape_of(matrix)
        residual = pattern.extract(matrix, pattern.select(matrix.square(), int(share * matrix.numel())))
        laid_out = pattern.lay_out(residual, shape)
        expected = rebuilt(pattern, residual, shape).numpy()
        assert np.array_equal(self.from_layout(pattern, laid_out, shape), expected)
        if residual.nnz:
            laid_out.values.view(-1)[0] = 7
            assert not np.array_equal(self.from_layout(pattern, laid_out, shape), expected)


class TestChoice:
    @pytest.mark.parametrize("name", PATTERNS)
    @pytest.mark.parametrize("kind", ["linear", "embedding"])
    def test_every_pattern_has_a_form_for_both_kinds(self, name, kind):
        pattern = pattern_named({"N:M": "1:3"}.get(name, name), kind, group=4, width=12)
        residual = pattern.extract(torch.ones(6, 12), pattern.select(torch.ones(6, 12), 24))
        assert residual.nnz == (0 if name == "none" else 24)

    def test_an_unknown_pattern_is_refused_naming_those_there_are(self):
        for name in ("blocky", "N:M", "2:4:8", "-1:4"):
            with pytest.raises(UsageError, match=f"no residual pattern '{name}'; there are: N:M, grouped, none, unst"):
                pattern_named(name, "linear", group=4, width=12)

    @pytest.mark.parametrize("name", ["0:4", "5:4", "1:257", "0:0"])
    def test_numbers_that_make_no_pattern_are_refused(self, name):
        with pytest.raises(UsageError, match=f"--pattern {name}: expected N:M with 1 ≤ N ≤ M ≤ 256, such as 2:4"):
            pattern_named(name, "linear", group=4, width=12)

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


@pytest.mark.parametrize(
    ("width", "group", "expected"),
    [
        (64, 32, ("grouped", 32)),
        (1000, 32, ("grouped", 25)),
        (77, 32, ("grouped", 11)),
        (100, 32, ("grouped", 25)),
        (2001, 32, ("grouped", 29)),
        (16, 32, ("grouped", 16)),
        (1009, 32, ("unstructured", 32)),
        (26, 25, ("grouped", 13)),
        (6, 4, ("unstructured", 4)),
        (6, 2, ("grouped", 2)),
    ],
)
def test_the_pattern_that_fits_a_layer(width: int, group: int, expected: tuple[str, int]) -> None:
    name, size = fitting("grouped", "linear", group=group, width=width)
    assert (name, size) == expected
    energy = torch.rand(8, width)
    count = 4 * width
    assert pattern_named(name, "linear", group=size, width=width).mask(energy, count).sum() == count
    assert fitting("grouped", "embedding", group=group, width=width) == ("grouped", group)
    assert fitting("2:4", "linear", group=group, width=width) == ("2:4", group)
