"""Train, sparse residual and their sum by a 3-block ADMM (as in "3BASiL", arXiv 2603.01376, 2026).

Under a full second-moment matrix the inputs of a layer act together, and an alternation that keeps the entries of
largest single gain stops after two rounds. ADMM instead solves for a dense S, free of its pattern, and draws it towards
a sparse copy D ever more firmly:

    minimise ‖Ĥ^½ (X − L − S)‖²  subject to  S = D,  rank L ≤ r,  D in the pattern

    S = T + (Ĥ + ρI)⁻¹ (ρ(D − T) − V),  T = X − L     a ridge regression, solved in the eigenbasis of Ĥ
    D = the pattern's best part of S + V/ρ             V the dual of S = D, raised by ρ(S − D)
    L = the best of rank r for X − S

Ĥ is Σ, damped (so that fewer tokens than inputs do no harm) and scaled to a diagonal of ones; X is M scaled alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.residual import Pattern, Residual
from saten_edge.decomposition.tt import Spectrum

__all__ = ["Admm", "Iterate"]

# Of each Σ_ii, and of their mean, that is added to Σ_ii.
DAMPING = 0.005
FIRST_PENALTY = 0.1
# Iterations between two looks at the support, and by how much ρ grows where the changed share of it is above a bound.
LOOK_EVERY = 3
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
# The support has settled when less than this share of it changes, not before so many iterations.
SETTLED, SETTLED_AFTER = 3e-4, 15


@dataclass
class Iterate:
    """Where an ADMM stands.

    basis: orthonormal rows (r, out) that L lies in; low: L; sparse: D; kept: D's support; dual: V, all (in, out)
    but the first. penalty: ρ. done: iterations. settled: whether the support stands still.
    """

    basis: Tensor
    low: Tensor
    sparse: Tensor
    kept: Tensor
    dual: Tensor
    penalty: float = FIRST_PENALTY
    done: int = 0
    settled: bool = False


class Admm:
    """The ADMM of one matrix (in, out) under a full Σ, for any bond and any number of entries.

    It runs in float32: what it finds is where the entries are, and values are fitted by who asked for it.
    """

    def __init__(self, matrix: Tensor, sigma: Tensor, pattern: Pattern) -> None:
        damped = _damped(sigma.double())
        scale = damped.diagonal().sqrt()
        values, vectors = torch.linalg.eigh(damped / (scale[:, None] * scale))
        self.eigenvalues, self.vectors = values.float()[:, None], vectors.float()
        self.metric = Metric((damped / (scale[:, None] * scale)).float())
        self.scale = scale[:, None].float()
        self.target = (matrix.double() * scale[:, None]).float()
        self.pattern, self._spectrum = pattern, Spectrum.of(self.target, self.metric)

    def start(self, bond: int, count: int) -> Iterate:
        """The best of rank `bond` alone, and the `count` entries that are largest beside it."""
        a, basis = self._spectrum.factors(bond)
        low = a @ basis
        rest = self.target - low
        kept = self.pattern.mask(rest.square(), count)
        return Iterate(basis, low, rest * kept, kept, torch.zeros_like(rest))

    def run(self, iterate: Iterate, count: int, iterations: int) -> None:
        """Go on until `iterations` are done in all or the support stands still."""
        before = iterate.kept
        while iterate.done < iterations and not iterate.settled:
            self._step(iterate, count)
            iterate.done += 1
            if iterate.done % LOOK_EVERY == 0:
                changed = float((before != iterate.kept).sum()) / count
                before = iterate.kept
                iterate.settled = changed < SETTLED and iterate.done > SETTLED_AFTER
                iterate.penalty *= next(factor for bound, factor in GROWTH if changed > bound or not bound)

    def error(self, iterate: Iterate) -> float:
        """‖Ĥ^½ (X − L − S)‖_F with values fitted at D's places and L fitted to them, each once."""
        values = self.metric.fit(self.target - iterate.low, iterate.kept)
        low, _ = self._low(self.target - values, iterate.basis)
        return self.metric.norm(self.target - values - low)

    def factors(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """A (in, r), B (r, out) of L, for the matrix as it was given."""
        return iterate.low @ iterate.basis.T / self.scale, iterate.basis

    def residual(self, iterate: Iterate, count: int) -> Residual:
        """D as the pattern stores it, for the matrix as it was given."""
        return self.pattern.extract(iterate.sparse / self.scale, self.pattern.select(iterate.sparse.square(), count))

    def _step(self, now: Iterate, count: int) -> None:
        rho = now.penalty
        target = self.target - now.low
        pull = self.vectors.T @ (rho * (now.sparse - target) - now.dual)
        dense = target + self.vectors @ (pull / (self.eigenvalues + rho))
        wanted = dense + now.dual / rho
        now.kept = self.pattern.mask(wanted.square(), count)
        now.sparse = wanted * now.kept
        now.dual += rho * (dense - now.sparse)
        now.low, now.basis = self._low(self.target - dense, now.basis)

    def _low(self, target: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """About the best of rank r for `target`, and its rows: one step of subspace iteration from the rows before."""
        assert self.metric.sigma is not None  # noqa: S101 - given in the constructor
        seen = self.metric.sigma @ (target @ basis.T)  # (in, r)
        rows = torch.linalg.qr(target.T @ seen)[0].T
        return (target @ rows.T) @ rows, rows


def _damped(sigma: Tensor) -> Tensor:
    """Σ with more on its diagonal; of an input that never was anything but zero, something."""
    diagonal = sigma.diagonal()
    more = DAMPING * (diagonal + diagonal.mean())
    return sigma + torch.diag(more.clamp_min(torch.finfo(sigma.dtype).tiny ** 0.5))
