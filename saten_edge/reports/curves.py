"""Distributions and curves: how latencies spread, and how memory grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from saten_edge.reports.bars import beside, heading, scale, short
from saten_edge.reports.colors import INK, MUTED
from saten_edge.reports.svg import CHAR_PX, WIDTH, drawing, inline_svg, new_axes

__all__ = ["Curve", "Spread", "curve_chart", "spread_chart"]

_HEADING_PX, _ROW_PX, _AXIS_PX = 26, 26, 46
_PLACES = {"low": 1, "quarter": 5, "median": 10, "three quarters": 15, "high": 19}  # of 21 quantiles: 5 % … 95 %


@dataclass(frozen=True)
class Spread:
    """One row: 21 quantiles (0, 5 … 100 %), ascending; `text` stands beside it."""

    label: str
    quantiles: Sequence[float]
    text: str
    color: str


@dataclass(frozen=True)
class Curve:
    """One line over x; both of one length."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str


def spread_chart(name: str, title: str, axis: str, groups: Sequence[tuple[str, Sequence[Spread]]]) -> str:
    """Rows under headings: a thin line from 5 to 95 %, a box over the middle half, a mark at the median."""
    rows = [row for _, members in groups for row in members]
    left = min(max(len(short(row.label)) for row in rows) * CHAR_PX + 8, WIDTH / 3)
    height = sum(len(members) * _ROW_PX + _HEADING_PX for _, members in groups) + _AXIS_PX
    with drawing():
        axes = new_axes(height, left=left, bottom=_AXIS_PX, top=0)
        longest = max(row.quantiles[_PLACES["high"]] for row in rows)
        scale(axes, (row.text for row in rows), longest, left, height - _AXIS_PX, axis)
        position = 0.0
        for name_of_rows, members in groups:
            heading(axes, name_of_rows, position + _HEADING_PX - 9)
            position += _HEADING_PX
            for row in members:
                _draw(axes, row, position + _ROW_PX / 2)
                position += _ROW_PX
        words = [
            f"{name_of_rows}: " + ", ".join(f"{row.label} {row.text}" for row in members)
            for name_of_rows, members in groups
        ]
        return inline_svg(axes, name, title, words)


def _draw(axes: Axes, row: Spread, center: float) -> None:
    low, quarter, median, three_quarters, high = (row.quantiles[place] for place in _PLACES.values())
    axes.plot([low, high], [center, center], color=row.color, linewidth=2, solid_capstyle="round")
    axes.barh(center, three_quarters - quarter, height=_ROW_PX * 0.5, left=quarter, color=row.color, alpha=0.55)
    axes.plot([median, median], [center - _ROW_PX * 0.34, center + _ROW_PX * 0.34], color=INK, linewidth=2)
    beside(axes, row.text, (high, center), 6, "left", INK)
    beside(axes, short(row.label), (0, center), -6, "right", MUTED)


def curve_chart(name: str, title: str, axes_names: tuple[str, str], curves: Sequence[Curve]) -> str:
    """Lines over x from 0; a legend beside the figure names the colours."""
    with drawing():
        axes = new_axes(240, left=56, bottom=_AXIS_PX)
        for curve in curves:
            axes.plot(curve.x, curve.y, color=curve.color, linewidth=2, solid_capstyle="round")
        axes.set_xlim(0, max(max(curve.x) for curve in curves) or 1)
        axes.set_ylim(0, 1.05 * max(max(curve.y) for curve in curves) or 1)
        axes.set_xlabel(axes_names[0])
        axes.set_ylabel(axes_names[1])
        axes.locator_params(axis="both", nbins=5)
        axes.grid(True, linewidth=1)
        axes.set_axisbelow(True)
        words = [f"{curve.label}: at most {max(curve.y):.1f} {axes_names[1]}" for curve in curves]
        return inline_svg(axes, name, title, words)
