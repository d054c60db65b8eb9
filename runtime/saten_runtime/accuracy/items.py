"""What `saten-run predict` is given: on its command line, as lines of text, or in the files that `eval` reads."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_runtime.accuracy.data import KINDS, Kind, checked_row, in_our_names, typed_rows
from saten_runtime.accuracy.measures import MEASURES
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import DataError, UsageError
from saten_runtime.records.rows import Placed, Row, json_rows, read_content, without_mark
from saten_runtime.vocabulary.tasks import IMAGES, PAIRS, TEXTS

__all__ = ["Given", "Item", "items_of", "read_given"]

_Rows = Callable[[Path, bytes], Iterator[Placed]]
# By the end of a file's name; in any other file, the first line tells JSON Lines from plain text.
_FORMATS: dict[str, _Rows] = {".csv": typed_rows, ".jsonl": json_rows, ".json": json_rows, ".ndjson": json_rows}


@dataclass(frozen=True)
class Item:
    """value: what `Runner.predict` takes; shown: the fields of the item that are printed with the result."""

    value: Any
    shown: Row


@dataclass(frozen=True)
class Given:
    """Before the task is known. lines: texts, or names of pictures; pairs: two texts each; rows: with their place."""

    lines: Sequence[str]
    pairs: Sequence[Sequence[str]]
    context: str | None
    rows: Sequence[tuple[str, Row]]
    folder: Path


def read_given(lines: Sequence[str], pairs: Sequence[Sequence[str]], context: str | None, file: Path | None) -> Given:
    """What the command line says, and what the file holds; "-" is standard input.

    Raises:
        UsageError: there is nothing in it.
        DataError: the file cannot be read, is no UTF-8, or has a line that is no JSON object or no CSV.
    """
    rows, more = _read(file) if file is not None else ([], [])
    if not (lines or pairs or rows or more):
        raise UsageError("no text given; pass ITEM, --pair or --file")
    return Given([*lines, *more], pairs, context, rows, file.parent if file is not None else Path())


def _read(file: Path) -> tuple[list[tuple[str, Row]], list[str]]:
    """The rows of a file of data, or the lines of another."""
    content = sys.stdin.buffer.read() if str(file) == "-" else read_content(file)
    read = _FORMATS.get(file.suffix.lower()) or (json_rows if _is_json(content) else None)
    if read is not None:
        return list(read(file, content)), []
    try:
        text = without_mark(content).decode()
    except UnicodeDecodeError as cause:
        raise DataError(f"{file}: not UTF-8 text (byte {cause.start})") from None
    return [], [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]


def _is_json(content: bytes) -> bool:
    first = without_mark(content).lstrip().partition(b"\n")[0]
    with contextlib.suppress(DataError):
        return bool(list(json_rows(Path(), first)))
    return False


def items_of(bundle: Bundle, given: Given) -> list[Item]:
    """What was given, as this bundle's task takes it.

    A row is of the first kind of data that `eval` scores such bundles on and whose inputs it has. An embedding model
    reads the two texts of a row each by itself.

    Raises:
        UsageError: pairs for a task that takes texts, texts for one that takes pairs, or a context that nothing needs.
        DataError: a row has the inputs of no such kind, or a value of another type.
    """
    kinds = _kinds(bundle)
    if (bundle.items == PAIRS and bool(given.lines)) != (given.context is not None):
        raise UsageError(
            f"--context: is for questions on the command line or in lines of text; {bundle.name} takes {bundle.items}"
        )
    rows = in_our_names(given.rows, kinds, labelled=False) if given.rows else ()
    return [
        *(_of_line(bundle, kinds, line, given.context) for line in given.lines),
        *(_of_pair(bundle, kinds, pair) for pair in given.pairs),
        *(item for where, row in rows for item in _of_row(bundle, kinds, where, row, given.folder)),
    ]


def _kinds(bundle: Bundle) -> list[Kind]:
    """The kinds of data that `eval` has for such bundles, and plain texts for each that reads texts."""
    names = {measure.data for measure in MEASURES if measure.bundle_task == bundle.task.name}
    names = {IMAGES: {"images"}, TEXTS: {*names, "plain"}}.get(bundle.items, names)
    return [kind for kind in KINDS if kind.name in names]


def _of_line(bundle: Bundle, kinds: Sequence[Kind], line: str, context: str | None) -> Item:
    return Item(line, {"text": line}) if context is None else _of_pair(bundle, kinds, (line, context))


def _of_pair(bundle: Bundle, kinds: Sequence[Kind], pair: Sequence[str]) -> Item:
    kind = next((kind for kind in kinds if len(kind.inputs) == 2), None)
    if kind is None or bundle.task.pooled:
        raise UsageError(f"--pair: the task {bundle.task.name} takes {bundle.items}, each by itself")
    return Item(tuple(pair), dict(zip(kind.inputs, pair, strict=True)))


def _of_row(bundle: Bundle, kinds: Sequence[Kind], where: str, row: Row, folder: Path) -> list[Item]:
    kind = next((kind for kind in kinds if set(kind.inputs) <= set(row)), None)
    if kind is None:
        expected = " or ".join(dict.fromkeys("{" + ", ".join(kind.inputs) + "}" for kind in kinds))
        found = ", ".join(repr(name)[:40] for name in list(row)[:8]) or "none"
        raise DataError(f"{where}: found the fields {found}; the task {bundle.task.name} takes {expected}")
    values = [checked_row(where, row, kind, kind.inputs)[field] for field in kind.inputs]
    if bundle.task.pooled or len(values) == 1:
        return [_single(bundle, value, folder) for value in values]
    return [_of_pair(bundle, kinds, values)]


def _single(bundle: Bundle, value: str | list[str], folder: Path) -> Item:
    if bundle.items == IMAGES:
        return Item(folder / str(value), {"text": value})
    return Item(value, {"text": value if isinstance(value, str) else " ".join(value)})
