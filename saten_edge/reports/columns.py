"""The one table: its columns as data, from which terminal, Markdown, CSV and page are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from saten_edge.reports.model import Report, Row
from saten_edge.reports.text import MISSING, mb, metric_title, mib, milliseconds, percent, score

__all__ = ["BRIEF", "FULL", "PAGE", "Column", "columns"]

BRIEF, PAGE, FULL = 0, 1, 2
_TIMES = {
    "p50_ms": BRIEF,
    "p90_ms": FULL,
    "p95_ms": FULL,
    "p99_ms": FULL,
    "mean_ms": FULL,
    "trimmed_mean_ms": FULL,
}
Value = float | int | None


@dataclass(frozen=True)
class Column:
    """One number per bundle.

    key: its name in CSV, unit included. group: heading shared with its neighbours; title: its own
    under that; alone: its heading where there are no groups. value: the number as measured; text:
    the number as read; note: what belongs to it, such as an interval. detail: the lowest level
    (BRIEF, PAGE, FULL) that shows it.
    """

    key: str
    group: str
    title: str
    alone: str
    value: Callable[[Row], Value]
    text: Callable[[Row], str]
    note: Callable[[Row], str] = lambda row: ""
    detail: int = BRIEF


def columns(report: Report, detail: int = FULL) -> list[Column]:
    """The columns a level of detail shows; what no bundle has a number for has none."""
    every = [*_size(report), *_latency(report), *_starting(), *_accuracy(report)]
    return [column for column in every if column.detail <= detail and _is_used(column, report)]


def _is_used(column: Column, report: Report) -> bool:
    return any(column.text(row) != MISSING for row in report.rows)


def _shown(
    key: str,
    titles: tuple[str, str, str],
    value: Callable[[Row], Value],
    show: Callable[[float | None], str],
    detail: int = BRIEF,
) -> Column:
    """A column whose text is its value, formatted."""
    return Column(key, *titles, value, lambda row: show(value(row)), detail=detail)


def _size(report: Report) -> list[Column]:
    whole = report.baseline.bytes
    return [
        _shown("bytes", ("disk", "MB", "disk MB"), lambda row: row.bytes, mb),
        _shown("bytes_share", ("disk", "%", "disk %"), lambda row: _share(row, whole), percent),
        _shown("model_bytes", ("disk", "model MB", "model MB"), lambda row: row.model_bytes, mb, FULL),
    ]


def _share(row: Row, whole: int | None) -> float | None:
    return row.bytes / whole if row.bytes is not None and whole else None


def _latency(report: Report) -> list[Column]:
    return [
        column for tokens in report.tokens for column in (*_times(tokens), *_ratios(report, tokens), _floor(tokens))
    ]


def _times(tokens: int) -> list[Column]:
    return [_time(name, tokens, detail) for name, detail in _TIMES.items()]


def _time(name: str, tokens: int, detail: int) -> Column:
    group = f"{tokens} tokens"
    title = f"{name.removesuffix('_ms').replace('_', ' ')} ms"
    return Column(
        f"{name}_{tokens}",
        group,
        title,
        f"{group} {title}",
        lambda row: row.time_ms(name, tokens),
        lambda row: "failed" if row.has_failed(tokens) else milliseconds(row.time_ms(name, tokens)),
        detail=detail,
    )


def _floor(tokens: int) -> Column:
    group = f"{tokens} tokens"
    titles = (group, "× floor", f"{group} × floor")
    return _shown(f"times_floor_{tokens}", titles, lambda row: row.times_floor(tokens), _one, PAGE)


def _one(value: Value) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _ratios(report: Report, tokens: int) -> list[Column]:
    """The ratio to the baseline; its interval beside it, and in columns of its own for machines."""
    part = partial(_ratio_part, tokens=tokens, to=report.baseline.name)
    group = f"{tokens} tokens"
    return [
        Column(
            f"ratio_{tokens}",
            group,
            "ratio",
            f"{group} ratio",
            partial(part, name="value"),
            lambda row: _two(part(row, name="value")),
            lambda row: f"{_two(low)}–{_two(part(row, name='high'))}" if (low := part(row, name="low")) else "",
            detail=BRIEF if tokens == report.tokens[-1] else PAGE,
        ),
        *(_bound(end, tokens, partial(part, name=end)) for end in ("low", "high")),
    ]


def _bound(end: str, tokens: int, value: Callable[[Row], Value]) -> Column:
    group, title = f"{tokens} tokens", f"ratio {end}"
    return _shown(f"ratio_{end}_{tokens}", (group, title, f"{group} {title}"), value, _two, FULL)


def _ratio_part(row: Row, *, tokens: int, to: str, name: str) -> float | None:
    ratio = row.ratio(tokens, to)
    value: float | None = getattr(ratio, name) if ratio else None
    return value


def _two(value: Value) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _starting() -> list[Column]:
    return [
        _shown("cold_load_ms", ("start", "load ms", "load ms"), lambda row: row.cold_load_ms, milliseconds),
        _shown("peak_anon_mib", ("memory", "peak MiB", "peak MiB"), lambda row: row.peak_anon_mib, mib),
    ]


def _accuracy(report: Report) -> list[Column]:
    return [_metric(name, report.task or "accuracy") for name in report.metrics]


def _metric(name: str, task: str) -> Column:
    title = metric_title(name)
    return _shown(name, (task, title, title), lambda row: row.metrics.get(name), score)
