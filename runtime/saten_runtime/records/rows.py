"""Rows of JSON Lines and CSV files, each with its place, which messages name."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saten_runtime.errors import DataError
from saten_runtime.records.files import parse_object

__all__ = ["Placed", "Row", "csv_rows", "json_rows", "read_content", "without_mark"]

Row = dict[str, Any]
# "file:line" and the row
Placed = tuple[str, Row]


def read_content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
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
            yield where, parse_object(line, where, DataError, "expected one object per line")


def csv_rows(path: Path, content: bytes) -> Iterator[Placed]:
    """Each line of CSV below its header; values are texts.

    Raises:
        DataError: it is no CSV, no UTF-8, or a line has other fields than the header.
    """
    try:
        reader = csv.DictReader(io.StringIO(without_mark(content).decode(), newline=""), strict=True)
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
