"""Pictures of tables as SVG files that stand alone, on white: the same numbers give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saten_edge.reports.colors import SERIES

__all__ = ["COLORS", "PREDICTED", "Line", "bars", "panels"]

COLORS = {name: light for name, (light, _) in SERIES.items()}
PREDICTED = "--"
SETTINGS = {"svg.hashsalt": "saten", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
TICK_SHARE = 0.11  # of an axis' length, which the name of a tick takes
BAR_INCHES, PANEL_INCHES = 0.22, (4.2, 3.0)


@dataclass(frozen=True)
class Line:
    """One line over x; style and marker: as Matplotlib has them, style `PREDICTED` for what was not measured."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    style: str = "-"
    marker: str = "."


@matplotlib.rc_context(SETTINGS)
def bars(title: str, unit: str, values: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars (label, value, colour) from top to bottom, each with its value."""
    figure = Figure(figsize=(7.5, 0.9 + BAR_INCHES * len(values)), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh([label for label, _, _ in values], [value for _, value, _ in values],
                      color=[color for _, _, color in values])  # fmt: skip
    axes.bar_label(drawn, fmt="{:.3g}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    axes.set_xlabel(unit)
    return _svg(figure, title)


@matplotlib.rc_context(SETTINGS)
def panels(title: str, drawings: Mapping[str, tuple[str, str, Sequence[Line]]], columns: int = 3) -> str:
    """Panels of lines on logarithmic axes: name → (axis below, axis beside, lines)."""
    columns = min(columns, len(drawings))
    rows = -(-len(drawings) // columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.4), layout="constrained")
    for place, (name, (below, beside, lines)) in enumerate(drawings.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        for line in lines:
            marker = None if line.style == PREDICTED else line.marker
            axes.plot(line.x, line.y, line.style, color=line.color, marker=marker, label=line.label or "_")
        axes.set(title=name, xlabel=below, ylabel=beside, xscale="log", yscale="log")
        _plain_ticks(axes, sorted({x for line in lines for x in line.x}))
        axes.grid(True, which="both", linewidth=0.3)
        axes.legend(fontsize=7)
    return _svg(figure, title)


def _plain_ticks(axes: Axes, places: Sequence[float]) -> None:
    named = _apart(places)
    axes.set_xticks(named, [f"{float(f'{place:.3g}'):g}" for place in named])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def _apart(places: Sequence[float]) -> list[float]:
    """Those of ascending places whose names do not run into each other on a logarithmic axis."""
    named = list(places[:1])
    for place in places[1:]:
        if math.log(place / named[-1]) >= TICK_SHARE * math.log(places[-1] / places[0]):
            named.append(place)
    return named


def _svg(figure: Figure, title: str) -> str:
    figure.suptitle(title)
    out = io.StringIO()
    figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None})
    return out.getvalue()
