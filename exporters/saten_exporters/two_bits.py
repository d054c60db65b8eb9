"""Codes of two bits: four steps, whose scale is searched for.

A scale that keeps the largest weight of a block leaves the others one of three steps: of Gaussian weights in blocks of
64, half the energy is lost. With a smaller one, and a fourth step on the side that has the sign of the scale turned
round, it is an eighth. That is near what the best quantizer of four levels loses, 0.1175 (Max, Quantizing for minimum
distortion, IRE Transactions on Information Theory 6, 1960).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FINEST", "nearest_codes"]

LOWEST, HIGHEST = -2, 1
# The scales that are tried, in units of a block's largest weight, with either sign. None is above a half: twice the
# scale is then no more than the largest weight, and never infinite.
FINEST = 3  # the smallest of them is a third
REACHES = (1 / FINEST, 0.4, 0.5)

Array = NDArray[Any]


def nearest_codes(blocks: NDArray[np.float32]) -> tuple[Array, NDArray[np.float32]]:
    """Codes from −2 to 1, of the shape of `blocks` (…, block), and scales (…, 1) of either sign.

    blocks ≈ codes · scales, with the least squared error that one of `REACHES` gives. Levels that are there already are
    kept: the last of `REACHES` finds those with a code of −2, and those without have one size. A block of zeros, or of
    numbers too small for a scale that float32 holds, has scale 1 and codes of zero.
    """
    peak: Array = np.abs(blocks).max(axis=-1, keepdims=True, initial=0.0)
    peak = np.where(peak >= FINEST * np.finfo(np.float32).tiny, peak, 1).astype(np.float32)
    units = blocks / peak  # squares of what is very small or large would be no numbers
    reach = np.full_like(peak, REACHES[0])
    least = np.full_like(peak, np.inf)
    for each in (sign * step for step in REACHES for sign in (1, -1)):
        lost = np.square(_codes(units, np.float32(each)) * np.float32(each) - units).sum(axis=-1, keepdims=True)
        reach = np.where(lost < least, np.float32(each), reach)
        least = np.minimum(lost, least)
    alone = ((units == 0) | (np.abs(units) == 1)).all(axis=-1, keepdims=True) & (least > 0)
    reach = np.where(alone, np.float32(1), reach)
    scales = (peak * reach).astype(np.float32)
    codes = _codes(blocks, scales)
    return codes, np.where(codes.any(axis=-1, keepdims=True), scales, 1).astype(np.float32)


def _codes(values: Array, scale: Any) -> Array:
    codes: Array = np.clip(np.rint(values / scale), LOWEST, HIGHEST)
    return codes
