"""Rows of JSON Lines and CSV files, and the plain texts in them, for calibration and training."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from saten_runtime.accuracy.columns import LABEL_COLUMNS, WORD_COLUMNS
from saten_runtime.errors import DataError
from saten_runtime.records.files import parse_object, replace_file

__all__ = ["FORMATS", "Row", "number_in", "read_items", "read_rows", "read_texts", "text_in", "write_lines"]

# Where a row stands, for messages, and its values by column.
Row = tuple[str, dict[str, Any]]


def read_rows(path: Path) -> list[Row]:
    """The objects of a JSON Lines file or the rows of a CSV file with a header, in order.

    A CSV file's `label` is read as a number where it is one, so that both formats say the same.

    Raises:
        DataError: the file cannot be read, or a line is no object.
    """
    read = FORMATS.get(path.suffix.lower(), _json_rows)
    try:
        content = path.read_text("utf-8-sig")  # spreadsheets begin a file with a mark
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path}: cannot be read ({cause}); expected a JSON Lines or CSV file") from None
    return list(read(path, content))


def read_texts(path: str | Path) -> list[str]:
    """Every string value of every row of a JSON Lines or CSV file, but for labels, in order.

    Raises:
        DataError: the file cannot be read, a line is no JSON object, or there is no text in it.
    """
    rows = (row for _, row in read_rows(Path(path)))
    values = (column for row in rows for column in row.items() if column[0] not in LABEL_COLUMNS)
    texts = [text for text in itertools.starmap(text_in, values) if text is not None]
    if not texts:
        raise DataError(f'{path}: holds no text; expected lines such as {{"text": "…"}}')
    return texts


def text_in(name: str, value: Any) -> str | None:
    """The text that a column holds, as it is or, in one of `WORD_COLUMNS`, as a list of its words."""
    words = name in WORD_COLUMNS and isinstance(value, list) and all(isinstance(word, str) for word in value)
    text = " ".join(value) if words else value
    return text if isinstance(text, str) and text.strip() else None


def read_items(path: str | Path) -> list[str] | list[Path]:
    """What to calibrate on: the files that a column `image` names, relative to the data's, or else `read_texts`.

    Raises:
        DataError: as `read_texts`, or a file that is not there.
    """
    rows = read_rows(Path(path))
    if not rows or "image" not in rows[0][1]:
        return read_texts(path)
    images = [(where, Path(path).parent / str(row.get("image", ""))) for where, row in rows]
    for where, image in images:
        if not image.is_file():
            raise DataError(f"{where}: no image at {image}")
    return [image for _, image in images]


def write_lines(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines, atomically."""
    replace_file(
        path, "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in objects).encode()
    )


def _json_rows(path: Path, content: str) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), 1):  # JSON leaves other line ends inside its strings
        if not line.strip():
            continue
        where = f"{path}:{number}"
        yield where, parse_object(line.encode(), where, DataError, "expected one object per line")


def _csv_rows(path: Path, content: str) -> Iterator[Row]:
    reader = csv.DictReader(content.splitlines(keepends=True), strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{where}: expected {len(reader.fieldnames or ())} columns, as in the first line")
            yield where, {**row, **({"label": number_in(row["label"])} if "label" in row else {})}
    except csv.Error as cause:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({cause})") from None


def number_in(cell: str) -> int | float | str:
    """The number that a cell says, or the cell."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell


# file ending → its reader; any other is read as JSON Lines
Reader = Callable[[Path, str], Iterator[Row]]
FORMATS: dict[str, Reader] = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows}
