"""A matplotlib figure as SVG that belongs to the page: its colours, its fonts, its ids.

Figures are drawn in placeholder colours that become CSS variables, so that one drawing serves the
light and the dark page. Drawing uses `Figure` objects and no pyplot: no backend is chosen, no
figure is registered, and matplotlib's settings are as before afterwards.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saten_edge.reports.colors import GRID, INK, MUTED, css_variables

__all__ = ["CHAR_PX", "WIDTH", "drawing", "inline_svg", "new_axes"]

WIDTH = 440
"""Width of every figure in px: near a phone's, so that text there stays readable."""

FONT_PX = 12.5
CHAR_PX = 7.3
"""Width of a letter or digit at FONT_PX, on the wide side: what labels are laid out with."""

_DPI = 72  # one matplotlib point is one px
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_DROPPED = {f"{_SVG}metadata", f"{_SVG}style"}
_FONT = re.compile(r"font:\s*(?:(\d+)\s+)?([\d.]+px)[^;]*")
_COLOR = re.compile(r"#[0-9a-f]{6}\b")


@contextmanager
def drawing() -> Iterator[None]:
    """Settings every figure is made with; matplotlib's own come back at the end.

    Names are not read as mathematics (`$` is a character), and text stays text.
    """
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "text.parse_math": False,
            "font.family": "DejaVu Sans",
            "font.size": FONT_PX,
            "text.color": INK,
            "axes.labelcolor": MUTED,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "axes.edgecolor": GRID,
            "grid.color": GRID,
        }
    ):
        yield


def new_axes(height: float, *, left: float, bottom: float = 44, top: float = 8, right: float = 10) -> Axes:
    """Axes on a new transparent figure, margins in px, without a frame."""
    figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI)
    figure.patch.set_visible(False)
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return axes


def inline_svg(axes: Axes, name: str, title: str, description: Sequence[str]) -> str:
    """The axes' figure as an `<svg>` element; the same figure gives the same bytes.

    name: prefix of every id, so that several figures share a page. title, description: what a
    screen reader says.
    """
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = axes.get_figure(root=True)
        if figure is None:
            raise ValueError(f"{name}: the axes belong to no figure")
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(out.getvalue())  # noqa: S314 - written by matplotlib just now
    _keep_ours(root, name)
    _describe(root, name, title, description)
    return ElementTree.tostring(root, encoding="unicode")


def _keep_ours(root: ElementTree.Element, name: str) -> None:
    """Drop what leaks into the page (its `<style>`, metadata, namespaces) and make ids unique."""
    for parent in root.iter():
        for child in [child for child in parent if child.tag in _DROPPED]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {key: _attribute(key, value, name) for key, value in element.attrib.items()}
        href = element.attrib.pop(_HREF, None)
        if href is not None:
            element.set("href", href)


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == _HREF:
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    return _style(value) if key == "style" else value


def _style(value: str) -> str:
    variables = css_variables()
    value = _FONT.sub(lambda found: f"font-size: {found[2]}; font-weight: {found[1] or 400}", value)
    return _COLOR.sub(lambda found: variables.get(found[0], found[0]), value)


def _describe(root: ElementTree.Element, name: str, title: str, description: Sequence[str]) -> None:
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    texts = (("desc", ". ".join(description)), ("title", title))
    for tag, text in texts:
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(0, element)
