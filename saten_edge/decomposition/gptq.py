"""Rounding with error feedback: GPTQ (Frantar et al., arXiv 2210.17323), on the grids that a bundle stores.

A layer computes x M, and an error E in M costs tr(Eᵀ Σ E), Σ = E[xᵀx]. Inputs are rounded one after the other. What
the rounding of one does to the outputs, those that are not rounded yet make up for as far as Σ allows: with Σ⁻¹ = Uᵀ U
and U upper triangular, an error e in row i is answered by −(U_ij / U_ii) e in every row j > i. A block's scale is
chosen when its turn comes, of the weights as they are by then, because what earlier blocks left is in them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saten_edge.decomposition.metric import Metric
from saten_exporters.quantize import Precision, quantize_blocks
from saten_runtime.errors import DataError

__all__ = ["Feedback", "round_matrix"]

# Added to Σ, as a share of its diagonal and of the diagonal's mean: an input that was hardly seen is not pushed far.
DAMPING = 0.01
# bits → the scales that are tried, in units of a block's largest weight; smaller ones cut it off for finer steps
SHARES = {
    4: (1 / 7, 1 / 7.5, 1 / 8, 1 / 8.6, 1 / 9.3),
    2: tuple(sign * share for share in (0.5, 0.45, 0.4, 0.36, 0.33, 0.29, 0.25) for sign in (1, -1)),
}
# bits → the lowest and the highest code
CODES = {4: (-7, 7), 2: (-2, 1)}
# Scales have so many bits fewer than float32 that code · scale is exact, and the exporter finds code and scale again.
SPARE_BITS = 3
# A block that needs a smaller scale becomes zeros; the exporter's own limit is that of its largest weight.
SMALLEST_SCALE = 7 * float(np.finfo(np.float32).tiny)


class Feedback:
    """What Σ (in, in) says of rounding, for all layers that read the same inputs.

    metric: the norm that Σ gives. factor: U (in, in), upper triangular, of the inverse of the damped Σ; float32.

    Raises:
        DataError: Σ holds NaN or infinity.
    """

    def __init__(self, moments: Tensor) -> None:
        if not torch.isfinite(moments).all():
            raise DataError(
                "calibration gave second moments that are NaN or infinite; if the model multiplied in bf16, pass --fp32"
            )
        self.moments, self.metric = moments, Metric(moments.float())
        damped = moments.double().clone()
        diagonal = damped.diagonal()
        mean = diagonal.mean()
        diagonal.add_(DAMPING * (diagonal + mean) if mean > 0 else 1.0)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self.factor = torch.linalg.cholesky(inverse, upper=True).float()

    def cost(self, error: Tensor) -> Tensor:
        """What an error E (in, out) costs each output, diag(Eᵀ Σ E) (out,)."""
        return (error * self.metric.apply(error)).sum(0)


def round_matrix(matrix: Tensor, feedback: Feedback, precision: Precision) -> Tensor:
    """M (in, out) on the grid that a bundle of 4 or 2 bits in blocks stores, bit for bit; float32.

    An output for which feedback costs more than nearest rounding is rounded to the nearest.

    Raises:
        Unstorable: as `quantize_blocks`.
    """
    how = precision.for_inputs(len(matrix))
    exact = matrix.float()
    nearest, found = _nearest(exact, how), _with_feedback(exact, feedback.factor, how)
    return torch.where(feedback.cost(found - exact) < feedback.cost(nearest - exact), found, nearest)


def _nearest(matrix: Tensor, how: Precision) -> Tensor:
    """As the exporter rounds it, but with scales that leave no digit for it to lose."""
    codes, scales = quantize_blocks(np.ascontiguousarray(matrix.T.numpy()), how.bits, how.block)
    steps = (
        torch.from_numpy(codes.astype(np.float32) - (1 << (how.bits - 1))) * _short(torch.from_numpy(scales))[..., None]
    )
    return steps.flatten(1)[:, : len(matrix)].T


def _with_feedback(matrix: Tensor, factor: Tensor, how: Precision) -> Tensor:
    left, found = matrix.clone(), torch.empty_like(matrix)
    for start in range(0, len(matrix), how.block):
        own, behind = slice(start, start + how.block), slice(start + how.block, None)
        block, rows, errors = left[own], factor[own, own], torch.empty_like(left[own])
        scales = _scales(block, rows.diagonal().pow(-2), how.bits)
        for place in range(len(block)):
            found[start + place] = _rounded(block[place], scales, how.bits)
            errors[place] = (block[place] - found[start + place]) / rows[place, place]
            block[place + 1 :].addr_(rows[place, place + 1 :], errors[place], alpha=-1)
        left[behind].addmm_(factor[own, behind].T, errors, alpha=-1)
    return found


def _scales(block: Tensor, weights: Tensor, bits: int) -> Tensor:
    """Of each output (out,), the scale of `SHARES` that leaves the least squared error, weighted by input."""
    peak = block.abs().amax(0)
    best, least = torch.ones_like(peak), torch.full_like(peak, torch.inf)
    for share in SHARES[bits]:
        scales = _short(peak * share)
        scales = torch.where(scales.abs() >= SMALLEST_SCALE, scales, 1.0)
        lost = weights @ (_rounded(block, scales, bits) - block).square()
        best = torch.where(lost < least, scales, best)
        least = torch.minimum(lost, least)
    return best


def _rounded(weights: Tensor, scales: Tensor, bits: int) -> Tensor:
    return (weights / scales).round_().clamp_(*CODES[bits]) * scales


def _short(scales: Tensor) -> Tensor:
    """Without the last `SPARE_BITS`, towards zero."""
    return (scales.view(torch.int32) & -(1 << SPARE_BITS)).view(torch.float32)
