"""Which columns of the data an example is made of: by their usual names, or by those that were given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from saten_runtime.accuracy.columns import LAYOUTS, PAIR, label_in, layouts_in
from saten_runtime.errors import DataError, UsageError

__all__ = ["EXPECTED", "LABEL", "label_column", "layout_of", "parse_columns"]

LABEL = "label"
_CHOICES = "text, or text_a and text_b, or image, or words, or question and context"
EXPECTED = f"expected {_CHOICES}, and label; say which by --columns, such as text=NAME,label=NAME"


def parse_columns(text: str) -> dict[str, str]:
    """What `--columns text=BODY,label=STARS` says: ours → theirs.

    Raises:
        ValueError: it is nothing of the kind.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    known = {LABEL, *(name for layout in LAYOUTS for name in layout)}
    for ours, _, theirs in pairs:
        if ours not in known or not theirs:
            raise ValueError(f"{ours!r}: expected {', '.join(sorted(known))}, each with = and the name of a column")
    named = {ours: theirs for ours, _, theirs in pairs}
    if set(named) - {LABEL} and tuple(name for name in named if name != LABEL) not in LAYOUTS:
        raise ValueError(f"expected {_CHOICES}, and label")
    return named


def layout_of(source: str, columns: Sequence[str], named: Mapping[str, str]) -> dict[str, str] | None:
    """The columns that an example is made of, ours → theirs; None where their names say nothing.

    Raises:
        DataError: a column that was named is not there.
        UsageError: there are several that it could be made of.
    """
    _refuse_absent(source, columns, named.values())
    given = {ours: theirs for ours, theirs in named.items() if ours != LABEL}
    if given:
        return given
    found = layouts_in(columns)
    half = set(PAIR) & set(columns) - {column for layout in found for column in layout.values()}
    if len(found) > 1 or (found and half):
        raise UsageError(f"{source}: its columns are {', '.join(columns)}; {EXPECTED}")
    return found[0] if found else None


def label_column(
    columns: Sequence[str], named: Mapping[str, str], layout: Mapping[str, str] | None = None
) -> str | None:
    """The column of the labels of examples of such a layout, if there is one."""
    return named.get(LABEL) or label_in(columns, layout or ())


def _refuse_absent(source: str, columns: Sequence[str], wanted: Iterable[str]) -> None:
    for name in wanted:
        if name not in columns:
            raise DataError(f"{source}: has no column {name!r}; its columns are {', '.join(columns) or 'none'}")
