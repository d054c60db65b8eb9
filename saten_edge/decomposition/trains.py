"""The train of a target matrix, of whatever size the bytes pay for, found in one of two ways."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.prices import Prices
from saten_edge.decomposition.residual import VALUE_BYTES
from saten_edge.decomposition.shapes import Sides
from saten_edge.decomposition.tt import Spectrum, TensorTrain, TtSvd, balanced_pair

__all__ = ["TRAINS", "Trains"]


class Trains(Protocol):
    """The trains for one target, of any size."""

    def within(self, size_bytes: int) -> TensorTrain | None:
        """The train of at most `size_bytes` bytes with the least error; None if there is none."""
        ...


class _BondTrains:
    """Factors (A, B) of the bond that a size pays for."""

    def __init__(self, target: Tensor, metric: Metric, sides: Sides, eps: float | None, prices: Prices) -> None:
        self.prices, self.spectrum = prices, Spectrum.of(target, metric)

    def within(self, size_bytes: int) -> TensorTrain | None:
        bond = self.prices.bond(size_bytes)
        if not bond:
            return None
        a, b = balanced_pair(*self.spectrum.factors(bond))
        return TensorTrain((a[None], b[..., None]), 1)


class _TtSvdTrains:
    """TT-SVDs, of one eps for all splits; the best of several dims. They take the bytes of their cores in float32."""

    def __init__(self, target: Tensor, metric: Metric, sides: Sides, eps: float | None, prices: Prices) -> None:
        self.sides, self.eps, self.svd = sides, eps, TtSvd(target)

    def within(self, size_bytes: int) -> TensorTrain | None:
        values = size_bytes // VALUE_BYTES
        if self.eps is not None:
            train = self.svd.best(self.sides, eps=self.eps)
            return train if train.numel() <= values else None
        smallest = sum(min(map(sum, side)) for side in self.sides)
        return self.svd.best(self.sides, values=values) if smallest <= values else None


# How the train is found: (target, metric, sides, eps, prices) → its trains of any size
TRAINS: dict[str, type[_BondTrains] | type[_TtSvdTrains]] = {"bond": _BondTrains, "tt-svd": _TtSvdTrains}
