"""Evaluation data: JSON Lines or CSV, one example per line; its fields say which task it is for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_runtime.accuracy.columns import label_in, layouts_in
from saten_runtime.errors import DataError
from saten_runtime.records.files import sha256_file
from saten_runtime.records.rows import Placed, Row, csv_rows, json_rows, read_content

__all__ = [
    "CSV_LISTS",
    "KINDS",
    "Data",
    "Kind",
    "checked_row",
    "in_our_names",
    "read_data",
    "typed_rows",
]


class Label:
    """The type of a label: a number, or the name of a class."""


CSV_LISTS = "|"  # between the items of a list in a CSV field
# What a model is to find out; the other fields are what it is given.
_WANTED = ("label", "labels", "answers")


@dataclass(frozen=True)
class Kind:
    """Fields of one kind of data, each with the type of its values; a list holds texts."""

    name: str
    fields: dict[str, type]

    @property
    def inputs(self) -> list[str]:
        """The fields that a model is given."""
        return [field for field in self.fields if field not in _WANTED]


# The first kind whose fields an example has is its kind.
KINDS = (
    Kind("search", {"query": str, "answer": str}),
    Kind("questions", {"question": str, "context": str, "answers": list}),
    Kind("words", {"words": list, "labels": list}),
    Kind("images", {"image": str, "label": Label}),
    Kind("pairs", {"text_a": str, "text_b": str, "label": Label}),
    Kind("texts", {"text": str, "label": Label}),
    Kind("plain", {"text": str}),
)
_TYPE_NAMES = {str: "a text", Label: "a finite number, or the name of a class", list: "a list of texts"}


@dataclass(frozen=True)
class Data:
    """Examples of one kind: `columns[field][k]` belongs to example k; at least one example."""

    path: Path
    sha256: str
    kind: str
    columns: dict[str, list[Any]]

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(next(iter(self.columns.values())))


def read_data(path: Path) -> Data:
    """Read a file: CSV with a header line where its name ends in .csv, else JSON Lines; further fields are ignored.

    In JSON Lines, lines of white space are passed over. In CSV, the items of a list stand between "|".

    Raises:
        DataError: with file and line: not JSON object, fields of no kind, a value of another type.
    """
    content = read_content(path)
    read = typed_rows if path.suffix.lower() == ".csv" else json_rows
    examples = list(read(path, content))
    if not examples:
        raise DataError(f"{path}: holds no examples; expected one JSON object per line, or CSV with a header")
    examples = in_our_names(examples, KINDS, labelled=True)
    kind = _kind(*examples[0])
    checked = [checked_row(where, example, kind, list(kind.fields)) for where, example in examples]
    columns = {field: [example[field] for example in checked] for field in kind.fields}
    return Data(path, sha256_file(path), kind.name, columns)


def typed_rows(path: Path, content: bytes) -> Iterator[Placed]:
    """The rows of a CSV file; values are of the types of the header's kind.

    Raises:
        DataError: as `csv_rows`.
    """
    types: dict[str, type] = {}
    for where, row in csv_rows(path, content):
        types = types or _csv_types(tuple(row))
        yield where, {name: _CSV_VALUES[types[name]](text) for name, text in row.items()}


def _csv_types(names: Sequence[str]) -> dict[str, type]:
    ours = _our_names(names, labelled=False)
    kind = next((kind for kind in KINDS if set(kind.inputs) <= {ours.get(name, name) for name in names}), None)
    return {name: (kind.fields.get(ours.get(name, name), str) if kind else str) for name in names}


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text  # refused by name and line, as in JSON


_CSV_VALUES: dict[type, Callable[[str], Any]] = {
    str: str,
    Label: _number,
    list: lambda text: text.split(CSV_LISTS),
}


def in_our_names(rows: Sequence[tuple[str, Row]], kinds: Sequence[Kind], *, labelled: bool) -> list[tuple[str, Row]]:
    """Rows whose columns have other usual names, by ours; as they are where one of these kinds fits them already.

    labelled: whether labels are needed, too. Answers as SQuAD has them become their texts.
    """
    first = rows[0][1]
    fits = any(set(kind.fields if labelled else kind.inputs) <= set(first) for kind in kinds)
    ours = {} if fits else _our_names(first, labelled=labelled)
    return [
        (where, {ours.get(name, name): _plain_answers(value) for name, value in row.items()}) for where, row in rows
    ]


def _our_names(columns: Collection[str], *, labelled: bool) -> dict[str, str]:
    """Theirs → ours where there is one reading of the columns."""
    found = layouts_in(columns)
    if len(found) != 1:
        return {}
    (layout,) = found
    label = label_in(columns, layout)
    if label is None:
        return {} if labelled else {theirs: ours for ours, theirs in layout.items()}
    kind = next(kind for kind in KINDS if kind.inputs == list(layout))
    return {**{theirs: ours for ours, theirs in layout.items()}, label: next(iter(kind.fields.keys() - layout.keys()))}


def _plain_answers(value: Any) -> Any:
    return value["text"] if isinstance(value, dict) and isinstance(value.get("text"), list) else value


def _kind(where: str, example: Row) -> Kind:
    for kind in KINDS:
        if set(kind.fields) <= set(example):
            return kind
    expected = " or ".join("{" + ", ".join(kind.fields) + "}" for kind in KINDS)
    raise DataError(f"{where}: found the fields {_quoted(example)}, expected {expected}")


def checked_row(where: str, row: Row, kind: Kind, needed: Sequence[str]) -> Row:
    """A row that has these fields of its kind, each of its type.

    Raises:
        DataError: it has not; the message names the place and the field.
    """
    missing = [field for field in needed if field not in row]
    if missing:
        raise DataError(f"{where}: has no field {missing[0]!r}; every line needs {', '.join(needed)}")
    for field in needed:
        if not _fits(row[field], kind.fields[field]):
            raise DataError(f"{where}: {field!r} is {row[field]!r:.60}, expected {_TYPE_NAMES[kind.fields[field]]}")
    return row


def _fits(value: Any, expected: type) -> bool:
    if expected is Label:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return number or (isinstance(value, str) and value != "")
    if expected is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, expected)


def _quoted(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(repr(name)[:40] for name in list(names)[:8]) or "none"
