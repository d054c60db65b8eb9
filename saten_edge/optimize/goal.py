"""The goal, and how far a measured bundle is from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from saten_edge.optimize.space import Candidate
from saten_edge.options import OptimizeOptions

__all__ = ["Limit", "Row", "answer", "excess", "limits", "meets", "missed", "preferred", "ranked"]


@dataclass(frozen=True)
class Row:
    """A bundle that was measured. drop, confirm_drop: points lost on the part that steers and on the one that confirms.

    steer, confirm: the metric itself; None where it is not defined. ms: median, on the slowest device; None where it
    failed. ms_on: the same by device, where devices were named. trial: its number; None of a dense model.
    """

    name: str
    candidate: Candidate
    trial: int | None
    bytes: int
    ms: float | None
    steer: float | None
    drop: float
    confirm: float | None
    confirm_drop: float
    ms_on: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def dense(self) -> bool:
        """Whether it is one of the rivals."""
        return self.candidate.compress is None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**asdict(self), "candidate": self.candidate.label}


@dataclass(frozen=True)
class Limit:
    """One limit: the option that sets it, and a row's value, in the option's unit; infinite where it is not known."""

    option: str
    most: float
    value: float

    @property
    def excess(self) -> float:
        """How far the value is above the limit, as a share of it; 0 within."""
        return max(0.0, self.value - self.most) / (self.most or 1.0)

    @property
    def asked(self) -> str:
        """The option that would let the row in."""
        return f"{self.option} {_up(self.value)}"


def limits(row: Row, options: OptimizeOptions, *, confirmed: bool = True) -> Iterator[Limit]:
    """Every limit of a goal, for a row; confirmed: the worse of both parts counts."""
    yield Limit("--max-drop", options.max_drop, max(row.drop, row.confirm_drop) if confirmed else row.drop)
    if options.max_mb is not None:
        yield Limit("--max-mb", options.max_mb, row.bytes / 1e6)
    if options.max_ms is not None:
        yield Limit("--max-ms", options.max_ms, float("inf") if row.ms is None else row.ms)


def excess(row: Row, options: OptimizeOptions) -> float:
    """How far a row is from the goal in all; 0 where it meets it."""
    return sum(limit.excess for limit in limits(row, options))


def meets(row: Row, options: OptimizeOptions, *, confirmed: bool = True) -> bool:
    """Whether a row is within every limit."""
    return all(limit.excess == 0 for limit in limits(row, options, confirmed=confirmed))


def preferred(row: Row, options: OptimizeOptions) -> tuple[float, ...]:
    """What is best of rows that meet the goal comes first by this."""
    ms = float("inf") if row.ms is None else row.ms
    order = {"bytes": (row.bytes, ms, row.drop), "time": (ms, row.bytes, row.drop), "accuracy": (row.drop, row.bytes)}
    return order[options.objective]


def ranked(rows: Sequence[Row], options: OptimizeOptions) -> list[Row]:
    """Those that meet the goal on the part that steers, the best first: the order in which they are confirmed."""
    steered = [row for row in rows if meets(row, options, confirmed=False)]
    return sorted(steered, key=lambda row: preferred(row, options))


def answer(rows: Sequence[Row], options: OptimizeOptions) -> Row | None:
    """The best row that meets the goal on both parts; None where none does."""
    return next((row for row in ranked(rows, options) if meets(row, options)), None)


def missed(rows: Sequence[Row], options: OptimizeOptions) -> list[str]:
    """The nearest rows, and for each what would have to give."""
    nearest = sorted(rows, key=lambda row: (excess(row, options), *preferred(row, options)))
    ways: dict[tuple[str, ...], str] = {}
    for row in nearest:
        broken = [limit for limit in limits(row, options) if limit.excess]
        kinds = tuple(limit.option for limit in broken)
        ways.setdefault(kinds, f"{row.name} would do with {' and '.join(limit.asked for limit in broken)}")
    return list(ways.values())[:3]


def _up(value: float) -> str:
    """Rounded up to two digits behind the point, so that the number lets the value in."""
    return f"{math.ceil(value * 100) / 100:g}" if math.isfinite(value) else "inf"
