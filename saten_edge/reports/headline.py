"""The trade in words, from the numbers, good or bad."""

from __future__ import annotations

from collections.abc import Callable

from saten_edge.reports.model import Report, Row
from saten_edge.reports.text import mb, metric_title, milliseconds, percent, score

__all__ = ["comparisons", "headline"]


def headline(report: Report) -> str:
    """One sentence: a search's answer; the smallest compressed bundle against the baseline; the only bundle alone."""
    if report.answer:
        return report.answer
    pairs = _pairs(report)
    return _against(report, *pairs[0]) if pairs else _alone(report, report.baseline)


def comparisons(report: Report) -> tuple[str, ...]:
    """A sentence for every further pair: each compressed bundle against the dense one of its precision."""
    return tuple(_against(report, row, other) for row, other in _pairs(report)[1:])


def _pairs(report: Report) -> list[tuple[Row, Row]]:
    others = [row for row in report.rows if row is not report.baseline]
    subjects = [row for row in others if not row.dense] or others
    subjects.sort(key=lambda row: row.bytes if row.bytes is not None else float("inf"))
    first = [(row, report.baseline) for row in subjects[:1]]
    peers = [(row, _peer(report, row)) for row in subjects]
    return first + [pair for pair in peers if pair not in first]


def _peer(report: Report, row: Row) -> Row:
    """The dense bundle of the same precision: what a user would ship otherwise."""
    same = (other for other in report.rows if other.dense and other is not row and other.precision == row.precision)
    return next(same, report.baseline)


def _against(report: Report, row: Row, other: Row) -> str:
    clauses = [clause(report, row, other) for clause in _CLAUSES]
    return _sentence(row.name, clauses) or f"{row.name} and {other.name} share no measurement."


def _alone(report: Report, row: Row) -> str:
    tokens = report.tokens[-1] if report.tokens else 0
    time = row.p50_ms(tokens)
    metric = report.metrics[0] if report.metrics else ""
    value = row.metrics.get(metric)
    clauses = [
        f"takes {mb(row.bytes)} MB" if row.bytes else "",
        f"runs {tokens} tokens in {milliseconds(time)} ms" if time else "",
        f"reaches {metric_title(metric)} {score(value)}" if value is not None else "",
    ]
    return _sentence(row.name, clauses) or f"{row.name} has not been measured."


def _sentence(subject: str, clauses: list[str]) -> str:
    said = [clause for clause in clauses if clause]
    if not said:
        return ""
    comma = "," if len(said) > 2 else ""
    return f"{subject} " + (f"{', '.join(said[:-1])}{comma} and " if said[:-1] else "") + f"{said[-1]}."


def _size_clause(report: Report, row: Row, other: Row) -> str:
    if not row.bytes or not other.bytes:
        return ""
    return f"takes {percent(row.bytes / other.bytes)}\N{NO-BREAK SPACE}% of {other.name}’s bytes"


def _time_clause(report: Report, row: Row, other: Row) -> str:
    for tokens in reversed(report.tokens):
        if row.has_failed(tokens):
            return f"fails at {tokens} tokens"
        mine, theirs = row.p50_ms(tokens), other.p50_ms(tokens)
        if mine and theirs:
            return _time_words(row, other, tokens, mine / theirs)
    return ""


def _time_words(row: Row, other: Row, tokens: int, quotient: float) -> str:
    ratio = row.ratio(tokens, other.name)
    value = ratio.value if ratio else quotient
    whose = "its" if row.bytes and other.bytes else f"{other.name}’s"
    if ratio and ratio.low <= 1 <= ratio.high:
        return f"takes about {whose} time for {tokens} tokens ({value:.2f}×, the interval includes 1)"
    return f"runs {tokens} tokens in {value:.2f}× {whose} time" + (" (slower)" if value > 1 else "")


def _accuracy_clause(report: Report, row: Row, other: Row) -> str:
    for metric in report.metrics:
        mine, theirs = row.metrics.get(metric), other.metrics.get(metric)
        if mine is not None and theirs is not None:
            return f"reaches {metric_title(metric)} {score(mine)} against {score(theirs)}"
    return ""


_CLAUSES: tuple[Callable[[Report, Row, Row], str], ...] = (_size_clause, _time_clause, _accuracy_clause)
