"""The table of precisions, and codes of weights. Factors, blocks, tables and dense layers all pass through here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "INT8_LARGEST",
    "PRECISIONS",
    "SMALLEST_WEIGHT",
    "Precision",
    "pack_nibbles",
    "quantize_blocks",
    "quantize_int8",
]

INT8_LARGEST = 127
# A dense weight of fewer values stays in float32: scales and extra nodes would outweigh what is saved.
SMALLEST_WEIGHT = 4096


@dataclass(frozen=True)
class Precision:
    """How weights are stored.

    bits: of one weight. block: weights in a row that share a scale; 0 where an output or a row of a table
    has one scale, or none. suffix: what operator names end in.
    """

    name: str
    bits: int
    block: int
    suffix: str


# A block of 32 four-bit codes and its float32 scale take 5 bits a weight, one of 64 eight-bit codes 8.5.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", bits=32, block=0, suffix=""),
        Precision("fp16", bits=16, block=0, suffix="Half"),
        Precision("int8", bits=8, block=0, suffix="Int8"),
        Precision("int8-block", bits=8, block=64, suffix="Int8Block"),
        Precision("int4", bits=4, block=32, suffix="Int4"),
    )
}


def quantize_int8(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric codes and scales: weights ≈ codes · scales, one scale for each slice along all axes but `axis`.

    scales keep `axis` with length 1. A slice of zeros gets scale 1. The error is at most half a scale.
    """
    codes, scales = _symmetric(weights, axis, INT8_LARGEST)
    return codes.astype(np.int8), scales


def quantize_blocks(
    weights: NDArray[np.float32], bits: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes (n, blocks, block) and scales (n, blocks) of weights (n, width), each row cut into blocks.

    weights ≈ (codes − 2^(bits − 1)) · scales; the last block of a row is padded with codes of zero. The error is at
    most half a scale: the largest code is as far from zero as the smallest, so that nothing is cut off.
    """
    rows, width = weights.shape
    count = -(-width // block)
    padded = np.zeros((rows, count * block), np.float32)
    padded[:, :width] = weights
    zero = 1 << (bits - 1)
    codes, scales = _symmetric(padded.reshape(rows, count, block), 2, zero - 1)
    return (codes + zero).astype(np.uint8), scales[..., 0]


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two four-bit codes per byte along the last axis (of even length), the first in the low half."""
    packed: NDArray[np.uint8] = codes[..., ::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def _symmetric(weights: NDArray[np.float32], axis: int, largest: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    peak: NDArray[Any] = np.abs(weights).max(axis=axis, keepdims=True, initial=0.0)
    scales = np.where(peak > 0, peak / largest, 1).astype(np.float32)
    return np.rint(weights / scales), scales
