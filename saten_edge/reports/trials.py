"""The trials of a search: a point for each, bytes by what is lost, and the front of those that nothing beats."""

from __future__ import annotations

from collections.abc import Sequence

from saten_edge.reports.colors import MUTED, SERIES
from saten_edge.reports.model import Point
from saten_edge.reports.scatter import log_x
from saten_edge.reports.svg import drawing, inline_svg, new_axes
from saten_edge.reports.text import mb

__all__ = ["front", "trials_chart"]

_MOST_POINTS_LOST = 20.0


def front(points: Sequence[Point]) -> list[Point]:
    """The measured points that no other beats in both bytes and points lost, the smallest first."""
    best: list[Point] = []
    measured = [point for point in points if point.level == "measured" and point.drop is not None]
    for point in sorted(measured, key=lambda point: (point.bytes, point.drop or 0.0)):
        if not best or (point.drop or 0.0) < (best[-1].drop or 0.0):
            best.append(point)
    return best


def trials_chart(points: Sequence[Point]) -> str | None:
    """Megabytes (log) × points lost, every trial a point; None where there is none."""
    shown = [point for point in points if point.drop is not None]
    if not shown:
        return None
    with drawing():
        axes = new_axes(320, left=56, bottom=46, top=14)
        sizes = [point.bytes / 1e6 for point in shown]
        log_x(axes, min(sizes) / 1.3, max(sizes) * 1.3)
        axes.set_xlabel("megabytes (log scale)")
        axes.set_ylabel(f"points lost, at most {_MOST_POINTS_LOST:g}")
        axes.grid(True, linewidth=1)
        axes.set_axisbelow(True)
        for measured, marker in ((False, "x"), (True, "o")):
            some = [point for point in shown if (point.level == "measured") is measured]
            color = SERIES["saten-0"][0] if measured else MUTED
            axes.scatter(*_places(some), s=36, color=color, marker=marker)
        axes.scatter(*_places([point for point in shown if point.chosen]), s=110, color=SERIES["saten-1"][0])
        axes.plot(*_places(front(shown)), color=MUTED, linewidth=1, zorder=1)
        words = [f"{point.name}: {mb(point.bytes)} MB, {point.drop:.2f} points lost, {point.level}" for point in shown]
        return inline_svg(axes, "trials", "Size and points lost of every trial", words)


def _places(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.bytes / 1e6 for point in points], [min(point.drop or 0.0, _MOST_POINTS_LOST) for point in points]
