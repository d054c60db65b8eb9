"""Colours of the plots, for light and dark pages, told apart with colour-blind eyes too.

Dense bundles are neutral and compressed ones coloured, so that the eye finds what is compared. The
hues follow Okabe and Ito (2008), darkened for light pages and lightened for dark ones to a contrast
of at least 3:1.
"""

from __future__ import annotations

from collections.abc import Sequence

from saten_edge.reports.model import Row

__all__ = ["GRID", "INK", "MUTED", "SERIES", "css_variables", "series"]

INK = "#000001"
MUTED = "#000002"
GRID = "#000003"

SERIES: dict[str, tuple[str, str]] = {
    # CSS name: (light page, dark page)
    "dense-0": ("#4b5563", "#b6bfca"),
    "dense-1": ("#858f9d", "#737e8c"),
    "dense-2": ("#66707d", "#929cab"),
    "saten-0": ("#0072b2", "#56b4e9"),
    "saten-1": ("#c85a00", "#f0944d"),
    "saten-2": ("#008a64", "#2fc59b"),
    "saten-3": ("#a8417f", "#e39bc4"),
    "saten-4": ("#8a6d00", "#e0c14a"),
}


def series(rows: Sequence[Row]) -> dict[str, str]:
    """A name of `SERIES` for each bundle's name; they repeat where there are more bundles than colours."""
    result = {}
    for family, dense in (("dense", True), ("saten", False)):
        names = [name for name in SERIES if name.startswith(family)]
        members = [row.name for row in rows if row.dense is dense]
        result.update({member: names[index % len(names)] for index, member in enumerate(members)})
    return result


def css_variables() -> dict[str, str]:
    """What each colour drawn with becomes in the page."""
    own = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--rule)"}
    return own | {light: f"var(--{name}, {light})" for name, (light, _) in SERIES.items()}
