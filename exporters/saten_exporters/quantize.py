"""8-bit codes of weights. Factors, blocks, tables and the dense baseline all pass through here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["quantize_int8"]

INT8_LARGEST = 127


def quantize_int8(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric codes and scales: weights ≈ codes · scales, one scale for each slice along all axes but `axis`.

    scales keep `axis` with length 1. A slice of zeros gets scale 1. The error is at most half a scale.
    """
    peak: NDArray[Any] = np.abs(weights).max(axis=axis, keepdims=True, initial=0.0)
    scales = np.where(peak > 0, peak / INT8_LARGEST, 1).astype(np.float32)
    return np.rint(weights / scales).astype(np.int8), scales
