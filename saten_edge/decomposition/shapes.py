"""The dims of a tensor train: how the two sides of a matrix (in, out) are factorized.

A side of n is cut into factors with product n, or, where n has no factors of like size (a vocabulary of 30522,
a prime), into factors of a slightly larger number that has: the rows beyond n are padding.

At one eps the values of a TT-SVD are those left of the bond, which the dims of `in` decide, and those right of it,
which the dims of `out` decide. So a search has candidates for each side, not for both together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache

__all__ = [
    "Dims",
    "Sides",
    "balanced_factors",
    "balanced_sides",
    "full_train_numel",
    "mode_dims",
    "outwards",
    "searched_sides",
    "side_dims",
    "smallest_full_dims",
]

# Dims over `in` and dims over `out`, in the order of the cores.
Dims = tuple[tuple[int, ...], tuple[int, ...]]
# What the dims over `in`, and those over `out`, may be; of each the preferred ones first.
Sides = tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]

# The factors of a balanced side differ by this factor at most, and those of a padded one that a search tries by that.
MOST_UNBALANCED, MOST_UNBALANCED_PADDED = 2, 8
# Padding that a search tries, as a share of a side.
MOST_PADDING = 0.02
# Parts of a side → dims that differ by less than this factor cut a matrix almost alike, and a search tries one of them.
ALIKE = {2: 1.05, 3: 1.25}


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


def balanced_sides(shape: tuple[int, int], order: int) -> Sides:
    """`mode_dims`, and the padded dims where they differ: which of them stores less, a train has to show."""
    ins, outs = (_padded_factors(n, parts) for n, parts in zip(shape, _sides(order), strict=True))
    modes = mode_dims(shape, order)
    return _distinct(modes[0], ins), _distinct(modes[1], tuple(reversed(outs)))


def searched_sides(shape: tuple[int, int], order: int) -> Sides:
    """`balanced_sides`, and `side_dims` of either side."""
    ins, outs = (side_dims(n, parts) for n, parts in zip(shape, _sides(order), strict=True))
    balanced = balanced_sides(shape, order)
    return _distinct(*balanced[0], *ins), _distinct(*balanced[1], *(tuple(reversed(each)) for each in outs))


@lru_cache(maxsize=64)
def side_dims(n: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """Every ordered factorization of n without 1, and padded ones of like size; none for a small prime.

    Of padded dims that are `ALIKE` the ones with the least padding stay, the first of several, and none where an exact
    factorization is alike: 30522 has 6 exact ones of 2 parts and 44 of 435 padded ones.
    """
    if parts == 1:
        return ((n,),)
    exact = _ordered_factors(n, parts)
    padded: dict[tuple[int, ...], tuple[int, ...]] = {}
    taken = {_cell(dims) for dims in exact}
    for dims in sorted(_padded_dims(n, parts), key=lambda dims: (math.prod(dims), dims)):
        if _cell(dims) not in taken:
            padded.setdefault(_cell(dims), dims)
    return (*exact, *padded.values())


def _cell(dims: tuple[int, ...]) -> tuple[int, ...]:
    width = math.log(ALIKE[len(dims)])
    return tuple(int(math.log(each) / width) for each in dims[:-1])


def _sides(order: int) -> tuple[int, int]:
    return order - order // 2, order // 2


def _padded_factors(n: int, parts: int) -> tuple[int, ...]:
    """Balanced factors of the smallest number from n on that has them; n itself where it is too small to cut."""
    if n < 2**parts:
        return (n,)
    candidates = (balanced_factors(size, parts) for size in itertools.count(n))
    return next(factors for factors in candidates if max(factors) <= MOST_UNBALANCED * min(factors))


def _distinct(*candidates: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(dict.fromkeys(candidates))


def _padded_dims(n: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every (a, b …) of like size where each dim after a is the least that covers n."""
    for dims in _covering(n, parts, MOST_UNBALANCED_PADDED ** (parts - 1)):
        like = min(dims) > 1 and max(dims) <= MOST_UNBALANCED_PADDED * min(dims)
        if like and math.prod(dims) <= (1 + MOST_PADDING) * n:
            yield dims


def _covering(n: int, parts: int, spread: float) -> Iterator[tuple[int, ...]]:
    """Dims with a product of n or more, the first within n^(1/parts) · spread^(±1/parts)."""
    if parts == 1:
        yield (n,)
        return
    first, last = ((n * factor) ** (1 / parts) for factor in (1 / spread, spread))
    for a in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        yield from ((a, *rest) for rest in _covering(math.ceil(n / a), parts - 1, spread))


@lru_cache(maxsize=256)
def _ordered_factors(n: int, parts: int) -> tuple[tuple[int, ...], ...]:
    if parts == 1:
        return ((n,),) if n > 1 else ()
    divisors = (d for d in range(2, n // 2 + 1) if n % d == 0)
    return tuple((d, *rest) for d in divisors for rest in _ordered_factors(n // d, parts - 1))


def full_train_numel(dims: Dims, bond: int) -> int:
    """Values of a train over `dims` with this bond and every other rank as large as it can be.

    Never less than the bond · (in + out) of its folded factors, which such a train can all represent.
    """
    return sum(_full_half_numel(half, bond) for half in outwards(dims))


def smallest_full_dims(sides: Sides, bond: int) -> Dims:
    """The dims of the smallest `full_train_numel`."""
    ins, outs = sides
    return (
        min(ins, key=lambda dims: _full_half_numel(dims, bond)),
        min(outs, key=lambda dims: _full_half_numel(tuple(reversed(dims)), bond)),
    )


def _full_half_numel(dims: tuple[int, ...], bond: int) -> int:
    left, total = 1, 0
    for k, n in enumerate(dims):
        right = min(left * n, math.prod(dims[k + 1 :]) * bond) if k + 1 < len(dims) else bond
        total += left * n * right
        left = right
    return total


def outwards(dims: Dims) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dims of each side from its free end to the bond."""
    return dims[0], tuple(reversed(dims[1]))
