"""The pictures of a report, as inline SVG; each is None where its numbers were not measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from saten_edge.reports.bars import Bar, Group, Part, bar_chart
from saten_edge.reports.colors import GRID, SERIES, series
from saten_edge.reports.curves import Curve, Spread, curve_chart, spread_chart
from saten_edge.reports.model import Report, Row
from saten_edge.reports.scatter import loss_chart, trade_chart
from saten_edge.reports.text import MIB, mb, mib, milliseconds, plural
from saten_edge.reports.trials import trials_chart
from saten_runtime.bench.profiling import Profile

__all__ = ["Plot", "plots"]

_MOST_KINDS = 10
_QUANTILES = 21
_PER_RUN = "milliseconds per run"


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
        "Each circle is a bundle, and its area shows the bytes on disk. Further left is faster at "
        f"{_longest(report)} tokens (the scale is logarithmic), higher is more accurate, so a small circle in the "
        "upper left is best. The line joins the bundles that no other beats in both."
    )
    return Plot("The trade", caption, svg) if svg else None


def _trials(report: Report) -> Plot | None:
    svg = trials_chart(report.trials)
    caption = (
        "Every candidate of the search that was computed, by its bytes and the points it loses; lower and further left "
        "is better. A cross is one that was dropped on its way, with what was known of it then. A dot was measured, "
        "the large one is the answer, and the line joins those that no other beats in both. What loses more than the "
        "axis shows is drawn at its end."
    )
    return Plot("The search", caption, svg) if svg else None


def _latency(report: Report) -> Plot | None:
    spreads = {tokens: tuple(_latency_spreads(report, tokens)) for tokens in report.tokens}
    if spreads and sum(map(len, spreads.values())) == sum(len(row.cells) for row in report.rows):
        found = [(plural(tokens, "token"), rows) for tokens, rows in spreads.items()]
        caption = (
            "How the runs spread: the mark is the median (p50), written beside it. Half of all runs lie in the box, "
            "nine in ten on the line. A long line means an uneven response."
        )
        return Plot("Latency", caption, spread_chart("latency", "Latency by token count", _PER_RUN, found))
    return _latency_bars_plot(report)


def _latency_spreads(report: Report, tokens: int) -> Iterable[Spread]:
    colors = _colors(report)
    for row in report.rows:
        cell, median = row.cells.get(tokens), row.p50_ms(tokens)
        if cell and median is not None and len(cell.quantiles_ms) == _QUANTILES:
            yield Spread(row.name, cell.quantiles_ms, f"{milliseconds(median)} ms", colors[row.name])


def _latency_bars_plot(report: Report) -> Plot | None:
    """Of a run that recorded no distribution, or failed in a cell: medians and p90."""
    bars = {tokens: tuple(_latency_bars(report, tokens)) for tokens in report.tokens}
    groups = [Group(plural(tokens, "token"), found) for tokens, found in bars.items() if found]
    if not any(bar.parts for group in groups for bar in group.bars):
        return None
    caption = (
        "Bars end at the median (p50), written beside them. The whisker reaches p90, the time that one run in ten "
        "exceeds. A long whisker means an uneven response."
    )
    return Plot("Latency", caption, bar_chart("latency", "Latency by token count", _PER_RUN, groups))


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
        "Full colour: added by loading the bundle. Pale: added at the peak. The number is the peak."
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


def _memory_timeline(report: Report) -> Plot | None:
    loads = [(row, row.load.memory.timeline) for row in report.rows if row.load and row.load.memory]
    found = [(row, timeline) for row, timeline in loads if len(timeline.times_ms) > 1]
    if not found:
        return None
    colors, names = _colors(report), series(report.rows)
    curves = [
        Curve(row.name, one.times_ms, [size / MIB for size in one.rss_anon_bytes], colors[row.name])
        for row, one in found
    ]
    caption = (
        "The same memory over the life of a process: it imports ONNX Runtime, makes the session, and runs the largest "
        "input three times. A board must have enough free memory for the spike while loading."
    )
    svg = curve_chart("timeline", "Anonymous memory over time", ("milliseconds since the start", "MiB"), curves)
    return Plot("Memory over time", caption, svg, tuple((row.name, names[row.name]) for row, _ in found))


def _floor(report: Report) -> Plot | None:
    colors = _colors(report)
    groups = []
    for tokens in report.tokens:
        bars = []
        for row in report.rows:
            cell, time = row.cells.get(tokens), row.p50_ms(tokens)
            if cell and cell.floor and time:
                parts = (
                    Part(cell.floor.ms, colors[row.name]),
                    Part(max(0, time - cell.floor.ms), colors[row.name], 0.3),
                )
                bars.append(Bar(row.name, parts, f"{time / cell.floor.ms:.1f}× ({cell.floor.bound})"))
        if bars:
            groups.append(Group(plural(tokens, "token"), tuple(bars)))
    if not groups:
        return None
    caption = (
        "Full colour: the floor, the time that no program could beat at this machine’s measured multiplication and "
        "copy rates. Pale: what the median takes beyond it. The number is the median divided by the floor, and "
        "what bounds it."
    )
    return Plot("Distance to the floor", caption, bar_chart("floor", "Time and floor", _PER_RUN, groups))


def _layer_time(report: Report) -> Plot | None:
    rows = [row for row in report.rows if row.name in report.profiles]
    if not rows:
        return None
    colors, names = _colors(report), series(report.rows)
    sums = {row.name: _time_by_kind(report.profiles[row.name]) for row in rows}
    totals = {kind: max(one.get(kind, 0.0) for one in sums.values()) for one in sums.values() for kind in one}
    largest = sorted(totals, key=lambda kind: -totals[kind])[:_MOST_KINDS]
    groups = [
        Group(
            kind,
            tuple(
                Bar(row.name, (Part(ms, colors[row.name]),), f"{milliseconds(ms)} ms")
                for row in rows
                if (ms := sums[row.name].get(kind, 0.0)) > 0
            ),
        )
        for kind in largest
    ]
    caption = (
        "Where the time goes, from ONNX Runtime’s profile: layers of the same kind are summed over the model, "
        "operators outside of layers are shown by name. The largest come first."
    )
    svg = bar_chart("time", "Time by kind of layer", _PER_RUN, groups, labelled=False, bar_px=16)
    return Plot("Time per layer", caption, svg, tuple((row.name, names[row.name]) for row in rows))


def _time_by_kind(profile: Profile) -> dict[str, float]:
    sums: dict[str, float] = {}
    for row in profile.rows:
        kind = _kind(row.name) if row.form is not None else f"{row.name}, outside of layers"
        sums[kind] = sums.get(kind, 0.0) + row.ms
    return sums


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
        "Where the bytes are: weights of the same kind are summed over the model, indices included. “Everything else” "
        "is the graph itself, biases, norms and other small tensors."
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
    caption = "Loss of the fine-tuning by optimizer step. If it still falls at the end, more steps would help."
    return Plot("Fine-tuning", caption, loss_chart(report.history))


def _longest(report: Report) -> int:
    return report.tokens[-1] if report.tokens else 0


def _colors(report: Report) -> dict[str, str]:
    """The colour each bundle is drawn in, which the page replaces by its own."""
    return {bundle: SERIES[name][0] for bundle, name in series(report.rows).items()}


_PLOTS: tuple[Callable[[Report], Plot | None], ...] = (
    _trials,
    _trade,
    _latency,
    _floor,
    _memory,
    _memory_timeline,
    _loss,
    _layer_bytes,
    _layer_time,
)
