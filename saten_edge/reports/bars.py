"""Horizontal bars in groups: the one shape that latency, memory and bytes are drawn in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from saten_edge.reports.colors import GRID, INK, MUTED
from saten_edge.reports.svg import CHAR_PX, WIDTH, drawing, inline_svg, new_axes

__all__ = ["Bar", "Group", "Part", "bar_chart", "beside", "heading", "scale", "short"]

_HEADING_PX = 26
_AXIS_PX = 46
_LONGEST = 18


@dataclass(frozen=True)
class Part:
    """A piece of a bar: its length, and its colour as #rrggbb with opacity."""

    length: float
    color: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Bar:
    """One bar; `text` is its value in words, `whisker` a mark further out, on the same scale."""

    label: str
    parts: tuple[Part, ...]
    text: str
    whisker: float | None = None

    @property
    def end(self) -> float:
        """Where the drawing of the bar ends."""
        return max(sum(part.length for part in self.parts), self.whisker or 0.0)


@dataclass(frozen=True)
class Group:
    """Bars under one heading."""

    heading: str
    bars: tuple[Bar, ...]


def bar_chart(
    name: str, title: str, axis: str, groups: Sequence[Group], *, labelled: bool = True, bar_px: float = 22
) -> str:
    """Groups from top to bottom as an inline SVG; `axis` names quantity and unit.

    Without `labelled`, bars carry no label and a legend beside the figure has to name the colours.
    """
    bars = [bar for group in groups for bar in group.bars]
    left = min(max(len(short(bar.label)) for bar in bars) * CHAR_PX + 8, WIDTH / 3) if labelled else 6
    height = sum(len(group.bars) * bar_px + _HEADING_PX for group in groups) + _AXIS_PX
    with drawing():
        axes = new_axes(height, left=left, bottom=_AXIS_PX, top=0)
        scale(axes, (bar.text for bar in bars), max(bar.end for bar in bars), left, height - _AXIS_PX, axis)
        position = 0.0
        for group in groups:
            heading(axes, group.heading, position + _HEADING_PX - 9)
            position += _HEADING_PX
            for bar in group.bars:
                _draw(axes, bar, position + bar_px / 2, bar_px, labelled)
                position += bar_px
        words = [f"{group.heading}: " + ", ".join(f"{bar.label} {bar.text}" for bar in group.bars) for group in groups]
        return inline_svg(axes, name, title, words)


def short(label: str) -> str:
    """A label cut in its middle to what the margin holds."""
    half = _LONGEST // 2
    return label if len(label) <= _LONGEST else f"{label[: half - 1]}…{label[-half:]}"


def scale(axes: Axes, texts: Iterable[str], longest: float, left: float, height: float, axis: str) -> None:
    """Rows on `axes`: x in data units from 0, with room for any of `texts` after the longest; y in px from the top."""
    room = max(map(len, texts)) * CHAR_PX + 12
    width = WIDTH - left - 10
    axes.set_xlim(0, (longest or 1.0) * width / max(width - room, width / 3))
    axes.set_ylim(height, 0)
    axes.set_yticks([])
    axes.set_xlabel(axis)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.grid(True, linewidth=1)
    axes.set_axisbelow(True)


def heading(axes: Axes, text: str, position: float) -> None:
    """The name of the rows below `position`, px from the top."""
    # In axes coordinates the margin left of the bars belongs to the heading too.
    shift = -axes.get_position().x0 * WIDTH
    axes.annotate(
        text,
        (0, position),
        xytext=(shift + 1, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontweight="bold",
        va="baseline",
    )


def _draw(axes: Axes, bar: Bar, center: float, bar_px: float, labelled: bool) -> None:
    start = 0.0
    for part in bar.parts:
        axes.barh(center, part.length, height=bar_px * 0.68, left=start, color=part.color, alpha=part.opacity)
        start += part.length
    if bar.whisker is not None and bar.whisker > start:
        axes.plot([start, bar.whisker], [center, center], color=INK, linewidth=1.2, solid_capstyle="butt")
        axes.plot([bar.whisker] * 2, [center - 4, center + 4], color=INK, linewidth=1.2)
    beside(axes, bar.text, (bar.end, center), 5, "left")
    if labelled:
        beside(axes, short(bar.label), (0, center), -6, "right", MUTED)
    if not bar.parts:
        axes.plot([0, 0], [center - 6, center + 6], color=GRID, linewidth=2)


def beside(axes: Axes, text: str, point: tuple[float, float], shift: float, side: str, color: str = INK) -> None:
    """Write `text` `shift` px from a point in data units, its left or right end there."""
    axes.annotate(
        text, point, xytext=(shift, 0), textcoords="offset points", ha=side, va="center_baseline", color=color
    )
