"""The norm in which an approximation of a layer's matrix is judged.

A layer computes x M; an error E in M costs E[‖x E‖²] = ‖Σ^½ E‖_F², Σ = E[xᵀx] the second moments of its
input over calibration data. Without data Σ = I and the norm is Frobenius'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Metric"]

# Residual values are fitted until the gradient fell by this factor; fine-tuning moves them further than that.
FIT_TOLERANCE = 3e-2
FIT_MOST_STEPS = 8


@dataclass(frozen=True)
class Metric:
    """Σ (in, in) and its square root, or both as diagonals (in,), or None for the identity; float64."""

    sigma: Tensor | None = None
    root: Tensor | None = None

    @classmethod
    def from_moments(cls, moments: Tensor | None) -> Metric:
        """From Σ (in, in), its diagonal (in,) — all of it where inputs are one-hot — or None."""
        if moments is None:
            return cls()
        sigma = moments.double()
        if sigma.ndim == 1:
            return cls(sigma, sigma.sqrt())
        values, vectors = torch.linalg.eigh(sigma)
        return cls(sigma, (vectors * values.clamp_min(0).sqrt()) @ vectors.T)

    def scale(self, matrix: Tensor) -> Tensor:
        """Σ^½ M, (in, out)."""
        return _apply(self.root, matrix)

    def norm(self, matrix: Tensor) -> float:
        """‖Σ^½ M‖_F."""
        return float(self.scale(matrix).norm())

    def relative_error(self, matrix: Tensor, approximation: Tensor) -> float:
        """‖Σ^½ (M − M̂)‖_F / ‖Σ^½ M‖_F."""
        norm = self.norm(matrix)
        return self.norm(matrix - approximation) / norm if norm else 0.0

    def gain(self, rest: Tensor) -> Tensor:
        """By how much each entry, set alone to its best value, would lower ‖Σ^½ R‖_F²; (in, out).

        The best value of entry (i, o) is (Σ R)_io / Σ_ii, and lowers it by (Σ R)²_io / Σ_ii.
        """
        if self.sigma is None:
            return rest.square()
        return _apply(self.sigma, rest).square() / self._diagonal(self.sigma)[:, None]

    def fit(self, rest: Tensor, kept: Tensor) -> Tensor:
        """The S with the support `kept` (in, out, bool) that minimises ‖Σ^½ (R − S)‖_F.

        Every column is a least-squares problem of its own; conjugate gradients with a diagonal
        preconditioner solve all of them at once (Hestenes & Stiefel, 1952).
        """
        if self.sigma is None or self.sigma.ndim == 1:
            return rest * kept  # columns and rows do not interact: every entry is its own optimum
        scale = 1 / self._diagonal(self.sigma)[:, None]
        solution = torch.zeros_like(rest)
        gradient = kept * (self.sigma @ rest)
        direction = scale * gradient
        energy = (gradient * direction).sum(0)
        goal = energy.sum() * FIT_TOLERANCE**2
        for _ in range(FIT_MOST_STEPS):
            if float(energy.sum()) <= float(goal):
                break
            curved = kept * (self.sigma @ direction)
            step = energy / (direction * curved).sum(0).clamp_min(torch.finfo(rest.dtype).tiny)
            solution += step * direction
            gradient = gradient - step * curved
            preconditioned = scale * gradient
            renewed = (gradient * preconditioned).sum(0)
            direction = preconditioned + renewed / energy.clamp_min(torch.finfo(rest.dtype).tiny) * direction
            energy = renewed
        return solution

    @staticmethod
    def _diagonal(sigma: Tensor) -> Tensor:
        """Σ_ii (in,); an input that is always zero counts as the smallest positive number."""
        diagonal = sigma if sigma.ndim == 1 else sigma.diagonal()
        return diagonal.clamp_min(torch.finfo(sigma.dtype).tiny)


def _apply(factor: Tensor | None, matrix: Tensor) -> Tensor:
    if factor is None:
        return matrix
    return factor[:, None] * matrix if factor.ndim == 1 else factor @ matrix
