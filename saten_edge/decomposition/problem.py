"""What every solver works on: a matrix, its bytes, and one step of the way to train + residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.prices import Prices, Time
from saten_edge.decomposition.residual import VALUE_BYTES, NoResidual, Pattern, Residual, scatter
from saten_edge.decomposition.shapes import Dims, Sides
from saten_edge.decomposition.trains import TRAINS, Trains
from saten_edge.decomposition.tt import TensorTrain, refined_factors
from saten_runtime.errors import BudgetError, SatenError

__all__ = ["Decomposition", "Problem"]

# Shares of a layer's bytes that the tensor train may get; the residual has the rest.
TRAIN_SHARES = (1.0, 0.96, 0.8, 0.5, 0.0)


@dataclass(frozen=True)
class Decomposition:
    """M (in, out) ≈ train + residual. error: relative, under the moments it was made with.

    share: of the bytes that the train was given or, where eps or density say so, takes. solver: the row of `SOLVERS`
    that found it, which may be "alternate" where another was asked for; None if it was found elsewhere.
    """

    train: TensorTrain
    residual: Residual
    bytes: int
    error: float
    share: float
    solver: str | None = None

    @property
    def mixed(self) -> bool:
        """Whether there are both a train and a residual."""
        return bool(self.train.bond and self.residual.nnz)


@dataclass(frozen=True)
class Problem:
    """A matrix (in, out) in the dtype and on the device it is worked on, with all that stays the same.

    budget_bytes: infinite where eps and density say every size. prices: what bytes are counted by. method, rounds,
    share, density, eps: as in `Recipe`. time: what parts take where their time counts, too.
    """

    matrix: Tensor
    budget_bytes: float
    pattern: Pattern
    prices: Prices
    metric: Metric
    sides: Sides
    norm: float
    method: str
    rounds: int
    share: float | None
    density: float | None
    eps: float | None
    time: Time | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def dims(self) -> Dims:
        """The preferred dims; of the method "bond" the only ones."""
        return self.sides[0][0], self.sides[1][0]

    def first_round(self) -> Decomposition:
        """The best of one round at each of the possible splits of the bytes; they share the train's SVD.

        Raises:
            BudgetError: none is possible.
        """
        shares = self._shares()
        trains = self._trains(self.matrix) if shares != (0,) else None
        trials = (self._round(trains, share) for share in shares)
        best = min((trial for trial in trials if trial), key=self.cost, default=None)
        if best is None:
            raise self._too_small()
        return best

    def cost(self, parts: Decomposition) -> float:
        """What makes parts worse than others of the same bytes."""
        return self.weighed(parts.error, parts.train.bond, parts.residual.nnz)

    def weighed(self, error: float, bond: int, count: int) -> float:
        """The error; or, where time counts, its square times the time: a per cent of either is worth as much."""
        return error if self.time is None else error**2 * self.time(bond, count)

    def next_round(self, parts: Decomposition) -> Decomposition | None:
        """The train for M − S of `parts`, then the residual for the rest; None where the bytes do not pay for them."""
        return self._round(self._trains(self._without(parts.residual)), self._fixed(parts.share))

    def settled(self, low: TensorTrain, residual: Residual, share: float | None, rounds: int) -> Decomposition:
        """Train and residual after rounds in which values and train, not places, adapt to each other.

        low: A and B, as the method "bond" has them.
        """
        residual, error = self._refitted(low, residual)
        for _ in range(rounds):
            a, b = refined_factors(self._without(residual), low.factors()[1], self.metric)
            low = TensorTrain((a[None], b[..., None]), 1)
            residual, error = self._refitted(low, residual)
        return self._parts(low, residual, error, share)

    def sizes(self, share: float | None) -> tuple[int, int]:
        """Bond of a train of the method "bond" and entries of the residual at a split; 0 where nothing is paid for."""
        room = self._room(share)
        bond = self.prices.bond(_whole(room)) if room >= 0 else 0
        return bond, self._entries(0 if share == 1 else self.budget_bytes - self.prices.train(bond))

    def check_paid(self) -> None:
        """Look at sizes alone; of the method "bond".

        Raises:
            BudgetError: the bytes pay for neither a train nor a residual, at any split.
        """
        if not any(any(self.sizes(share)) for share in self._shares()):
            raise self._too_small()

    def full_share(self) -> float:
        """The share of the bytes that is left for the train by a residual of as many entries as its pattern has."""
        most = self._affordable(self.budget_bytes)
        return max(0.0, 1 - self.prices.residual(most) / self.budget_bytes)

    def _shares(self) -> Sequence[float | None]:
        """The train's shares of the bytes to try; None where eps or density say its size."""
        if self.eps is not None or self.density is not None:
            return (None,)
        if isinstance(self.pattern, NoResidual):
            return (1.0,)
        return TRAIN_SHARES if self.share is None else (self.share,)

    def _fixed(self, share: float) -> float | None:
        return None if self._shares() == (None,) else share

    def _room(self, share: float | None) -> float:
        """Bytes for the train."""
        reserved = 0 if self.density is None else self.prices.residual(self._most_entries())
        return (self.budget_bytes - reserved) * (1 if share is None else share)

    def _round(self, trains: Trains | None, share: float | None) -> Decomposition | None:
        """The train for M − S, then the residual for M − L; None where the bytes do not pay for them."""
        room = self._room(share)
        train = trains.within(_whole(room)) if trains and share != 0 and room >= 0 else None
        if train is None and (room < 0 or not (share == 0 or self._train_may_lack())):
            return None
        low = train or TensorTrain.absent(self.shape, self.matrix)
        left = 0 if share == 1 else self.budget_bytes - self._train_bytes(low)
        indices = self.pattern.select(self.metric.gain(self._beside(low)), self._entries(left))
        residual, error = self._residual(low, indices)
        return self._parts(low, residual, error, share) if low.bond or residual.nnz else None

    def _parts(self, low: TensorTrain, residual: Residual, error: float, share: float | None) -> Decomposition:
        train_bytes = self._train_bytes(low)
        stored = train_bytes + self.prices.residual(residual.nnz)
        return Decomposition(low, residual, stored, error, train_bytes / stored if share is None else share)

    def _train_may_lack(self) -> bool:
        """Whether a residual of the density given may leave too few bytes for a train."""
        return self.density is not None and self.eps is None

    def _most_entries(self) -> int:
        return int((self.density or 0) * self.matrix.numel())

    def _entries(self, size_bytes: float) -> int:
        """Entries of a residual within `size_bytes`."""
        count = self._affordable(size_bytes)
        return count if self.density is None else min(count, self._most_entries())

    def _affordable(self, size_bytes: float) -> int:
        return self.pattern.affordable(self.shape, _whole(size_bytes), self.prices.residual)

    def _train_bytes(self, train: TensorTrain) -> int:
        return self.prices.train(train.bond) if self.method == "bond" else train.numel() * VALUE_BYTES

    def _trains(self, target: Tensor) -> Trains:
        return TRAINS[self.method](target, self.metric, self.sides, self.eps, self.prices)

    def _without(self, residual: Residual) -> Tensor:
        """M − S."""
        return self._less(self.matrix.clone(), residual)

    def _less(self, rest: Tensor, residual: Residual) -> Tensor:
        """R − S, in the place of R."""
        where = self.pattern.positions(residual.indices, self.shape)
        rest.view(-1)[where.reshape(-1)] -= residual.values.reshape(-1)
        return rest

    def _beside(self, train: TensorTrain) -> Tensor:
        """M − L."""
        return torch.addmm(self.matrix, *train.factors(), alpha=-1) if train.bond else self.matrix.clone()

    def _residual(self, train: TensorTrain, indices: dict[str, Tensor]) -> tuple[Residual, float]:
        """The residual for M − L at `indices`, and the relative error that is left."""
        return self._fitted(self._beside(train), indices)

    def _refitted(self, train: TensorTrain, residual: Residual) -> tuple[Residual, float]:
        """The same from the values that `residual` has, so that what the steps of one fit lack the next one adds."""
        change, error = self._fitted(self._less(self._beside(train), residual), residual.indices)
        return replace(residual, values=residual.values + change.values), error

    def _fitted(self, rest: Tensor, indices: dict[str, Tensor]) -> tuple[Residual, float]:
        """The best values at `indices` for `rest` (in, out), which loses them, and the relative error left."""
        positions = self.pattern.positions(indices, self.shape)
        where = positions.reshape(-1)
        values = self._values(rest, where)
        rest.view(-1)[where] -= values
        error = self.metric.norm(rest) / self.norm if self.norm else 0.0
        return Residual(values.reshape(positions.shape), indices), error

    def _values(self, rest: Tensor, where: Tensor) -> Tensor:
        """The best values of the entries at flat positions `where`."""
        if self.metric.separable or not len(where):
            return rest.view(-1)[where]
        kept = scatter(torch.ones_like(where, dtype=torch.bool), where, self.shape)
        return self.metric.fit(rest, kept, self.pattern.alike).view(-1)[where]

    def _too_small(self) -> SatenError:
        where = f"{self.budget_bytes:g} bytes for a matrix of {self.shape[0]} × {self.shape[1]}"
        if self.eps is not None or self.density is not None:
            return BudgetError(
                f"{where} are too few for what --eps and --density ask for; change them, or allow more bytes"
            )
        smallest = self._smallest_train()
        share = "" if self.share is None else f" of a share of {self.share:g}"
        return BudgetError(
            f"{where} are too few for a train of bond 1 ({smallest} bytes{share}); raise --budget, --size or --bits"
        )

    def _smallest_train(self) -> int:
        if self.method == "bond":
            return self.prices.train(1)
        return sum(min(map(sum, side)) for side in self.sides) * VALUE_BYTES


def _whole(size: float) -> int:
    """Whole bytes of a size that may be infinite."""
    return int(min(size, 1 << 62))
