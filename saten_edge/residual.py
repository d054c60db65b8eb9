"""The sparse residual: which entries are kept, and how they are stored.

A pattern answers four questions about a matrix M (in, out) of which some entries are kept: which
entries (`select`), where each stored value sits in M (`positions`), how many bytes it takes
(`bytes`), and how many entries a byte count pays for (`affordable`). Everything else (reading values
off a matrix, rebuilding it, training) follows from `positions` alone.

To add a pattern, write the class and add a row to `PATTERNS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saten_runtime.errors import ShapeError, UsageError

__all__ = ["PATTERNS", "Grouped", "Pattern", "Residual", "Unstructured", "pattern_named", "scatter"]

VALUE_BYTES = 4
_LARGEST_U16 = 1 << 16


@dataclass(frozen=True)
class Residual:
    """Stored entries of a matrix: float values and the integer tensors that say where they sit."""

    values: Tensor
    indices: dict[str, Tensor]

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        return self.values.numel()


class Pattern(ABC):
    """How the kept entries of a matrix (in, out) are chosen and stored."""

    name: ClassVar[str]

    @abstractmethod
    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        """Index tensors of about `count` entries with the most energy; energy: (in, out), ≥ 0."""

    @abstractmethod
    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Flat positions in M (row-major, int64), in the shape of the values."""

    @abstractmethod
    def affordable(self, shape: tuple[int, int], size_bytes: int) -> int:
        """The most entries that `size_bytes` pay for, indices included."""

    @abstractmethod
    def bytes(self, shape: tuple[int, int], count: int) -> int:
        """Bytes of `count` stored entries, indices included."""

    def extract(self, matrix: Tensor, indices: dict[str, Tensor]) -> Residual:
        """The entries of `matrix` (in, out) at `indices`."""
        where = self.positions(indices, (matrix.shape[0], matrix.shape[1]))
        return Residual(matrix.reshape(-1)[where], indices)


