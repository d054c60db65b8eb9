"""Rows of JSON Lines and CSV files, and the plain texts in them, for calibration and training."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from saten_runtime.accuracy.columns import LABEL_COLUMNS, WORD_COLUMNS
from saten_runtime.errors import DataError
from saten_runtime.records.files import replace_file
from saten_runtime.records.rows import Placed, csv_rows, json_rows, read_content

__all__ = ["FORMATS", "number_in", "read_items", "read_rows", "read_texts", "text_in", "write_lines"]


def read_rows(path: Path) -> list[Placed]:
    """The objects of a JSON Lines file or the rows of a CSV file with a header, in order.

    A CSV file's `label` is read as a number where it is one, so that both formats say the same.

    Raises:
        DataError: the file cannot be read, or a line is no object.
    """
    read = FORMATS.get(path.suffix.lower(), json_rows)
    return list(read(path, read_content(path)))


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


def _csv_rows(path: Path, content: bytes) -> Iterator[Placed]:
    for where, row in csv_rows(path, content):
        yield where, {**row, **({"label": number_in(row["label"])} if "label" in row else {})}


def number_in(cell: str) -> int | float | str:
    """The number that a cell says, or the cell."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell


# file ending → its reader; any other is read as JSON Lines
Reader = Callable[[Path, bytes], Iterator[Placed]]
FORMATS: dict[str, Reader] = {".jsonl": json_rows, ".json": json_rows, ".csv": _csv_rows}
