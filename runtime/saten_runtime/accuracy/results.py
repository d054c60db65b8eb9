"""What an evaluation says in the end: the schema of `eval.json`, and the result as a table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from saten_runtime.bench.stats import Interval
from saten_runtime.records.plain_text import align
from saten_runtime.records.reader import Count, read_result

__all__ = [
    "EVAL_FILE",
    "SCHEMA_VERSION",
    "Agreement",
    "EvalData",
    "EvalResult",
    "EvalRow",
    "Metrics",
    "eval_table",
    "read_evaluation",
]

EVAL_FILE = "eval.json"
SCHEMA_VERSION = 1
Metrics = dict[str, float | None]
"""By name; None where a metric does not apply."""


@dataclass(frozen=True)
class Agreement:
    """A bundle against the bundle `to`, on the same examples.

    same: share of the examples about which both say the same. mcnemar_p: probability that two
    equally good models differ so much, see `metrics.mcnemar`. Both None where the measure has no
    yes or no. differences: metric minus the other's, with its 95 % interval (paired bootstrap over
    examples).
    """

    to: str
    same: float | None
    mcnemar_p: float | None
    differences: dict[str, Interval]


@dataclass(frozen=True)
class EvalRow:
    """One bundle: its metrics, the seconds its predictions took, and its agreement with the reference."""

    bundle: str
    metrics: Metrics
    seconds: float | None = None
    agreement: Agreement | None = None


@dataclass(frozen=True)
class EvalData:
    """The file that was evaluated on: `count` examples."""

    file: str
    sha256: str
    count: Count


@dataclass(frozen=True)
class EvalResult:
    """Content of `eval.json`. task: name of the `Measure`."""

    schema_version: int
    task: str
    data: EvalData
    rows: list[EvalRow]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return dataclasses.asdict(self)


def read_evaluation(value: object, where: str = EVAL_FILE) -> EvalResult:
    """The content of `eval.json`, its strings made printable.

    where: names it in errors.

    Raises:
        DataError: another schema version, or a field missing, of a wrong type or out of range.
    """
    return read_result(EvalResult, value, where, SCHEMA_VERSION)


def eval_table(result: EvalResult) -> str:
    """Metrics of every bundle as aligned text; where there is a reference, what they differ by and how surely."""
    names = list(dict.fromkeys(name for row in result.rows for name in row.metrics))
    lines = [("bundle", *names, "seconds")]
    lines += [
        (row.bundle, *(_number(row.metrics.get(name)) for name in names), _number(row.seconds, 1))
        for row in result.rows
    ]
    tables = [align(lines)]
    if agreements := [(row.bundle, row.agreement) for row in result.rows if row.agreement]:
        differing = list(agreements[0][1].differences)
        head = (f"against {agreements[0][1].to}", "same", "McNemar p", *(f"{name} [95 %]" for name in differing))
        rows = [
            (
                bundle,
                _number(one.same),
                _number(one.mcnemar_p),
                *(_interval(one.differences[name]) for name in differing),
            )
            for bundle, one in agreements
        ]
        tables.append(align([head, *rows]))
    return "\n\n".join(tables)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(one: Interval) -> str:
    return "-" if one.value is None else f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
