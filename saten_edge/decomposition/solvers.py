"""How train and residual of a matrix are found, as a table: each solver takes a problem and gives its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from saten_edge.decomposition.admm import Admm
from saten_edge.decomposition.problem import Decomposition, Problem
from saten_edge.decomposition.tt import TensorTrain

__all__ = ["SOLVERS"]

# The train's shares that ADMM tries beside the alternation's. Trials start at a ρ that brings them to rest in a few
# iterations: at the first ρ of the run itself, errors after so few do not tell yet which split will be best.
ADMM_SHARES = (0.8, 0.5, 0.3)
TRIAL_PENALTY, TRIAL_ITERATIONS = 0.5, 6
ITERATIONS = 30
SETTLING_ROUNDS = 3


def alternate(problem: Problem) -> Decomposition:
    """The best split after one round, then the other rounds at that split; the best point on the way.

    Raises:
        BudgetError: the budget pays for nothing.
    """
    best = problem.first_round()
    last: Decomposition | None = best
    for _ in range(problem.rounds - 1):
        if last is None or not last.mixed:
            break  # with one part absent the first round was the optimum
        last = problem.next_round(last)
        if last and last.error < best.error:
            best = last
    return replace(best, solver="alternate")


def admm(problem: Problem) -> Decomposition:
    """What ADMM finds at the best of several splits, or the alternation's result where that is as good.

    Only the alternation runs where ADMM has nothing to do: entries that do not interact (a diagonal Σ or none), a
    TT-SVD as train, no bytes for one of the two parts, a matrix without effect.

    Raises:
        BudgetError: the budget pays for nothing.
    """
    best = alternate(problem)
    sizes = _splits(problem, best)
    if not sizes:
        return best
    found = _found(problem, sizes)
    return found if problem.cost(found) < problem.cost(best) else best


# --solver → what finds the parts
SOLVERS: dict[str, Callable[[Problem], Decomposition]] = {"alternate": alternate, "admm": admm}

_Sizes = tuple[float | None, int, int]  # share, bond, entries
_Trial = tuple[float, _Sizes]  # its cost, the split


def _splits(problem: Problem, best: Decomposition) -> list[_Sizes]:
    """The splits that ADMM tries: none where it has nothing to do."""
    if problem.metric.separable or problem.method != "bond" or not problem.norm:
        return []
    shares: Sequence[float | None]
    if problem.density is not None or problem.share is not None:
        shares = (problem.share,)
    else:
        least = problem.full_share()  # below it bytes would be left over
        shares = sorted({max(share, least) for share in (best.share, *ADMM_SHARES) if 0 < share < 1})
    sizes = [(share, *problem.sizes(share)) for share in shares]
    return [(share, bond, count) for share, bond, count in sizes if bond and count]


def _valley(trials: Iterator[_Trial]) -> _Trial:
    """The trial before the first that is worse than it: along the shares the cost has one valley.

    Splits come with the largest train first.
    """
    best = next(trials)
    for tried in trials:
        if tried[0] >= best[0]:
            break
        best = tried
    return best


def _found(problem: Problem, splits: Sequence[_Sizes]) -> Decomposition:
    """ADMM at the best of `splits`, its places settled in the problem's own metric."""
    assert problem.metric.sigma is not None  # noqa: S101 - it is not separable
    solver = Admm(problem.matrix, problem.metric.sigma, problem.pattern)

    def trial(split: _Sizes) -> _Trial:
        _, bond, count = split
        iterate = solver.start(bond, count, TRIAL_PENALTY)
        solver.run(iterate, count, TRIAL_ITERATIONS)
        return problem.weighed(solver.error(iterate) / problem.norm, bond, count), split

    _, (share, bond, count) = _valley(map(trial, reversed(splits))) if len(splits) > 1 else (0.0, splits[0])
    best = solver.start(bond, count)
    solver.run(best, count, ITERATIONS)
    a, b = (factor.to(problem.matrix) for factor in solver.factors(best))
    residual = solver.residual(best, count)
    residual = replace(residual, values=residual.values.to(problem.matrix))
    low = TensorTrain((a[None], b[..., None]), 1)
    return replace(problem.settled(low, residual, share, SETTLING_ROUNDS), solver="admm")
