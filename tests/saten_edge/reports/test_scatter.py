"""Names in the picture of the trade."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from saten_edge.reports import scatter
from saten_edge.reports.svg import CHAR_PX, drawing, new_axes

# Names, milliseconds, scores and radii of a run in which the line of the front left the largest circle to its left.
POINTS = [
    scatter._Point("dense-fp32", 30.6, 0.599, 30.0, "black", ("dense-fp32", "91.1 MB")),
    scatter._Point("dense-int8", 11.9, 0.594, 15.3, "black", ("dense-int8", "23.6 MB")),
    scatter._Point("saten-int8", 7.55, 0.557, 10.3, "black", ("saten-int8", "10.7 MB")),
    scatter._Point("saten-int4", 16.1, 0.551, 8.4, "black", ("saten-int4", "7.2 MB")),
]


def crossed(seen: Sequence[scatter._Point], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that the line of the front goes through, where names are put as if the line were that of `seen`."""
    written = []
    with drawing():
        axes = new_axes(340, left=scatter._LEFT_PX, bottom=46, top=14, right=12)
        scatter._limits(axes, POINTS)
        monkeypatch.setattr(axes, "annotate", lambda text, place, **_: written.append((text, place)))
        scatter._label(axes, POINTS, seen)
        front = np.array([axes.transData.transform((one.milliseconds, one.score)) for one in scatter._front(POINTS)])
    share = np.linspace(0, 1, 1000)[:, None]
    line = np.concatenate([start + share * (end - start) for start, end in itertools.pairwise(front)])
    found = []
    for text, (left, baseline) in written:
        inside = (line >= (left, baseline)) & (line <= (left + len(text) * CHAR_PX, baseline + 11))
        found += [text] if inside.all(axis=1).any() else []
    return found


def test_the_line_of_the_front_goes_through_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert crossed(scatter._front(POINTS), monkeypatch) == []
    assert crossed([], monkeypatch) != []
