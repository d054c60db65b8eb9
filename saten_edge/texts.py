"""Plain texts out of JSON Lines files, for calibration and distillation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saten_runtime.errors import DataError
from saten_runtime.files import replace_file

__all__ = ["read_texts", "write_lines"]


def read_texts(path: Path) -> list[str]:
    """Every string value of every object in a JSON Lines file, in order.

    Raises:
        DataError: the file cannot be read, a line is no JSON object, or there is no text in it.
    """
    try:
        lines = path.read_text("utf-8").split("\n")  # JSON leaves other line ends inside its strings
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path}: cannot be read ({cause}); expected a JSON Lines file") from None
    texts = [text for number, line in enumerate(lines, 1) if line.strip() for text in _texts_of(path, number, line)]
    if not texts:
        raise DataError(f'{path}: holds no text; expected lines such as {{"text": "…"}}')
    return texts


def write_lines(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines, atomically."""
    replace_file(path, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects).encode())


def _texts_of(path: Path, number: int, line: str) -> list[str]:
    try:
        item = json.loads(line)
    except ValueError as cause:
        raise DataError(f"{path}:{number}: no JSON ({cause})") from None
    if not isinstance(item, dict):
        raise DataError(f"{path}:{number}: expected an object, found {type(item).__name__}")
    return [value for value in item.values() if isinstance(value, str) and value.strip()]
