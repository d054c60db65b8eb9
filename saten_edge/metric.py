"""The norm in which an approximation of a layer's matrix is judged.

A layer computes x M; an error E in M costs E[‖x E‖²] = ‖Σ^½ E‖_F², Σ = E[xᵀx] the second moments of its
input over calibration data. Without data Σ = I and the norm is Frobenius'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Metric"]


@dataclass(frozen=True)
class Metric:
    """Σ^½ as a matrix (in, in), as a diagonal (in,), or None for the identity."""

    root: Tensor | None = None

    @classmethod
    def from_moments(cls, moments: Tensor | None) -> Metric:
        """From Σ (in, in), its diagonal (in,) — all of it where inputs are one-hot — or None."""
        if moments is None:
            return cls()
        if moments.ndim == 1:
            return cls(moments.double().sqrt())
        values, vectors = torch.linalg.eigh(moments.double())
        return cls((vectors * values.clamp_min(0).sqrt()) @ vectors.T)

    def scale(self, matrix: Tensor) -> Tensor:
        """Σ^½ M, (in, out)."""
        if self.root is None:
            return matrix
        return self.root[:, None] * matrix if self.root.ndim == 1 else self.root @ matrix

    def importance(self, inputs: int) -> Tensor:
        """The diagonal of Σ, (in,): how much one input counts."""
        if self.root is None:
            return torch.ones(inputs, dtype=torch.float64)
        return self.root.square() if self.root.ndim == 1 else self.root.square().sum(1)

    def relative_error(self, matrix: Tensor, approximation: Tensor) -> float:
        """‖Σ^½ (M − M̂)‖_F / ‖Σ^½ M‖_F."""
        norm = float(self.scale(matrix).norm())
        return float(self.scale(matrix - approximation).norm()) / norm if norm else 0.0
