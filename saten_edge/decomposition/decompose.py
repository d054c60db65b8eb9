"""One matrix into tensor train + sparse residual, at a byte budget.

M ≈ L + S is found by alternating (as in Zhou & Tao, "GoDec", ICML 2011, and OATS, ICLR 2025), every step under
the second moments of the layer's input: L is the best train for M − S; S keeps the entries of M − L that
gain most and gives them the values that fit best together. Where those moments are a full matrix, an ADMM goes on from
there (see `saten_edge.decomposition.admm`). The split of the bytes between the two is
measured, not guessed: several are tried, all to the train and all to the residual among them, and the one with
the least error wins. The pure cases are the same code with one part absent: an SVD is a train of order 2 without
residual, a pruned matrix a residual without train.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.problem import Decomposition, Problem
from saten_edge.decomposition.residual import VALUE_BYTES, NoResidual, Pattern, Residual
from saten_edge.decomposition.shapes import Dims, all_dims, balanced_dims, mode_dims
from saten_edge.decomposition.solvers import SOLVERS
from saten_edge.decomposition.trains import TRAINS
from saten_edge.decomposition.tt import full_train_numel, tensor_train
from saten_runtime.errors import CheckpointError, UsageError

__all__ = ["SHAPES", "SOLVERS", "TRAINS", "Decomposition", "Recipe", "decompose"]

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
    solver: a row of `SOLVERS`; "admm" is "alternate" where there are no full second moments or nothing to divide.

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
    solver: str = "admm"

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
        if self.solver not in SOLVERS:
            raise UsageError(f"no solver {self.solver!r}; there are: {', '.join(SOLVERS)}")
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
    problem = _problem(matrix, budget_bytes, pattern, recipe, moments)
    best = SOLVERS[recipe.solver](problem)
    split = recipe.method == "bond" and best.train.bond
    train = tensor_train(*best.train.factors(), problem.dims[0]) if split else best.train
    residual = Residual(best.residual.values.to(matrix), _moved(best.residual.indices, matrix.device))
    return replace(best, train=replace(train, cores=tuple(core.to(matrix) for core in train.cores)), residual=residual)


def _problem(
    matrix: Tensor, budget_bytes: int | None, pattern: Pattern, recipe: Recipe, moments: Tensor | None
) -> Problem:
    dtype = torch.float32 if matrix.numel() * VALUE_BYTES > LARGE_BYTES else torch.float64
    device = torch.device("cuda") if torch.cuda.is_available() else matrix.device
    exact = matrix.to(device, dtype)
    metric = Metric.from_moments(moments).like(exact)
    dims = recipe.dims((matrix.shape[0], matrix.shape[1]))
    if recipe.method == "bond":
        dims = [min(dims, key=lambda each: full_train_numel(each, 1))]
    limit = math.inf if budget_bytes is None else budget_bytes
    how = (recipe.method, recipe.rounds, recipe.share, recipe.density, recipe.eps)
    return Problem(exact, limit, pattern, metric, dims, metric.norm(exact), *how)


def _moved(indices: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in indices.items()}
