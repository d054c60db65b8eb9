"""Linear algebra in pieces: what would take several copies of a large matrix, done block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["blocks", "gram", "largest"]

# Values of a block: 8 MiB in float64. Matrices of an encoder of usual width are one block.
BLOCK_VALUES = 1 << 20


def blocks(matrix: Tensor, dim: int) -> Iterator[tuple[slice, Tensor]]:
    """Views of `matrix` (rows, columns) along `dim`, each of about `BLOCK_VALUES` values, and where they lie."""
    across = max(1, matrix.shape[1 - dim])
    step = max(1, BLOCK_VALUES // across)
    for start in range(0, matrix.shape[dim], step):
        where = slice(start, min(start + step, matrix.shape[dim]))
        yield where, matrix[where] if dim == 0 else matrix[:, where]


def gram(matrix: Tensor, other: Tensor | None = None) -> Tensor:
    """Mᵀ N in float64 for M, N (rows, columns) of any float dtype; N is M where it is left out."""
    total = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for rows, block in blocks(matrix, 0):
        exact = block.double()
        total += exact.T @ (exact if other is None else other[rows].double())
    return total


def largest(energy: Tensor, count: int) -> Tensor:
    """Where the `count` largest entries of `energy` are, bool in its shape; of equal ones the first."""
    flat = energy.reshape(-1)
    if count >= flat.numel():
        return torch.ones_like(energy, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(energy, dtype=torch.bool)
    threshold = _kth_largest(flat, count)
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().reshape(-1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.reshape(energy.shape)


def _kth_largest(flat: Tensor, k: int) -> float:
    if flat.is_cuda:
        return float(flat.topk(k).values[-1])
    # torch's topk and kthvalue keep an int64 index beside every value; numpy's partition moves values only
    values = flat.numpy().copy()
    values.partition(values.size - k)
    return float(np.asarray(values)[values.size - k])
