"""How the places of single entries are numbered: columns, lengths of rows, and steps from one entry to the next."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "GAP_CODES",
    "column_bytes",
    "column_dtype",
    "length_bytes",
    "length_dtype",
    "slot_bytes",
    "steps_of",
    "walk",
]

_LARGEST_U16 = 1 << 16
GAP_CODES = 1 << 8


def column_dtype(columns: int) -> torch.dtype:
    """The smallest index type for `columns` columns."""
    return torch.uint16 if columns <= _LARGEST_U16 else torch.int32


def column_bytes(columns: int) -> int:
    """Bytes of one column number."""
    return 2 if columns <= _LARGEST_U16 else 4


def slot_bytes(rows: int) -> int:
    """Bytes of one slot number of a table with `rows` rows (slot 0 means none)."""
    return column_bytes(rows + 1)


def length_dtype(columns: int) -> torch.dtype:
    """The type of a number of entries in a row of `columns`, which may be all of them."""
    return column_dtype(columns + 1)


def length_bytes(columns: int) -> int:
    """Bytes of one such number."""
    return column_bytes(columns + 1)


def steps_of(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths and steps of rows (rows, in, bool), see `saten_edge.decomposition.residual.Unstructured`."""
    rows, columns = kept.nonzero(as_tuple=True)
    before = torch.full_like(columns, -1)
    same = rows[1:] == rows[:-1]
    before[1:][same] = columns[:-1][same]
    passed = columns - before - 1
    stored = passed // GAP_CODES + 1
    ends = stored.cumsum(0)
    steps = torch.full((int(stored.sum()),), GAP_CODES - 1, dtype=torch.uint8, device=kept.device)
    steps[ends - 1] = (passed % GAP_CODES).to(torch.uint8)
    return torch.zeros(len(kept), dtype=torch.int64, device=kept.device).index_add_(0, rows, stored), steps


def walk(steps: Tensor, rows: Tensor, lengths: Tensor, outputs: int) -> Tensor:
    """Flat positions in M that the steps of some rows lead to."""
    walked = (steps.to(torch.int64) + 1).cumsum(0)
    before = torch.nn.functional.pad(walked, (1, 0))[lengths.cumsum(0) - lengths]  # walked before each row
    columns = walked - torch.repeat_interleave(before, lengths) - 1
    return columns.mul_(outputs).add_(torch.repeat_interleave(rows, lengths))
