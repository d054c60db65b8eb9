"""The train of a target matrix, of whatever size the bytes pay for, found in one of two ways."""

from __future__ import annotations

import bisect
import math
from typing import Protocol

from torch import Tensor

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.shapes import Dims, Sides, full_train_numel
from saten_edge.decomposition.tt import Spectrum, TensorTrain, TtSvd, balanced_pair

__all__ = ["TRAINS", "Trains", "affordable_bond"]


class Trains(Protocol):
    """The trains for one target, of any size."""

    def within(self, values: int) -> TensorTrain | None:
        """The train of at most `values` values with the least error; None if there is none."""
        ...


class _BondTrains:
    """Factors (A, B) of the bond that a size pays for once they are split over the dims, every inner rank kept."""

    def __init__(self, target: Tensor, metric: Metric, sides: Sides, eps: float | None) -> None:
        self.dims, self.spectrum = (sides[0][0], sides[1][0]), Spectrum.of(target, metric)

    def within(self, values: int) -> TensorTrain | None:
        bond = affordable_bond(self.dims, values)
        if not bond:
            return None
        a, b = balanced_pair(*self.spectrum.factors(bond))
        return TensorTrain((a[None], b[..., None]), 1)


class _TtSvdTrains:
    """TT-SVDs, of one eps for all splits; the best of several dims."""

    def __init__(self, target: Tensor, metric: Metric, sides: Sides, eps: float | None) -> None:
        self.sides, self.eps, self.svd = sides, eps, TtSvd(target)

    def within(self, values: int) -> TensorTrain | None:
        if self.eps is not None:
            train = self.svd.best(self.sides, eps=self.eps)
            return train if train.numel() <= values else None
        smallest = sum(min(map(sum, side)) for side in self.sides)
        return self.svd.best(self.sides, values=values) if smallest <= values else None


# How the train is found: (target, metric, sides, eps) → its trains of any size
TRAINS: dict[str, type[_BondTrains] | type[_TtSvdTrains]] = {"bond": _BondTrains, "tt-svd": _TtSvdTrains}


def affordable_bond(dims: Dims, values: int) -> int:
    """The largest bond whose train holds at most `values` values; 0 if there is none."""
    largest = min(math.prod(dims[0]), math.prod(dims[1]))
    return bisect.bisect_right(range(1, largest + 1), values, key=lambda bond: full_train_numel(dims, bond))
