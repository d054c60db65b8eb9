"""The sparse residual: which entries are kept, and how they are stored.

A pattern answers four questions about a matrix M (in, out) of which some entries are kept: which
entries (`select`), where each stored value sits in M (`positions`), how many bytes a checkpoint takes for them
(`bytes`), and how many entries there are at a time (`steps`), from which follows how many a byte count pays for.
Everything else (reading values off a matrix, rebuilding it, training) follows from `positions` alone. For the exporter
a pattern turns what it stores into one of the few layouts that `saten_exporters` has forms for (`lay_out`), and says
what shapes that has (`laid_out`).

To add a pattern, write the class and add a row to `PATTERNS`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from saten_edge.decomposition.bits import pack, unpack
from saten_edge.decomposition.linalg import BLOCK_VALUES, blocks, largest
from saten_edge.decomposition.places import (
    GAP_CODES,
    column_bytes,
    column_dtype,
    length_bytes,
    length_dtype,
    slot_bytes,
    steps_of,
    walk,
)
from saten_runtime.errors import ShapeError, UsageError

__all__ = [
    "PATTERNS",
    "EqualRows",
    "Grouped",
    "LaidOut",
    "NOfM",
    "NoResidual",
    "Pattern",
    "Residual",
    "Unstructured",
    "WholeRows",
    "pattern_named",
    "scatter",
]

VALUE_BYTES = 4


@dataclass(frozen=True)
class Residual:
    """Stored entries of a matrix: float values and the integer tensors that say where they sit."""

    values: Tensor
    indices: dict[str, Tensor]

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        return self.values.numel()


class LaidOut(NamedTuple):
    """The shape of the values, and type and shape of each index tensor."""

    values: tuple[int, ...]
    indices: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class Pattern(ABC):
    """How the kept entries of a matrix (in, out) are chosen and stored."""

    layout: ClassVar[str]

    @property
    def alike(self) -> int:
        """Consecutive outputs that keep the same inputs."""
        return 1

    @abstractmethod
    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        """Index tensors of the entries with the most energy, `count` or as few fewer as the pattern asks for.

        energy: (in, out), ≥ 0.
        """

    def mask(self, energy: Tensor, count: int) -> Tensor:
        """Where the entries that `select` chooses sit; (in, out), bool."""
        where = self.positions(self.select(energy, count), (energy.shape[0], energy.shape[1]))
        return scatter(torch.ones_like(where, dtype=torch.bool), where, (energy.shape[0], energy.shape[1]))

    @abstractmethod
    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Flat positions in M (row-major, int64), in the shape of the values."""

    @abstractmethod
    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Entries that are stored or left out together, and how many times as many there are at most."""

    @abstractmethod
    def bytes(self, shape: tuple[int, int], count: int) -> int:
        """Bytes of `count` stored entries in a checkpoint, indices included."""

    @abstractmethod
    def laid_out(self, shape: tuple[int, int], count: int) -> LaidOut:
        """Shapes of what `lay_out` makes of `count` entries."""

    def affordable(self, shape: tuple[int, int], size_bytes: int, price: Callable[[int], int] | None = None) -> int:
        """The most stored entries that `size_bytes` pay for, indices included.

        price: bytes of so many entries, never fewer of more; those of a checkpoint by default.
        """
        once, most = self.steps(shape)
        cost = price or partial(self.bytes, shape)
        return once * bisect_right(range(1, most + 1), size_bytes, key=lambda times: cost(once * times))

    def extract(self, matrix: Tensor, indices: dict[str, Tensor]) -> Residual:
        """The entries of `matrix` (in, out) at `indices`."""
        where = self.positions(indices, (matrix.shape[0], matrix.shape[1]))
        return Residual(matrix.reshape(-1)[where], indices)

    def lay_out(self, residual: Residual, shape: tuple[int, int]) -> Residual:
        """The same entries as the exporter's `layout` has them."""
        return residual


@dataclass(frozen=True)
class NoResidual(Pattern):
    """Nothing is kept. values: (0,)."""

    layout: ClassVar[str] = "none"

    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        return {}

    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return torch.zeros(0, dtype=torch.int64)

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        return 1, 0

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        return 0

    def laid_out(self, shape: tuple[int, int], count: int) -> LaidOut:
        return LaidOut((0,), {})


