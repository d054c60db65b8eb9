"""Train, sparse residual and their sum by a 3-block ADMM (as in "3BASiL", arXiv 2603.01376, 2026).

Under a full second-moment matrix the inputs of a layer act together, and an alternation that keeps the entries of
largest single gain stops after two rounds. ADMM instead solves for a dense S, free of its pattern, and draws it towards
a sparse copy D ever more firmly:

    minimise ‖Ĥ^½ (X − L − S)‖²  subject to  S = D,  rank L ≤ r,  D in the pattern

    S = T + (Ĥ + ρI)⁻¹ (ρ(D − T) − V),  T = X − L     a ridge regression
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
from saten_edge.decomposition.tt import Spectrum, refined_factors

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

    factors: A (in, r) and B (r, out) of L, whose rows are orthonormal. sparse: D; kept: D's support; scaled_dual: V/ρ,
    V the dual; all (in, out). penalty: ρ. done: iterations. settled: whether the support stands still.
    """

    factors: tuple[Tensor, Tensor]
    sparse: Tensor
    kept: Tensor
    scaled_dual: Tensor
    penalty: float = FIRST_PENALTY
    done: int = 0
    settled: bool = False

    @property
    def low(self) -> Tensor:
        """L (in, out)."""
        a, basis = self.factors
        return a @ basis

    def stiffen(self, factor: float) -> None:
        """Raise ρ by `factor`; V stays."""
        self.penalty *= factor
        self.scaled_dual /= factor


class Admm:
    """The ADMM of one matrix (in, out) under a full Σ, for any bond and any number of entries.

    It runs in float32: what it finds is where the entries are, and values are fitted by who asked for it.
    """

    def __init__(self, matrix: Tensor, sigma: Tensor, pattern: Pattern) -> None:
        damped = _damped(sigma.double())
        scale = damped.diagonal().sqrt()
        self.metric = Metric((damped / (scale[:, None] * scale)).float())
        self.scale = scale[:, None].float()
        self.target = (matrix.double() * scale[:, None]).float()
        self._last: tuple[float, Tensor] | None = None
        self.pattern, self._spectrum = pattern, Spectrum.of(self.target, self.metric)

    def start(self, bond: int, count: int, penalty: float = FIRST_PENALTY) -> Iterate:
        """The best of rank `bond` alone, and the `count` entries that are largest beside it.

        penalty: the first ρ; a larger one comes to rest sooner, at a worse point.
        """
        factors = self._spectrum.factors(bond)
        rest = torch.addmm(self.target, *factors, alpha=-1)
        kept = self.pattern.mask(rest.square(), count)
        return Iterate(factors, rest * kept, kept, torch.zeros_like(rest), penalty)

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
                iterate.stiffen(next(factor for bound, factor in GROWTH if changed > bound or not bound))

    def error(self, iterate: Iterate) -> float:
        """‖Ĥ^½ (X − L − S)‖_F with values fitted at D's places and L fitted to them, each once."""
        values = self.metric.fit(self.target - iterate.low, iterate.kept, self.pattern.alike)
        rest = self.target - values
        return self.metric.norm(torch.addmm(rest, *refined_factors(rest, iterate.factors[1], self.metric), alpha=-1))

    def factors(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """A (in, r), B (r, out) of L, for the matrix as it was given."""
        a, basis = iterate.factors
        return a / self.scale, basis

    def residual(self, iterate: Iterate, count: int) -> Residual:
        """D as the pattern stores it, for the matrix as it was given."""
        return self.pattern.extract(iterate.sparse / self.scale, self.pattern.select(iterate.sparse.square(), count))

    def _step(self, now: Iterate, count: int) -> None:
        target = torch.addmm(self.target, *now.factors, alpha=-1)
        pull = now.sparse - now.scaled_dual
        dense = torch.addmm(target, self._smoother(now.penalty), pull.sub_(target))
        wanted = now.scaled_dual.add_(dense)
        now.kept = self.pattern.mask(wanted.square(), count)
        now.sparse = wanted * now.kept
        now.scaled_dual = wanted.sub_(now.sparse)
        rest = torch.sub(self.target, dense, out=dense)
        now.factors = refined_factors(rest, now.factors[1], self.metric)

    def _smoother(self, rho: float) -> Tensor:
        """ρ (Ĥ + ρI)⁻¹; the last is kept, because ρ stays for some steps."""
        if self._last is None or self._last[0] != rho:
            assert self.metric.sigma is not None  # noqa: S101 - given in the constructor
            shifted = self.metric.sigma.clone()
            shifted.diagonal().add_(rho)
            self._last = rho, torch.cholesky_inverse(torch.linalg.cholesky(shifted)).mul_(rho)
        return self._last[1]


def _damped(sigma: Tensor) -> Tensor:
    """Σ with more on its diagonal; of an input that never was anything but zero, something."""
    diagonal = sigma.diagonal()
    more = DAMPING * (diagonal + diagonal.mean())
    return sigma + torch.diag(more.clamp_min(torch.finfo(sigma.dtype).tiny ** 0.5))
