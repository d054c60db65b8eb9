"""Rows of JSON Lines and CSV files, each with its place, which messages name."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from saten_runtime.errors import DataError
from saten_runtime.records.files import parse_object, refuse_home

__all__ = ["Placed", "Row", "csv_rows", "json_rows", "read_content", "without_mark"]

Row = dict[str, Any]
# "file:line" and the row
Placed = tuple[str, Row]
# Other programs' ways to separate columns.
_SEPARATORS = {";": "semicolons", "\t": "tabs"}
_NO_JSON = 'expected one object per line, such as {"text": "…"}, or a file whose name ends in .csv'


def read_content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
    refuse_home(path, DataError)
    try:
        return path.read_bytes()
    except OSError as cause:
        raise DataError(f"{path}: cannot be read ({cause.strerror})") from None


def without_mark(content: bytes) -> bytes:
    """Without the byte order mark that some editors put before UTF-8."""
    return content.removeprefix(codecs.BOM_UTF8)


def json_rows(path: Path, content: bytes) -> Iterator[Placed]:
    """Each line of JSON Lines; lines of white space are passed over.

    Raises:
        DataError: a line holds no JSON object.
    """
    for number, line in enumerate(without_mark(content).splitlines(), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_object(line, where, DataError, _NO_JSON)


def csv_rows(path: Path, content: bytes) -> Iterator[Placed]:
    """Each line of CSV below its header; values are texts.

    Raises:
        DataError: it is no CSV, no UTF-8, or a line has other fields than the header.
    """
    try:
        reader = csv.DictReader(io.StringIO(without_mark(content).decode(), newline=""), strict=True)
        _refuse_separator(path, reader.fieldnames or ())
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                count = len(reader.fieldnames or ())
                raise DataError(f"{where}: has other fields than the header, {count} are expected")
            yield where, dict(row)
    except UnicodeDecodeError as cause:
        raise DataError(f"{path}: not UTF-8 text (byte {cause.start})") from None
    except csv.Error as cause:
        raise DataError(f"{path}: not CSV ({cause})") from None


def _refuse_separator(path: Path, header: Sequence[str]) -> None:
    """Refuse one column whose name is that of several, with something else between."""
    found = next((said for separator, said in _SEPARATORS.items() if separator in "".join(header)), None)
    if len(header) == 1 and found is not None:
        raise DataError(f"{path}: has {found} between its columns; expected commas, save it as CSV with these")