@dataclass(frozen=True)
class Grouped(Pattern):
    """Blocks of `size` consecutive outputs × 1 input; each output group keeps as many inputs.

    values: (out/size, size, kept); indices["indices"]: (out/size, kept) int32, strictly ascending.
    A batched matrix product computes it; the bytes are 4 per value and 4 per block.
    """

    layout: ClassVar[str] = "grouped"
    size: int = 32

    @property
    def alike(self) -> int:
        return self.size

    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        inputs, outputs = energy.shape
        groups = self._groups(outputs)
        kept = min(inputs, count // outputs)
        summed = energy.reshape(inputs, groups, self.size).sum(2).T  # (groups, in)
        chosen = summed.topk(kept, dim=1).indices.sort(dim=1).values
        return {"indices": chosen.to(torch.int32)}

    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        groups = self._groups(shape[1])
        device = indices["indices"].device
        outputs = torch.arange(shape[1], device=device).reshape(groups, self.size, 1)
        return indices["indices"].to(torch.int64)[:, None, :] * shape[1] + outputs  # (groups, size, kept)

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        return self._groups(shape[1]) * self.size, shape[0]

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        return count * VALUE_BYTES + count // self.size * 4

    def laid_out(self, shape: tuple[int, int], count: int) -> LaidOut:
        groups, kept = self._groups(shape[1]), -(-count // shape[1])
        return LaidOut((groups, self.size, kept), {"indices": (torch.int32, (groups, kept))})

    def _groups(self, outputs: int) -> int:
        if outputs % self.size:
            raise ShapeError(
                f"{outputs} outputs cannot be grouped by {self.size}; choose a --group that divides them, or leave "
                "the layer out with --exclude"
            )
        return outputs // self.size


@dataclass(frozen=True)
class WholeRows(Grouped):
    """Whole rows of a table (rows, width): the grouped pattern with one group as wide as the table.

    A lookup needs to know where a row's residual lies, so two (four) bytes for each row of the table are
    counted, not four for each kept one, and one more row, of zeros, for those that have none.
    """

    layout: ClassVar[str] = "rows"

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        return (count + shape[1]) * VALUE_BYTES + shape[0] * slot_bytes(shape[0]) if count else 0

    def laid_out(self, shape: tuple[int, int], count: int) -> LaidOut:
        rows = -(-count // shape[1])
        return LaidOut((rows, shape[1]), {"rows": (torch.int32, (rows,))})

    def lay_out(self, residual: Residual, shape: tuple[int, int]) -> Residual:
        """values: (kept, width); indices["rows"]: (kept,)."""
        return Residual(residual.values[0].T.contiguous(), {"rows": residual.indices["indices"][0]})


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Single entries, row by row of Mᵀ (out, in), each as the step from the entry before it.

    values: (nnz,); indices["lengths"]: (out,) entries of each row, two bytes each where they fit; indices["steps"]:
    (nnz,) uint8, how many inputs were passed over since the row's entry before, or since its start. Where
    that is above 255 a filler is stored: one more entry, 256 inputs on, whose value is as good as any other.
    """

    layout: ClassVar[str] = "csr"

    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        count = min(count, energy.numel())
        chosen, indices = count, self.encode(largest(energy, count))
        while indices["steps"].numel() > count:  # fillers take the places of the weakest entries
            # half as many again, because fewer entries have more fillers; what is left over is given back below
            chosen = max(0, chosen - (indices["steps"].numel() - count) * 3 // 2 - 1)
            indices = self.encode(largest(energy, chosen))
        missing = count - indices["steps"].numel()
        if missing:  # fewer entries had fewer fillers
            indices = self.encode(self._extended(energy, indices, missing))
        return indices

    def mask(self, energy: Tensor, count: int) -> Tensor:
        """Without fillers, which take long to place: the strongest entries alone."""
        return largest(energy, count)

    def encode(self, kept: Tensor) -> dict[str, Tensor]:
        """The index tensors of the entries that `kept` (in, out, bool) names, and of the fillers between them."""
        parts = [steps_of(rows) for _, rows in blocks(kept.T, 0)]
        lengths = torch.cat([part for part, _ in parts]).to(length_dtype(kept.shape[0]))
        return {"lengths": lengths, "steps": torch.cat([part for _, part in parts])}

    def _extended(self, energy: Tensor, indices: dict[str, Tensor], more: int) -> Tensor:
        """Entries and fillers, and the `more` strongest of the others that need no filler; (in, out), bool."""
        shape = (energy.shape[0], energy.shape[1])
        where = self.positions(indices, shape)
        kept = scatter(torch.ones_like(where, dtype=torch.bool), where, shape)
        last = shape[0] - 1 - kept.flip(0).to(torch.uint8).argmax(0)
        last[~kept.any(0)] = -1
        numbers = torch.arange(shape[0], device=kept.device)[:, None]
        gains, places = energy.new_zeros(0), where.new_zeros(0)
        for some, block in blocks(energy, 1):  # the strongest so far and of this block: no copy of a large matrix
            taken = kept[:, some] | (numbers > last[some] + GAP_CODES)
            gain, at = block.masked_fill(taken, -1).reshape(-1).topk(min(more, block.numel()))
            width = block.shape[1]
            found = at // width * shape[1] + at % width + some.start
            gains, best = torch.cat([gains, gain]).topk(min(more, len(gains) + len(gain)))
            places = torch.cat([places, found])[best]
        kept.view(-1)[places] = True
        return kept

    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        lengths, steps = indices["lengths"].to(torch.int64), indices["steps"]
        if int(lengths.sum()) != len(steps):
            raise ShapeError(f"rows of {int(lengths.sum())} entries in all, but {len(steps)} steps")
        where, done = torch.empty(len(steps), dtype=torch.int64, device=steps.device), 0
        outputs = torch.arange(shape[1], device=steps.device)
        at_once = max(1, BLOCK_VALUES // shape[0])
        for start in range(0, shape[1], at_once):
            some = slice(start, start + at_once)
            count = int(lengths[some].sum())
            where[done : done + count] = walk(steps[done : done + count], outputs[some], lengths[some], shape[1])
            done += count
        return where

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        return 1, shape[0] * shape[1]

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        return count * (VALUE_BYTES + 1) + shape[1] * length_bytes(shape[0]) if count else 0

    def laid_out(self, shape: tuple[int, int], count: int) -> LaidOut:
        places = {"indptr": (torch.int32, (shape[1] + 1,)), "indices": (column_dtype(shape[0]), (count,))}
        return LaidOut((count,), places)

    def lay_out(self, residual: Residual, shape: tuple[int, int]) -> Residual:
        return _compressed_rows(residual.values, self.positions(residual.indices, shape), shape)


@dataclass(frozen=True)
class NOfM(Pattern):
    """`kept` of every `of` consecutive inputs of one output, for as many whole outputs as the bytes pay for.

    Those are the outputs that gain most. Where `of` does not divide the inputs, the last group is shorter and keeps
    at most as many. values: (outputs kept, k); indices["outputs"]: (outputs kept,) ascending, two bytes each where
    they fit; indices["codes"]: places within the groups, ⌈log₂ of⌉ bits each, packed into uint8, lowest bit first.
    """

    layout: ClassVar[str] = "n:m"
    kept: int = 2
    of: int = 4

    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        inputs, outputs = energy.shape
        number = min(outputs, count // self._per_output(inputs))
        gains = [block.gather(1, self._places(block)).sum(1) for _, block in blocks(energy.T, 0)]
        chosen = torch.cat(gains).topk(number).indices.sort().values
        codes = torch.zeros(number, self._per_output(inputs), dtype=torch.uint8, device=energy.device)
        for rows, block in blocks(energy[:, chosen].T, 0):
            codes[rows] = (self._places(block) % self.of).to(torch.uint8)
        return {"outputs": chosen.to(column_dtype(outputs)), "codes": pack(codes.reshape(-1), self._bits)}

    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        outputs, k = indices["outputs"].to(torch.int64), self._per_output(shape[0])
        codes = unpack(indices["codes"], self._bits, len(outputs) * k).reshape(-1, k)
        starts = torch.arange(k, device=outputs.device) // self.kept * self.of
        return codes.add_(starts).mul_(shape[1]).add_(outputs[:, None])  # (outputs kept, k)

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        return self._per_output(shape[0]), shape[1]

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        outputs = -(-count // self._per_output(shape[0]))
        codes = -(-count * self._bits // 8)
        return count * VALUE_BYTES + codes + outputs * column_bytes(shape[1])

    def laid_out(self, shape: tuple[int, int], count: int) -> LaidOut:
        k = self._per_output(shape[0])
        outputs = -(-count // k)
        octets = -(-outputs * k * self._bits // 8)
        places = {"outputs": (column_dtype(shape[1]), (outputs,)), "codes": (torch.uint8, (octets,))}
        return LaidOut((outputs, k), {**places, "numbers": (torch.int64, (2,))})

    def lay_out(self, residual: Residual, shape: tuple[int, int]) -> Residual:
        return Residual(residual.values, {**residual.indices, "numbers": torch.tensor([self.kept, self.of])})

    @property
    def _bits(self) -> int:
        return (self.of - 1).bit_length()

    def _per_output(self, inputs: int) -> int:
        return inputs // self.of * self.kept + min(self.kept, inputs % self.of)

    def _places(self, energy: Tensor) -> Tensor:
        """The inputs each output keeps: energy (outputs, in) → (outputs, k), ascending."""
        outputs, inputs = energy.shape
        grouped = torch.nn.functional.pad(energy, (0, -inputs % self.of), value=-1).reshape(outputs, -1, self.of)
        local = grouped.topk(self.kept, dim=2).indices.sort(dim=2).values
        starts = torch.arange(grouped.shape[1], device=energy.device)[:, None] * self.of
        return (local + starts).reshape(outputs, -1)[
            :, : self._per_output(inputs)
        ]  # inputs beyond the last are cut off


@dataclass(frozen=True)
class EqualRows(Pattern):
    """The same number of single entries in every row of a table (rows, width), as ELLPACK stores them.

    values: (rows, kept); indices["indices"]: (rows, kept) column numbers, strictly ascending. A lookup
    gathers one row of each.
    """

    layout: ClassVar[str] = "ell"

    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        kept = min(energy.shape[1], count // energy.shape[0])
        chosen = [block.topk(kept, dim=1).indices.sort(dim=1).values for _, block in blocks(energy, 0)]
        return {"indices": torch.cat([part.to(column_dtype(energy.shape[1])) for part in chosen])}

    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        rows = torch.arange(shape[0], device=indices["indices"].device)[:, None]
        return indices["indices"].to(torch.int64).add_(rows * shape[1])

    def steps(self, shape: tuple[int, int]) -> tuple[int, int]:
        return shape

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        return count * (VALUE_BYTES + column_bytes(shape[1]))

    def laid_out(self, shape: tuple[int, int], count: int) -> LaidOut:
        values = (shape[0], -(-count // shape[0]))
        return LaidOut(values, {"indices": (column_dtype(shape[1]), values)})


# pattern name → what stores it in a linear layer, from the outputs per block and the n and m of an "n:m" name, and
# in an embedding table of a given width. Under "N:M" a table has its own n:m: as many entries in every row as its bytes
# pay for.
PATTERNS: dict[str, tuple[Callable[[int, int, int], Pattern], Callable[[int], Pattern]]] = {
    "none": (lambda group, kept, of: NoResidual(), lambda width: NoResidual()),
    "unstructured": (lambda group, kept, of: Unstructured(), lambda width: EqualRows()),
    "grouped": (lambda group, kept, of: Grouped(size=group), lambda width: WholeRows(size=width)),
    "N:M": (lambda group, kept, of: NOfM(kept, of), lambda width: EqualRows()),
}


def pattern_named(name: str, kind: str, *, group: int, width: int) -> Pattern:
    """The pattern `name` for a layer of `kind` ("linear" or "embedding") with `width` outputs.

    name: a row of `PATTERNS`, the last with numbers, as in "2:4".

    Raises:
        UsageError: no such pattern; the message lists those there are.
    """
    numbers = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", name)
    kept, of = map(int, numbers.groups()) if numbers else (0, 0)
    if numbers and not 0 < kept <= of <= GAP_CODES:
        raise UsageError(f"--pattern {name}: expected N:M with 1 ≤ N ≤ M ≤ {GAP_CODES}, such as 2:4")
    row = "N:M" if numbers else name
    if row not in PATTERNS or (row == "N:M" and not numbers):
        raise UsageError(f"no residual pattern {name!r}; there are: {', '.join(sorted(PATTERNS))} (such as 2:4)")
    for_linear, for_embedding = PATTERNS[row]
    return for_linear(group, kept, of) if kind == "linear" else for_embedding(width)


def scatter(values: Tensor, positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix (in, out) with `values` at `positions` and zeros elsewhere."""
    flat = torch.zeros(shape[0] * shape[1], dtype=values.dtype, device=values.device)
    return flat.scatter(0, positions.reshape(-1).to(values.device), values.reshape(-1)).reshape(shape)


def _compressed_rows(values: Tensor, positions: Tensor, shape: tuple[int, int]) -> Residual:
    """Entries at flat positions of M (in, out) as the CSR of Mᵀ: values (nnz,), indptr (out + 1,), indices (nnz,)."""
    flat = positions.reshape(-1)
    rows, columns = flat % shape[1], flat // shape[1]
    order = (rows * shape[0] + columns).argsort()
    indptr = torch.zeros(shape[1] + 1, dtype=torch.int64, device=flat.device)
    indptr[1:] = torch.bincount(rows, minlength=shape[1]).cumsum(0)
    indices = {"indptr": indptr.to(torch.int32), "indices": columns[order].to(column_dtype(shape[0]))}
    return Residual(values.reshape(-1)[order], indices)
