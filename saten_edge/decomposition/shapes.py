"""The dims of a tensor train: how the two sides of a matrix (in, out) are factorized.

A side of n is cut into factors with product n, or, where n has no factors of like size (a vocabulary of 30522,
a prime), into factors of the next larger number that has: the rows beyond n are padding.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from saten_runtime.errors import ShapeError, UsageError

__all__ = ["Dims", "all_dims", "balanced_dims", "balanced_factors", "mode_dims"]

# Dims over `in` and dims over `out`, in the order of the cores.
Dims = tuple[tuple[int, ...], tuple[int, ...]]

# The factors of a balanced side differ by this factor at most.
MOST_UNBALANCED = 2
# Above this many candidates a search would take hours for a model.
MOST_CANDIDATES = 5000


def balanced_factors(n: int, parts: int) -> tuple[int, ...]:
    """`parts` factors of n, as equal as its divisors allow, ascending: 384, 2 → (16, 24).

    A prime factor larger than the balance stays whole (30522, 2 → (6, 5087)).
    """
    if parts == 1:
        return (n,)
    target = n ** (1 / parts)
    first = max(d for d in range(1, math.floor(target + 1e-9) + 1) if n % d == 0)
    return tuple(sorted((first, *balanced_factors(n // first, parts - 1))))


def mode_dims(shape: tuple[int, int], order: int) -> Dims:
    """The dims of `in` and of `out` for a train of `order` cores, small dims at the two ends.

    The end cores hold n² values at most, so small ends cost least. A side whose balance is worse
    than 1 : 32 (a vocabulary with a large prime factor) stays one dim, because splitting it saves
    nothing; the train then has fewer cores.
    """
    dims = []
    for n, parts in zip(shape, _sides(order), strict=True):
        factors = balanced_factors(n, parts)
        dims.append(factors if min(factors) > 1 and max(factors) <= 32 * min(factors) else (n,))
    return dims[0], tuple(reversed(dims[1]))


def balanced_dims(shape: tuple[int, int], order: int) -> list[Dims]:
    """`mode_dims`, and the padded dims where they differ: which of them stores less, a train has to show."""
    ins, outs = (_padded_factors(n, parts) for n, parts in zip(shape, _sides(order), strict=True))
    return list(dict.fromkeys([mode_dims(shape, order), (ins, tuple(reversed(outs)))]))


def all_dims(shape: tuple[int, int], order: int) -> list[Dims]:
    """Every ordered exact factorization of both sides for a train of `order` cores, no factor being 1.

    Raises:
        ShapeError: a side has none, because it is prime or has too few prime factors.
        UsageError: there are more than a search could try.
    """
    sides = []
    for name, n, parts in zip(("inputs", "outputs"), shape, _sides(order), strict=True):
        sides.append(_ordered_factors(n, parts))
        if not sides[-1]:
            raise ShapeError(f"{n} {name} have no {parts} factors above 1; lower --order or leave out --shape-search")
    count = len(sides[0]) * len(sides[1])
    if count > MOST_CANDIDATES:
        raise UsageError(
            f"--shape-search: {shape[0]} × {shape[1]} has {count} factorizations for --order {order}, "
            f"expected at most {MOST_CANDIDATES}; lower --order"
        )
    return [(ins, outs) for ins in sides[0] for outs in sides[1]]


def _sides(order: int) -> tuple[int, int]:
    return order - order // 2, order // 2


def _padded_factors(n: int, parts: int) -> tuple[int, ...]:
    """Balanced factors of the smallest number from n on that has them; n itself where it is too small to cut."""
    if n < 2**parts:
        return (n,)
    candidates = (balanced_factors(size, parts) for size in itertools.count(n))
    return next(factors for factors in candidates if max(factors) <= MOST_UNBALANCED * min(factors))


@lru_cache(maxsize=256)
def _ordered_factors(n: int, parts: int) -> tuple[tuple[int, ...], ...]:
    if parts == 1:
        return ((n,),) if n > 1 else ()
    divisors = (d for d in range(2, n // 2 + 1) if n % d == 0)
    return tuple((d, *rest) for d in divisors for rest in _ordered_factors(n // d, parts - 1))