@dataclass(frozen=True)
class Grouped(Pattern):
    """Blocks of `size` consecutive outputs × 1 input; each output group keeps as many inputs.

    values: (out/size, size, kept); indices["indices"]: (out/size, kept) int32, strictly ascending.
    A batched matrix product computes it; the bytes are 4 per value and 4 per block.
    """

    name: ClassVar[str] = "grouped"
    size: int = 32

    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        inputs, outputs = energy.shape
        groups = self._groups(outputs)
        kept = min(inputs, count // outputs)
        blocks = energy.reshape(inputs, groups, self.size).sum(2).T  # (groups, in)
        chosen = blocks.topk(kept, dim=1).indices.sort(dim=1).values
        return {"indices": chosen.to(torch.int32)}

    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        groups = self._groups(shape[1])
        device = indices["indices"].device
        outputs = torch.arange(shape[1], device=device).reshape(groups, self.size, 1)
        return indices["indices"].to(torch.int64)[:, None, :] * shape[1] + outputs  # (groups, size, kept)

    def affordable(self, shape: tuple[int, int], size_bytes: int) -> int:
        one_input = shape[1] * VALUE_BYTES + self._groups(shape[1]) * 4
        return min(shape[0], max(0, size_bytes) // one_input) * shape[1]

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        return count * VALUE_BYTES + count // self.size * 4

    def _groups(self, outputs: int) -> int:
        if outputs % self.size:
            raise ShapeError(f"{outputs} outputs cannot be grouped by {self.size}; choose a --group that divides them")
        return outputs // self.size


@dataclass(frozen=True)
class WholeRows(Grouped):
    """Whole rows of a table (rows, width): the grouped pattern with one group as wide as the table.

    A lookup needs to know where a row's residual lies, so two (four) bytes for each row of the table are
    counted, not four for each kept one, and one more row, of zeros, for those that have none.
    """

    def affordable(self, shape: tuple[int, int], size_bytes: int) -> int:
        left = size_bytes - shape[0] * slot_bytes(shape[0])
        rows = max(0, left) // (shape[1] * VALUE_BYTES) - 1
        return min(shape[0], max(0, rows)) * shape[1]

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        return (count + shape[1]) * VALUE_BYTES + shape[0] * slot_bytes(shape[0]) if count else 0


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Single entries, in compressed rows of Mᵀ (out, in): the CSR of the layer's weight.

    values: (nnz,); indices["indptr"]: (out + 1,) int32; indices["indices"]: (nnz,) input numbers,
    strictly ascending in each row, two bytes each where they fit.
    """

    name: ClassVar[str] = "unstructured"

    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        inputs, outputs = energy.shape
        flat = energy.T.reshape(-1)  # row-major over (out, in)
        chosen = flat.topk(min(count, flat.numel())).indices.sort().values
        rows, columns = chosen // inputs, chosen % inputs
        indptr = torch.zeros(outputs + 1, dtype=torch.int64, device=energy.device)
        indptr[1:] = torch.bincount(rows, minlength=outputs).cumsum(0)
        return {"indptr": indptr.to(torch.int32), "indices": columns.to(column_dtype(inputs))}

    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        counts = indices["indptr"].to(torch.int64).diff()
        rows = torch.repeat_interleave(torch.arange(shape[1], device=counts.device), counts)
        return indices["indices"].to(torch.int64) * shape[1] + rows

    def affordable(self, shape: tuple[int, int], size_bytes: int) -> int:
        left = max(0, size_bytes - 4 * (shape[1] + 1))
        return min(shape[0] * shape[1], left // (VALUE_BYTES + column_bytes(shape[0])))

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        return count * (VALUE_BYTES + column_bytes(shape[0])) + 4 * (shape[1] + 1) if count else 0


@dataclass(frozen=True)
class EqualRows(Pattern):
    """The same number of single entries in every row of a table (rows, width), as ELLPACK stores them.

    values: (rows, kept); indices["indices"]: (rows, kept) column numbers, strictly ascending. A lookup
    gathers one row of each.
    """

    name: ClassVar[str] = "unstructured"

    def select(self, energy: Tensor, count: int) -> dict[str, Tensor]:
        kept = count // energy.shape[0]
        chosen = energy.topk(kept, dim=1).indices.sort(dim=1).values
        return {"indices": chosen.to(column_dtype(energy.shape[1]))}

    def positions(self, indices: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        rows = torch.arange(shape[0], device=indices["indices"].device)[:, None]
        return rows * shape[1] + indices["indices"].to(torch.int64)

    def affordable(self, shape: tuple[int, int], size_bytes: int) -> int:
        one_each = shape[0] * (VALUE_BYTES + column_bytes(shape[1]))
        return min(shape[1], max(0, size_bytes) // one_each) * shape[0]

    def bytes(self, shape: tuple[int, int], count: int) -> int:
        return count * (VALUE_BYTES + column_bytes(shape[1]))


# pattern name → what stores it in a linear layer, and in an embedding table of a given width
PATTERNS: dict[str, tuple[Callable[[int], Pattern], Callable[[int], Pattern]]] = {
    "grouped": (lambda group: Grouped(size=group), lambda width: WholeRows(size=width)),
    "unstructured": (lambda group: Unstructured(), lambda width: EqualRows()),
}


def pattern_named(name: str, kind: str, *, group: int, width: int) -> Pattern:
    """The pattern `name` for a layer of `kind` ("linear" or "embedding") with `width` outputs.

    Raises:
        UsageError: no such pattern; the message lists those there are.
    """
    if name not in PATTERNS:
        raise UsageError(f"no residual pattern {name!r}; there are: {', '.join(sorted(PATTERNS))}")
    for_linear, for_embedding = PATTERNS[name]
    return for_linear(group) if kind == "linear" else for_embedding(width)


def scatter(values: Tensor, positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix (in, out) with `values` at `positions` and zeros elsewhere."""
    flat = torch.zeros(shape[0] * shape[1], dtype=values.dtype, device=values.device)
    return flat.scatter(0, positions.reshape(-1), values.reshape(-1)).reshape(shape)


def column_dtype(columns: int) -> torch.dtype:
    """The smallest index type for `columns` columns."""
    return torch.uint16 if columns <= _LARGEST_U16 else torch.int32


def column_bytes(columns: int) -> int:
    """Bytes of one column number."""
    return 2 if columns <= _LARGEST_U16 else 4


def slot_bytes(rows: int) -> int:
    """Bytes of one slot number of a table with `rows` rows (slot 0 means none)."""
    return column_bytes(rows + 1)
