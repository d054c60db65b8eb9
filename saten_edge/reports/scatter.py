"""The two pictures that are not bars: the trade as bubbles, and the fine-tuning as a curve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from saten_edge.reports.bars import short
from saten_edge.reports.colors import INK, MUTED, SERIES, series
from saten_edge.reports.model import Report, Step
from saten_edge.reports.svg import CHAR_PX, WIDTH, drawing, inline_svg, new_axes
from saten_edge.reports.text import mb, metric_title, milliseconds, score

__all__ = ["log_x", "loss_chart", "trade_chart"]

_LARGEST_PX = 30.0
_SMALLEST_PX = 4.0
_LINE_PX = 15.0
_SQUARE_PX = 6.0
_LEFT_PX = 64.0  # ticks of three decimals and the name of the axis


@dataclass(frozen=True)
class _Point:
    name: str
    milliseconds: float
    score: float
    radius_px: float
    color: str
    lines: tuple[str, str]


def trade_chart(report: Report) -> str | None:
    """Latency at the largest token count (log) × first metric, area ∝ bytes; None without both."""
    points = _points(report)
    if not points:
        return None
    metric = metric_title(report.metrics[0])
    with drawing():
        axes = new_axes(340, left=_LEFT_PX, bottom=46, top=14, right=12)
        _limits(axes, points)
        axes.set_xlabel(f"p50 at {report.tokens[-1]} tokens, milliseconds (log scale)")
        axes.set_ylabel(metric)
        axes.grid(True, linewidth=1)
        axes.set_axisbelow(True)
        for point in points:
            diameter = 2 * point.radius_px
            place = ([point.milliseconds], [point.score])
            axes.scatter(*place, s=diameter**2, color=point.color, alpha=0.8, linewidth=0)
        front = _front(points)
        if len(front) > 1:
            axes.plot([p.milliseconds for p in front], [p.score for p in front], color=MUTED, linewidth=1, zorder=1)
        _label(axes, points, front)
        words = [
            f"{point.name}: {point.lines[1]}, {milliseconds(point.milliseconds)} ms, {metric} {score(point.score)}"
            for point in points
        ]
        return inline_svg(axes, "trade", f"Size, latency and {metric}", words)


def _points(report: Report) -> list[_Point]:
    if not report.tokens or not report.metrics:
        return []
    names = series(report.rows)
    largest = max((row.bytes or 0 for row in report.rows), default=0) or 1
    result = []
    for row in report.rows:
        time, value = row.p50_ms(report.tokens[-1]), row.metrics.get(report.metrics[0])
        if time is None or value is None:
            continue
        radius = max(_SMALLEST_PX, _LARGEST_PX * math.sqrt((row.bytes or 0) / largest))
        lines = (short(row.name), f"{mb(row.bytes)} MB" if row.bytes else "size not known")
        result.append(_Point(row.name, time, value, radius, SERIES[names[row.name]][0], lines))
    return result


def _front(points: Sequence[_Point]) -> list[_Point]:
    """The points that no other beats in both time and score, fastest first."""
    best: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.milliseconds, -point.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best


def _limits(axes: Axes, points: Sequence[_Point]) -> None:
    times, scores = [point.milliseconds for point in points], [point.score for point in points]
    margin = max(max(scores) - min(scores), 0.01) * 0.45
    log_x(axes, min(times) / 1.45, max(times) * 1.45)
    axes.set_ylim(min(scores) - margin, max(scores) + margin)
    axes.locator_params(axis="y", nbins=6)


def log_x(axes: Axes, low: float, high: float) -> None:
    """Make x logarithmic from `low` to `high`, with round numbers as its ticks."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`: the coarsest of three series that has at least four."""
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) >= 4:
            break
    return ticks


@dataclass(frozen=True)
class _Box:
    """A rectangle in px, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: _Box) -> float:
        """Area shared with `other`."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)


def _label(axes: Axes, points: Sequence[_Point], front: Sequence[_Point]) -> None:
    """Write each name where it covers least, the line of the front included: right, left, above or below its circle."""
    transform = axes.transData
    centers = [tuple(transform.transform((point.milliseconds, point.score))) for point in points]
    drawn = _along([centers[points.index(point)] for point in front])
    taken = [
        _Box(x - p.radius_px, y - p.radius_px, x + p.radius_px, y + p.radius_px)
        for (x, y), p in zip(centers, points, strict=True)
    ]
    for index, (point, (x, y)) in enumerate(zip(points, centers, strict=True)):
        # Its own circle is no obstacle: every candidate stands clear of it.
        obstacles = taken[:index] + taken[index + 1 :] + drawn
        box = min(_candidates(point, x, y), key=lambda candidate: _cost(candidate, obstacles))
        taken.append(box)
        for line, (text, color) in enumerate(zip(point.lines, (INK, MUTED), strict=True)):
            axes.annotate(text, (box.left, box.top - 11 - line * _LINE_PX), xycoords="figure pixels", color=color)


def _along(corners: Sequence[tuple[float, float]]) -> list[_Box]:
    """Squares that cover the line from corner to corner."""
    squares = []
    for (x, y), (to_x, to_y) in itertools.pairwise(corners):
        steps = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / _SQUARE_PX))
        for step in range(steps + 1):
            left, bottom = x + (to_x - x) * step / steps, y + (to_y - y) * step / steps
            half = _SQUARE_PX / 2
            squares.append(_Box(left - half, bottom - half, left + half, bottom + half))
    return squares


def _candidates(point: _Point, x: float, y: float) -> Iterable[_Box]:
    width, height = max(map(len, point.lines)) * CHAR_PX, 2 * _LINE_PX
    gap = point.radius_px + 6
    corners = (
        (x + gap, y - height / 2),
        (x - gap - width, y - height / 2),
        (x - width / 2, y + gap - 2),
        (x - width / 2, y - gap - height + 2),
    )
    return [_Box(left, bottom, left + width, bottom + height) for left, bottom in corners]


def _cost(box: _Box, obstacles: Sequence[_Box]) -> float:
    beyond = (_LEFT_PX - box.left, box.right - WIDTH, 46 - box.bottom, box.top - 340)
    outside = sum(max(0.0, pixels) for pixels in beyond)
    return sum(box.overlap(obstacle) for obstacle in obstacles) + 100 * outside


def loss_chart(history: Sequence[Step]) -> str:
    """Loss by step; logarithmic where it falls by more than a factor of ten."""
    steps, losses = [one.step for one in history], [one.loss for one in history]
    with drawing():
        axes = new_axes(220, left=60, bottom=46)
        axes.plot(steps, losses, color=SERIES["saten-0"][0], linewidth=1.8)
        if min(losses) > 0 and max(losses) > 10 * min(losses):
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(True, linewidth=1)
        words = [f"from {losses[0]:.4g} at step {steps[0]} to {losses[-1]:.4g} at step {steps[-1]}"]
        return inline_svg(axes, "loss", "Fine-tuning loss", words)
