"""One matrix into tensor train + sparse residual, at a byte budget.

M ≈ L + S is found by alternating (as in Zhou & Tao, "GoDec", ICML 2011, and OATS, ICLR 2025), every step under
the second moments of the layer's input: L is the best train for M − S; S keeps the entries of M − L that
gain most and gives them the values that fit best together. Where those moments are a full matrix, an ADMM goes on from
there (see `saten_edge.decomposition.admm`). The split of the bytes between the two is
measured, not guessed: several are tried, all to the train and all to the residual among them, and the one with
the least error wins; where time counts, too, the one with the least product of time and squared error. The pure cases
are the same code with one part absent: an SVD is a train of order 2 without residual, a pruned matrix a residual
without train.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.prices import Prices, Time, check_target, checkpoint_prices
from saten_edge.decomposition.problem import Decomposition, Problem
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import VALUE_BYTES, NoResidual, Pattern, Residual
from saten_edge.decomposition.shapes import Sides, smallest_full_dims
from saten_edge.decomposition.solvers import SOLVERS
from saten_edge.decomposition.trains import TRAINS
from saten_edge.decomposition.tt import tensor_train
from saten_runtime.errors import CheckpointError, UsageError

__all__ = ["SOLVERS", "TRAINS", "Decomposition", "check_paid", "check_sizes", "decompose"]

# Below this many bytes in float32 a matrix is decomposed in float64; above, it stays float32, which takes less of time
# and memory. Gram matrices are summed in float64 all the same; in three layers of SmolLM2-135M no error changed.
LARGE_BYTES = 1 << 20


def decompose(
    matrix: Tensor,
    budget_bytes: int | None,
    pattern: Pattern,
    recipe: Recipe,
    moments: Tensor | None = None,
    prices: Prices | None = None,
    time: Time | None = None,
) -> Decomposition:
    """The best train + residual for `matrix` (in, out) within `budget_bytes`, indices included.

    budget_bytes: None only where eps and density fix every size. moments: E[xᵀx] of the layer's input, (in, in) or
    its diagonal (in,), or None. prices: what bytes are counted by; by default those of a checkpoint. time: what parts
    take, where it counts beside the error. Computes on the GPU if there is one; the parts come back in the dtype and to
    the device of the matrix.

    Raises:
        BudgetError: the budget pays for nothing.
        UsageError: no budget where one is needed, or a density without a pattern.
        ShapeError: the matrix does not fit the pattern or the order.
        CheckpointError: the matrix holds NaN or infinity.
    """
    if not torch.isfinite(matrix).all():
        bad = int((~torch.isfinite(matrix)).sum())
        raise CheckpointError(f"a weight of shape {tuple(matrix.shape)} holds {bad} values that are NaN or infinite")
    check_sizes(budget_bytes, pattern, recipe)
    problem = replace(_problem(matrix, budget_bytes, pattern, recipe, moments, prices), time=time)
    best = SOLVERS[recipe.solver](problem)
    split = recipe.method == "bond" and best.train.bond
    train = tensor_train(*best.train.factors(), problem.dims) if split else best.train
    residual = Residual(best.residual.values.to(matrix), _moved(best.residual.indices, matrix.device))
    return replace(best, train=replace(train, cores=tuple(core.to(matrix) for core in train.cores)), residual=residual)


def check_sizes(budget: float | None, pattern: Pattern, recipe: Recipe) -> None:
    """Refuse what says no size of a part, the size of one that there is not, or a preference without a choice.

    Raises:
        UsageError: no budget where one is needed, a density or a preference without a pattern, or no such target.
    """
    if budget is None and not recipe.sized:
        raise UsageError("without --budget both --eps and --density are needed")
    if recipe.density and isinstance(pattern, NoResidual):
        raise UsageError(f"--density {recipe.density:g} needs a residual, but --pattern is none")
    if recipe.prefer == "speed" and isinstance(pattern, NoResidual):
        raise UsageError("--prefer speed splits bytes between a train and a residual, but --pattern is none")
    if recipe.timed_on is not None:
        check_target(recipe.timed_on)


def check_paid(
    shape: tuple[int, int], budget_bytes: int, pattern: Pattern, recipe: Recipe, prices: Prices | None = None
) -> None:
    """Refuse bytes that are too few for any matrix (in, out), as far as its numbers do not decide it.

    Raises:
        BudgetError: they pay for nothing.
    """
    if recipe.method != "bond" or recipe.eps is not None or recipe.density is not None:
        return
    sides = _sides(shape, budget_bytes, recipe)
    empty, how = torch.empty(shape, device="meta"), (recipe.method, recipe.rounds, recipe.share, None, None)
    counted = prices or _checkpoint_prices(shape, sides, pattern)
    Problem(empty, budget_bytes, pattern, counted, Metric.from_moments(None), sides, 0.0, *how).check_paid()


def _problem(
    matrix: Tensor,
    budget_bytes: int | None,
    pattern: Pattern,
    recipe: Recipe,
    moments: Tensor | None,
    prices: Prices | None,
) -> Problem:
    dtype = torch.float32 if matrix.numel() * VALUE_BYTES > LARGE_BYTES else torch.float64
    device = torch.device("cuda") if torch.cuda.is_available() else matrix.device
    exact = matrix.to(device, dtype)
    metric = Metric.from_moments(moments).like(exact)
    limit = math.inf if budget_bytes is None else budget_bytes
    shape = (matrix.shape[0], matrix.shape[1])
    sides = _sides(shape, limit, recipe)
    counted = prices or _checkpoint_prices(shape, sides, pattern)
    how = (recipe.method, recipe.rounds, recipe.share, recipe.density, recipe.eps)
    return Problem(exact, limit, pattern, counted, metric, sides, metric.norm(exact), *how)


def _checkpoint_prices(shape: tuple[int, int], sides: Sides, pattern: Pattern) -> Prices:
    return checkpoint_prices(shape, (sides[0][0], sides[1][0]), pattern)


def _sides(shape: tuple[int, int], limit: float, recipe: Recipe) -> Sides:
    """The dims that a train may have; of the method "bond" those that cost least at the bond that the bytes pay for."""
    sides = recipe.sides(shape)
    if recipe.method != "bond":
        return sides
    ins, outs = smallest_full_dims(sides, int(min(*shape, max(1, limit / VALUE_BYTES / sum(shape)))))
    return (ins,), (outs,)


def _moved(indices: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in indices.items()}
