"""The norm in which an approximation of a layer's matrix is judged.

A layer computes x M; an error E in M costs E[‖x E‖²] = ‖Σ^½ E‖_F², Σ = E[xᵀx] the second moments of its
input over calibration data. Without data Σ = I and the norm is Frobenius'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from saten_edge.decomposition.linalg import blocks, gram

__all__ = ["Metric"]

# Residual values are fitted until the gradient fell by this factor; fine-tuning moves them further than that.
FIT_TOLERANCE = 3e-2
FIT_MOST_STEPS = 8


@dataclass(frozen=True)
class Metric:
    """Σ (in, in), or its diagonal (in,), or None for the identity."""

    sigma: Tensor | None = None

    @classmethod
    def from_moments(cls, moments: Tensor | None) -> Metric:
        """From Σ (in, in), its diagonal (in,) — all of it where inputs are one-hot — or None; float64."""
        return cls(None if moments is None else moments.double())

    def like(self, matrix: Tensor) -> Metric:
        """The same metric on the device and in the dtype of `matrix`."""
        return self if self.sigma is None else Metric(self.sigma.to(matrix))

    @cached_property
    def root(self) -> Tensor | None:
        """Σ^½ in the shape of Σ; eigenvalues that rounding made negative count as 0."""
        if self.sigma is None or self.sigma.ndim == 1:
            return None if self.sigma is None else self.sigma.sqrt()
        values, vectors = torch.linalg.eigh(self.sigma.double())
        root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        return root.to(self.sigma)

    @property
    def separable(self) -> bool:
        """Whether entries do not interact, so that each is its own best value."""
        return self.sigma is None or self.sigma.ndim == 1

    def norm(self, matrix: Tensor) -> float:
        """‖Σ^½ M‖_F, M (in, out)."""
        energy = sum(float((block * self.apply(block)).sum(dtype=torch.float64)) for _, block in blocks(matrix, 1))
        return math.sqrt(max(energy, 0.0))

    def relative_error(self, matrix: Tensor, approximation: Tensor) -> float:
        """‖Σ^½ (M − M̂)‖_F / ‖Σ^½ M‖_F."""
        norm = self.norm(matrix)
        return self.norm(matrix - approximation) / norm if norm else 0.0

    def apply(self, matrix: Tensor) -> Tensor:
        """Σ M."""
        if self.sigma is None:
            return matrix
        return self.sigma[:, None] * matrix if self.sigma.ndim == 1 else self.sigma @ matrix

    def gram(self, matrix: Tensor) -> Tensor:
        """The smaller of Mᵀ Σ M (out, out) and Σ^½ M Mᵀ Σ^½ (in, in), the former where M is square; float64.

        Their eigenvalues are the squared singular values of Σ^½ M.
        """
        if matrix.shape[1] <= matrix.shape[0]:
            return gram(matrix, None if self.sigma is None else self.apply(matrix))
        inner, root = gram(matrix.T), None if self.root is None else self.root.double()
        if root is None:
            return inner
        return root[:, None] * inner * root if root.ndim == 1 else root @ inner @ root

    def gain(self, rest: Tensor) -> Tensor:
        """By how much each entry, set alone to its best value, would lower ‖Σ^½ R‖_F²; (in, out).

        The best value of entry (i, o) is (Σ R)_io / Σ_ii, and lowers it by (Σ R)²_io / Σ_ii.
        """
        if self.sigma is None:
            return rest.square()
        if self.sigma.ndim == 1:
            return rest.square().mul_(self.sigma[:, None])
        return (self.sigma @ rest).square_().div_(self._diagonal(self.sigma)[:, None])

    def fit(self, rest: Tensor, kept: Tensor, alike: int = 1) -> Tensor:
        """The S with the support `kept` (in, out, bool) that minimises ‖Σ^½ (R − S)‖_F, about.

        Every column is a least-squares problem of its own; conjugate gradients with a diagonal preconditioner
        (Hestenes & Stiefel, 1952) solve a block of them at once.

        alike: consecutive outputs that keep the same inputs; their problems need the part of Σ of these inputs alone.
        """
        if self.sigma is None or self.separable:
            return rest * kept
        sigma, diagonal = self.sigma, self._diagonal(self.sigma)
        if alike == 1:
            solution = torch.empty_like(rest)
            for columns, block in blocks(rest, 1):
                mask = kept[:, columns]
                solution[:, columns] = _conjugate_gradients(sigma, diagonal, mask * (sigma @ block), mask)
            return solution
        solution = torch.zeros_like(rest)
        for start in range(0, rest.shape[1], alike):
            some = slice(start, start + alike)
            inputs = kept[:, start].nonzero().reshape(-1)
            seen = sigma[inputs]  # (kept, in)
            solution[inputs, some] = _conjugate_gradients(seen[:, inputs], diagonal[inputs], seen @ rest[:, some])
        return solution

    @staticmethod
    def _diagonal(sigma: Tensor) -> Tensor:
        """Σ_ii (in,); an input that is always zero counts as the smallest positive number."""
        return sigma.diagonal().clamp_min(torch.finfo(sigma.dtype).tiny)


def _conjugate_gradients(sigma: Tensor, diagonal: Tensor, pull: Tensor, kept: Tensor | None = None) -> Tensor:
    """S (in, columns) that solves Σ S = P, about; with `kept`, S of that support that solves it there.

    pull: P = Σ R, zeros where `kept` is False.
    """
    tiny, scale = torch.finfo(pull.dtype).tiny, 1 / diagonal[:, None]
    solution, gradient = torch.zeros_like(pull), pull
    direction = scale * gradient
    energy = (gradient * direction).sum(0)
    goal = float(energy.sum()) * FIT_TOLERANCE**2
    for _ in range(FIT_MOST_STEPS):
        if float(energy.sum()) <= goal:
            break
        curved = sigma @ direction
        if kept is not None:
            curved *= kept
        step = energy / (direction * curved).sum(0).clamp_min(tiny)
        solution += step * direction
        gradient = gradient - step * curved
        preconditioned = scale * gradient
        renewed = (gradient * preconditioned).sum(0)
        direction = preconditioned + renewed / energy.clamp_min(tiny) * direction
        energy = renewed
    return solution
