"""Which columns of the data an example is made of: by their usual names, or by those that were given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from saten_edge.texts import LABEL_COLUMNS
from saten_runtime.errors import DataError, UsageError

__all__ = ["EXPECTED", "LABEL", "LAYOUTS", "label_column", "layout_of", "parse_columns"]

LABEL = "label"
# what an example may be made of
LAYOUTS = (("text",), ("text_a", "text_b"), ("image",))
PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
)
SINGLE = {
    **dict.fromkeys(("text", "sentence", "content", "review", "question"), "text"),
    **dict.fromkeys(("image", "img"), "image"),
}
EXPECTED = (
    "expected text, or text_a and text_b, or image, and label; say which by --columns, such as text=NAME,label=NAME"
)


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
        raise ValueError("expected text, or text_a and text_b, or image, and label")
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
    pairs = [dict(zip(("text_a", "text_b"), pair, strict=True)) for pair in PAIRS if set(pair) <= set(columns)]
    paired = {column for pair in pairs for column in pair.values()}
    found = pairs + [{SINGLE[name]: name} for name in SINGLE if name in columns and name not in paired]
    half = {"text_a", "text_b"} & set(columns) - paired
    if len(found) > 1 or (found and half):
        raise UsageError(f"{source}: its columns are {', '.join(columns)}; {EXPECTED}")
    return found[0] if found else None


def label_column(columns: Iterable[str], named: Mapping[str, str]) -> str | None:
    """The column of the labels, if there is one."""
    return named.get(LABEL) or next((name for name in LABEL_COLUMNS if name in columns), None)


def _refuse_absent(source: str, columns: Sequence[str], wanted: Iterable[str]) -> None:
    for name in wanted:
        if name not in columns:
            raise DataError(f"{source}: has no column {name!r}; its columns are {', '.join(columns) or 'none'}")
