"""One matrix into tensor train + sparse residual, at a byte budget.

M ≈ L + S is found by alternating (as in Zhou & Tao, "GoDec", ICML 2011, and OATS, ICLR 2025), every step under
the second moments of the layer's input: L is the best factor pair for M − S; S keeps the entries of M − L that
gain most and gives them the values that fit best together. The split of the bytes between the two is
measured, not guessed: several are tried and the one with the least error wins.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saten_edge.metric import Metric
from saten_edge.residual import VALUE_BYTES, Pattern, Residual, scatter
from saten_edge.tt import TensorTrain, full_train_numel, mode_dims, tensor_train, truncated_factors
from saten_runtime.errors import BudgetError, CheckpointError

__all__ = ["Decomposition", "Recipe", "decompose"]

# Shares of a layer's bytes that the tensor train may get; the residual has the rest.
TRAIN_SHARES = (0.5, 0.8, 0.96, 1.0)


@dataclass(frozen=True)
class Recipe:
    """How every matrix is decomposed.

    order: cores of the train (2 … 6). eps: relative error the splits inside A and B may add.
    rounds: alternations of L and S. share: the train's share of the bytes, or None to measure it.
    """

    order: int = 4
    eps: float = 0.0
    rounds: int = 3
    share: float | None = None


@dataclass(frozen=True)
class Decomposition:
    """M (in, out) ≈ train + residual. error: relative, under the moments it was made with."""

    train: TensorTrain
    residual: Residual
    bytes: int
    error: float
    share: float


def decompose(
    matrix: Tensor, budget_bytes: int, pattern: Pattern, recipe: Recipe, moments: Tensor | None = None
) -> Decomposition:
    """The best train + residual for `matrix` (in, out) within `budget_bytes`, indices included.

    moments: E[xᵀx] of the layer's input, (in, in) or its diagonal (in,), or None.

    Raises:
        BudgetError: the budget is below a train of rank 1.
        CheckpointError: the matrix holds NaN or infinity.
    """
    if not torch.isfinite(matrix).all():
        bad = int((~torch.isfinite(matrix)).sum())
        raise CheckpointError(f"a weight of shape {tuple(matrix.shape)} holds {bad} values that are NaN or infinite")
    exact, metric = matrix.double(), Metric.from_moments(moments)
    shares = _possible_shares((matrix.shape[0], matrix.shape[1]), budget_bytes, recipe)
    first_round = replace(recipe, rounds=1)
    trials = (_alternate(exact, budget_bytes, pattern, first_round, metric, share) for share in shares)
    share = shares[0] if len(shares) == 1 else min(trials, key=lambda trial: trial.error).share
    best = _alternate(exact, budget_bytes, pattern, recipe, metric, share)
    train = TensorTrain(tuple(core.to(matrix.dtype) for core in best.train.cores), best.train.inputs)
    return replace(best, train=train, residual=replace(best.residual, values=best.residual.values.to(matrix.dtype)))


def _alternate(
    matrix: Tensor, budget_bytes: int, pattern: Pattern, recipe: Recipe, metric: Metric, share: float
) -> Decomposition:
    """`recipe.rounds` alternations at one split of the bytes."""
    shape = (matrix.shape[0], matrix.shape[1])
    dims = mode_dims(shape, recipe.order)
    rank = _affordable_bond(dims, int(budget_bytes * share) // VALUE_BYTES)
    sparse = torch.zeros_like(matrix)
    for _ in range(recipe.rounds):
        train = tensor_train(*truncated_factors(matrix - sparse, rank, metric), dims, recipe.eps)
        rest = matrix - train.dense()
        count = pattern.affordable(shape, budget_bytes - train.numel() * VALUE_BYTES)
        indices = pattern.select(metric.gain(rest), count)
        positions = pattern.positions(indices, shape)
        kept = scatter(torch.ones(positions.shape, dtype=torch.bool), positions, shape)
        sparse = metric.fit(rest, kept)
        residual = pattern.extract(sparse, indices)
    return Decomposition(
        train,
        residual,
        train.numel() * VALUE_BYTES + pattern.bytes(shape, residual.nnz),
        metric.relative_error(matrix, matrix - rest + sparse),
        share,
    )


def _possible_shares(shape: tuple[int, int], budget_bytes: int, recipe: Recipe) -> list[float]:
    """The shares to try that pay for a train of bond 1 at least.

    Raises:
        BudgetError: none does.
    """
    smallest = full_train_numel(mode_dims(shape, recipe.order), 1) * VALUE_BYTES
    shares = TRAIN_SHARES if recipe.share is None else (recipe.share,)
    possible = [share for share in shares if int(budget_bytes * share) >= smallest]
    if not possible:
        raise BudgetError(
            f"{budget_bytes} bytes for a matrix of {shape[0]} × {shape[1]} do not pay for a train of bond 1 "
            f"({smallest} bytes of a share of {max(shares):g}); raise --budget"
        )
    return possible


def _affordable_bond(dims: tuple[tuple[int, ...], tuple[int, ...]], values: int) -> int:
    """The largest bond whose train holds at most `values` values; 0 if there is none."""
    largest = min(math.prod(dims[0]), math.prod(dims[1]))
    return bisect.bisect_right(range(1, largest + 1), values, key=lambda bond: full_train_numel(dims, bond))
