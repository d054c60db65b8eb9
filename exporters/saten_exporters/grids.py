"""Blocks that had few bits before keep the grid they are on.

Rounding to the nearest takes the largest code for a block's largest weight. Weights that are whole steps of a scale
whose largest code is smaller, as rounding with error feedback leaves some, would be rounded a second time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["keep_grids"]

# Weights of a block that are looked at before the others: of a block that is on no grid, hardly ever more.
FEW = 2


def keep_grids(blocks: Any, peaks: Any, scales: Any, largest: int) -> None:
    """Give blocks that lie on a grid its scale, in place; all others keep theirs. Arrays of NumPy or tensors of torch.

    blocks: (…, block). peaks: (…, 1), the largest weight of each, 0 to leave it. scales: (…, 1). A block is on the grid
    of peak / k, k up to `largest`, if codes times that scale are its weights, bit for bit; the largest such k counts.
    """
    for code in range(1, largest + 1):
        steps = peaks / code
        maybe = _whole(blocks[..., :FEW], steps)
        if maybe.any():
            own, found = steps[maybe], scales[maybe]
            whole = _whole(blocks[maybe], own)
            found[whole] = own[whole]
            scales[maybe] = found


def _whole(blocks: Any, steps: Any) -> Any:
    """Which blocks are whole steps, (…)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((blocks / steps).round() * steps == blocks).all(-1)
