"""One matrix into tensor train + sparse residual, at a byte budget.

M ≈ L + S is found by alternating (as in Zhou & Tao, "GoDec", ICML 2011, and OATS, ICLR 2025), every step under
the second moments of the layer's input: L is the best train for M − S; S keeps the entries of M − L that
gain most and gives them the values that fit best together. The split of the bytes between the two is
measured, not guessed: several are tried, all to the train and all to the residual among them, and the one with
the least error wins. The pure cases are the same code with one part absent: an SVD is a train of order 2 without
residual, a pruned matrix a residual without train.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.residual import VALUE_BYTES, NoResidual, Pattern, Residual, scatter
from saten_edge.decomposition.shapes import Dims, all_dims, balanced_dims, mode_dims
from saten_edge.decomposition.tt import Spectrum, TensorTrain, TtSvd, balanced_pair, full_train_numel, tensor_train
from saten_runtime.errors import BudgetError, CheckpointError, SatenError, UsageError

__all__ = ["SHAPES", "TRAINS", "Decomposition", "Recipe", "decompose"]

# Shares of a layer's bytes that the tensor train may get; the residual has the rest.
TRAIN_SHARES = (1.0, 0.96, 0.8, 0.5, 0.0)
# Below this many bytes in float32 a matrix is decomposed in float64; above, copies of it would not fit small machines,
# so it stays float32, its Gram matrices being summed in float64 all the same.
LARGE_BYTES = 1 << 24

SHAPES = ("balanced", "search")


@dataclass(frozen=True)
class Recipe:
    """How every matrix is decomposed.

    order: cores of the train (2 … 6). rounds: alternations of L and S.
    share: the train's share of the bytes, 0 (no train) … 1 (no residual), or None to measure it.
    density: stored residual entries per entry of the matrix; the train has the rest of the bytes.
    eps: the train is the TT-SVD of this relative error; the residual has the rest of the bytes.
    train: a row of `TRAINS`; None is "tt-svd" with eps, else "bond". shapes: "balanced" dims, or a "search" of all.

    Raises:
        UsageError: a number out of its range, or options that contradict each other.
    """

    order: int = 4
    rounds: int = 3
    share: float | None = None
    density: float | None = None
    eps: float | None = None
    train: str | None = None
    shapes: str = "balanced"

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("density", self.density), ("eps", self.eps)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"--{name} {value:g}: expected a number from 0 to 1")
        if self.share is not None and (self.density is not None or self.eps is not None):
            raise UsageError("--share and --density or --eps both say how the bytes are split; leave one of them out")
        if self.train not in (None, *TRAINS):
            raise UsageError(f"no train {self.train!r}; there are: {', '.join(TRAINS)}")
        if self.eps is not None and self.train == "bond":
            raise UsageError("--eps is the error of a TT-SVD; leave out --train bond, or say --train tt-svd")
        if self.shapes not in SHAPES:
            raise UsageError(f"no shapes {self.shapes!r}; there are: {', '.join(SHAPES)}")

    @property
    def method(self) -> str:
        """The row of `TRAINS`."""
        return self.train or ("bond" if self.eps is None else "tt-svd")

    @property
    def sized(self) -> bool:
        """Whether eps and density fix every size, so that no budget is needed."""
        return self.eps is not None and self.density is not None

    def dims(self, shape: tuple[int, int]) -> list[Dims]:
        """The dims that the train may have, the first of them preferred."""
        if self.shapes == "search":
            return all_dims(shape, self.order)
        return [mode_dims(shape, self.order)] if self.method == "bond" else balanced_dims(shape, self.order)


@dataclass(frozen=True)
class Decomposition:
    """M (in, out) ≈ train + residual. error: relative, under the moments it was made with.

    share: of the bytes that the train was given or, where eps or density say so, takes.
    """

    train: TensorTrain
    residual: Residual
    bytes: int
    error: float
    share: float


def decompose(
    matrix: Tensor, budget_bytes: int | None, pattern: Pattern, recipe: Recipe, moments: Tensor | None = None
) -> Decomposition:
    """The best train + residual for `matrix` (in, out) within `budget_bytes`, indices included.

    budget_bytes: None only where eps and density fix every size. moments: E[xᵀx] of the layer's input, (in, in) or
    its diagonal (in,), or None. Computes on the GPU if there is one; the parts come back in the dtype and to the
    device of the matrix.

    Raises:
        BudgetError: the budget pays for nothing.
        UsageError: no budget where one is needed, or a density without a pattern.
        ShapeError: the matrix does not fit the pattern or the order.
        CheckpointError: the matrix holds NaN or infinity.
    """
    if not torch.isfinite(matrix).all():
        bad = int((~torch.isfinite(matrix)).sum())
        raise CheckpointError(f"a weight of shape {tuple(matrix.shape)} holds {bad} values that are NaN or infinite")
    if budget_bytes is None and not recipe.sized:
        raise UsageError("without --budget both --eps and --density are needed")
    if recipe.density and isinstance(pattern, NoResidual):
        raise UsageError(f"--density {recipe.density:g} needs a residual, but --pattern is none")
    problem = _Problem.of(matrix, budget_bytes, pattern, recipe, moments)
    best = problem.refined(problem.first_round())
    split = recipe.method == "bond" and best.train.bond
    train = tensor_train(*best.train.factors(), problem.dims[0]) if split else best.train
    residual = Residual(best.residual.values.to(matrix), _moved(best.residual.indices, matrix.device))
    return replace(best, train=replace(train, cores=tuple(core.to(matrix) for core in train.cores)), residual=residual)


class _Trains(Protocol):
    """The trains for one target, of any size."""

    def within(self, values: int) -> TensorTrain | None:
        """The train of at most `values` values with the least error; None if there is none."""
        ...


class _BondTrains:
    """Factors (A, B) of the bond that a size pays for once they are split over the dims, every inner rank kept."""

    def __init__(self, target: Tensor, metric: Metric, dims: Sequence[Dims], eps: float | None) -> None:
        self.dims, self.spectrum = dims[0], Spectrum.of(target, metric)

    def within(self, values: int) -> TensorTrain | None:
        bond = _affordable_bond(self.dims, values)
        if not bond:
            return None
        a, b = balanced_pair(*self.spectrum.factors(bond))
        return TensorTrain((a[None], b[..., None]), 1)


class _TtSvdTrains:
    """TT-SVDs, of one eps for all splits; the best of several dims."""

    def __init__(self, target: Tensor, metric: Metric, dims: Sequence[Dims], eps: float | None) -> None:
        self.dims, self.eps, self.svd = dims, eps, TtSvd(target)

    def within(self, values: int) -> TensorTrain | None:
        if self.eps is not None:
            train = self.svd.best(self.dims, eps=self.eps)
            return train if train.numel() <= values else None
        possible = [dims for dims in self.dims if sum(map(sum, dims)) <= values]
        return self.svd.best(possible, values=values) if possible else None


# How the train is found: (target, metric, dims, eps) → its trains of any size
TRAINS: dict[str, type[_BondTrains] | type[_TtSvdTrains]] = {"bond": _BondTrains, "tt-svd": _TtSvdTrains}


@dataclass(frozen=True)
class _Problem:
    """A matrix on its way: in the dtype and on the device it is worked on, with all that stays the same."""

    matrix: Tensor
    budget_bytes: float
    pattern: Pattern
    recipe: Recipe
    metric: Metric
    dims: list[Dims]
    norm: float

    @classmethod
    def of(
        cls, matrix: Tensor, budget_bytes: int | None, pattern: Pattern, recipe: Recipe, moments: Tensor | None
    ) -> _Problem:
        dtype = torch.float32 if matrix.numel() * VALUE_BYTES > LARGE_BYTES else torch.float64
        device = torch.device("cuda") if torch.cuda.is_available() else matrix.device
        exact = matrix.to(device, dtype)
        metric = Metric.from_moments(moments).like(exact)
        dims = recipe.dims((matrix.shape[0], matrix.shape[1]))
        if recipe.method == "bond":
            dims = [min(dims, key=lambda each: full_train_numel(each, 1))]
        limit = math.inf if budget_bytes is None else budget_bytes
        return cls(exact, limit, pattern, recipe, metric, dims, metric.norm(exact))

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def first_round(self) -> Decomposition:
        """The best of one round at each of the possible splits of the bytes; they share the train's SVD.

        Raises:
            BudgetError: none is possible.
        """
        shares = self._shares()
        trains = self._trains(self.matrix) if shares != (0,) else None
        trials = (self._round(trains, share) for share in shares)
        best = min((trial for trial in trials if trial), key=lambda trial: trial.error, default=None)
        if best is None:
            raise self._too_small()
        return best

    def refined(self, best: Decomposition) -> Decomposition:
        """`best` after the other rounds of alternation at its split, or at the best point on the way."""
        share = None if self._shares() == (None,) else best.share
        last: Decomposition | None = best
        for _ in range(self.recipe.rounds - 1):
            if last is None or not (last.train.bond and last.residual.nnz):
                break  # with one part absent the first round was the optimum
            last = self._round(self._trains(self._without(last.residual)), share)
            if last and last.error < best.error:
                best = last
        return best

    def _shares(self) -> Sequence[float | None]:
        """The train's shares of the bytes to try; None where eps or density say its size."""
        if self.recipe.eps is not None or self.recipe.density is not None:
            return (None,)
        if isinstance(self.pattern, NoResidual):
            return (1.0,)
        return TRAIN_SHARES if self.recipe.share is None else (self.recipe.share,)

    def _round(self, trains: _Trains | None, share: float | None) -> Decomposition | None:
        """The train for M − S, then the residual for M − L; None where the bytes do not pay for them."""
        reserved = 0 if self.recipe.density is None else self.pattern.bytes(self.shape, self._most_entries())
        room = (self.budget_bytes - reserved) * (1 if share is None else share)
        train = trains.within(_whole(room) // VALUE_BYTES) if trains and share != 0 and room >= 0 else None
        if train is None and (room < 0 or not (share == 0 or self._train_may_lack())):
            return None
        low = train or TensorTrain.absent(self.shape, self.matrix)
        train_bytes = self._train_values(low) * VALUE_BYTES
        residual, error = self._residual(low, 0 if share == 1 else self.budget_bytes - train_bytes)
        if not low.bond and not residual.nnz:
            return None
        stored = train_bytes + self.pattern.bytes(self.shape, residual.nnz)
        return Decomposition(low, residual, stored, error, train_bytes / stored if share is None else share)

    def _train_may_lack(self) -> bool:
        """Whether a residual of the density given may leave too few bytes for a train."""
        return self.recipe.density is not None and self.recipe.eps is None

    def _most_entries(self) -> int:
        return int((self.recipe.density or 0) * self.matrix.numel())

    def _train_values(self, train: TensorTrain) -> int:
        """Values of a train as it will be stored, in cores."""
        if self.recipe.method == "bond" and train.bond:
            return full_train_numel(self.dims[0], train.bond)
        return train.numel()

    def _trains(self, target: Tensor) -> _Trains:
        return TRAINS[self.recipe.method](target, self.metric, self.dims, self.recipe.eps)

    def _without(self, residual: Residual) -> Tensor:
        """M − S."""
        target, where = self.matrix.clone(), self.pattern.positions(residual.indices, self.shape)
        target.view(-1)[where.reshape(-1)] -= residual.values.reshape(-1)
        return target

    def _residual(self, train: TensorTrain, size_bytes: float) -> tuple[Residual, float]:
        """The residual for M − L within `size_bytes`, and the relative error that is left."""
        rest = torch.addmm(self.matrix, *train.factors(), alpha=-1) if train.bond else self.matrix.clone()
        count = self.pattern.affordable(self.shape, _whole(size_bytes))
        if self.recipe.density is not None:
            count = min(count, self._most_entries())
        indices = self.pattern.select(self.metric.gain(rest), count)
        positions = self.pattern.positions(indices, self.shape)
        where = positions.reshape(-1)
        values = self._fitted(rest, where)
        rest.view(-1)[where] -= values
        error = self.metric.norm(rest) / self.norm if self.norm else 0.0
        return Residual(values.reshape(positions.shape), indices), error

    def _fitted(self, rest: Tensor, where: Tensor) -> Tensor:
        """The best values of the entries at flat positions `where`, which rest (in, out) is to lose."""
        if self.metric.separable or not len(where):
            return rest.view(-1)[where]
        kept = scatter(torch.ones_like(where, dtype=torch.bool), where, self.shape)
        return self.metric.fit(rest, kept).view(-1)[where]

    def _too_small(self) -> SatenError:
        where = f"{self.budget_bytes:g} bytes for a matrix of {self.shape[0]} × {self.shape[1]}"
        if self.recipe.eps is not None or self.recipe.density is not None:
            return BudgetError(
                f"{where} do not pay for what --eps and --density ask for; raise --budget or change them"
            )
        smallest = min(full_train_numel(dims, 1) for dims in self.dims) * VALUE_BYTES
        share = "" if self.recipe.share is None else f" of a share of {self.recipe.share:g}"
        return BudgetError(f"{where} do not pay for a train of bond 1 ({smallest} bytes{share}); raise --budget")


def _whole(size: float) -> int:
    """Whole bytes of a size that may be infinite."""
    return int(min(size, 1 << 62))


def _moved(indices: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in indices.items()}


def _affordable_bond(dims: Dims, values: int) -> int:
    """The largest bond whose train holds at most `values` values; 0 if there is none."""
    largest = min(math.prod(dims[0]), math.prod(dims[1]))
    return bisect.bisect_right(range(1, largest + 1), values, key=lambda bond: full_train_numel(dims, bond))
