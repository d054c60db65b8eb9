"""The pictures of a report, as inline SVG; each is None where its numbers were not measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from saten_edge.report.bars import Bar, Group, Part, bar_chart
from saten_edge.report.colors import GRID, SERIES, series
from saten_edge.report.model import Report, Row
from saten_edge.report.scatter import loss_chart, trade_chart
from saten_edge.report.text import MIB, mb, mib, milliseconds, plural

__all__ = ["Plot", "plots"]

_MOST_KINDS = 10


@dataclass(frozen=True)
class Plot:
    """A picture, what it shows, how to read it, and the bundles its colours stand for.

    legend: (bundle, name in `SERIES`), empty where the picture names its bundles itself.
    """

    title: str
    caption: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()


def plots(report: Report) -> list[Plot]:
    """Every picture the report has the numbers for, in reading order."""
    return [plot for plot in (draw(report) for draw in _PLOTS) if plot]


def _trade(report: Report) -> Plot | None:
    svg = trade_chart(report)
    caption = (
        f"Each circle is a bundle, its area the bytes on disk. Further left is faster at {_longest(report)} tokens "
        "(the scale is logarithmic), higher is more accurate: the best place is the upper left, in a small circle."
    )
    return Plot("The trade", caption, svg) if svg else None


def _latency(report: Report) -> Plot | None:
    bars = {tokens: tuple(_latency_bars(report, tokens)) for tokens in report.tokens}
    groups = [Group(plural(tokens, "token"), found) for tokens, found in bars.items() if found]
    if not any(bar.parts for group in groups for bar in group.bars):
        return None
    caption = (
        "Bars end at the median (p50), written beside them; the whisker reaches to p90, the time that one run in ten "
        "exceeds. A long whisker means an uneven response."
    )
    return Plot("Latency", caption, bar_chart("latency", "Latency by token count", "milliseconds per run", groups))


def _latency_bars(report: Report, tokens: int) -> Iterable[Bar]:
    colors = _colors(report)
    for row in report.rows:
        if tokens not in row.cells:
            continue
        median = row.p50_ms(tokens)
        if median is None:
            yield Bar(row.name, (), "failed")
        else:
            part = Part(median, colors[row.name])
            yield Bar(row.name, (part,), f"{milliseconds(median)} ms", row.time_ms("p90_ms", tokens))


def _memory(report: Report) -> Plot | None:
    bars = tuple(bar for row in report.rows if (bar := _memory_bar(row, _colors(report)[row.name])))
    if not bars:
        return None
    caption = (
        "Anonymous memory of the process, which the system cannot take back. Grey: Python and ONNX Runtime themselves. "
        "Full colour: added by loading the bundle. Pale: added on top at the highest moment, written beside."
    )
    group = Group("Highest anonymous memory", bars)
    return Plot("Memory", caption, bar_chart("memory", "Memory by bundle", "MiB", [group], bar_px=26))


def _memory_bar(row: Row, color: str) -> Bar | None:
    memory = row.load.memory if row.load else None
    if memory is None or memory.peak_anon_bytes is None:
        return None
    peak = memory.peak_anon_bytes
    interpreter = min(memory.interpreter_anon_bytes or 0, peak)
    loaded = min(max(memory.loaded.rss_anon_bytes or 0, interpreter), peak)
    parts = (
        Part(interpreter / MIB, GRID),
        Part((loaded - interpreter) / MIB, color),
        Part((peak - loaded) / MIB, color, 0.45),
    )
    return Bar(row.name, parts, f"{mib(peak / MIB)} MiB")


def _layer_bytes(report: Report) -> Plot | None:
    rows = [row for row in report.rows if row.layers]
    if not rows:
        return None
    colors = _colors(report)
    kinds = _kinds(rows)
    groups = [
        Group(
            kind,
            tuple(Bar(row.name, (Part(size / 1e6, colors[row.name]),), f"{mb(size)} MB") for row, size in sizes),
        )
        for kind, sizes in kinds.items()
    ]
    caption = (
        "Where the bytes are: weights of the same kind summed over the model, indices included. “Everything else” is "
        "the graph itself, biases, norms and other small tensors."
    )
    svg = bar_chart("layers", "Bytes by kind of layer", "MB", groups, labelled=False, bar_px=16)
    names = series(report.rows)
    return Plot("Bytes per layer", caption, svg, tuple((row.name, names[row.name]) for row in rows))


def _kinds(rows: list[Row]) -> dict[str, list[tuple[Row, int]]]:
    """By kind of layer, each bundle's bytes; the largest kinds first, small ones beyond ten together."""
    sums = [_bytes_by_kind(row) for row in rows]
    largest = sorted(
        {kind for one in sums for kind in one}, key=lambda kind: (-max(one.get(kind, 0) for one in sums), kind)
    )
    kept, rest = largest[:_MOST_KINDS], largest[_MOST_KINDS:]
    result = {
        f"{kind} {_times(rows, kind)}".strip(): [(row, one.get(kind, 0)) for row, one in zip(rows, sums, strict=True)]
        for kind in kept
    }
    other = [
        (row, sum(one.get(kind, 0) for kind in rest) + max(0, (row.model_bytes or 0) - sum(one.values())))
        for row, one in zip(rows, sums, strict=True)
    ]
    return result | {"everything else": other}


def _bytes_by_kind(row: Row) -> dict[str, int]:
    sums: dict[str, int] = {}
    for layer in row.layers:
        kind = _kind(layer.name)
        sums[kind] = sums.get(kind, 0) + layer.bytes
    return sums


def _kind(name: str) -> str:
    """`encoder.layer.3.output.dense` as `output.dense`: what follows the layer's number."""
    return re.split(r"\.\d+\.", name)[-1]


def _times(rows: list[Row], kind: str) -> str:
    number = max(sum(_kind(layer.name) == kind for layer in row.layers) for row in rows)
    return f"× {number}" if number > 1 else ""


def _loss(report: Report) -> Plot | None:
    if len(report.history) < 2:
        return None
    caption = "Loss of the fine-tuning by optimizer step. A curve still falling at its end would gain from more steps."
    return Plot("Fine-tuning", caption, loss_chart(report.history))


def _longest(report: Report) -> int:
    return report.tokens[-1] if report.tokens else 0


def _colors(report: Report) -> dict[str, str]:
    """The colour each bundle is drawn in, which the page replaces by its own."""
    return {bundle: SERIES[name][0] for bundle, name in series(report.rows).items()}


_PLOTS: tuple[Callable[[Report], Plot | None], ...] = (_trade, _latency, _memory, _loss, _layer_bytes)
