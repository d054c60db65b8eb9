"""Evaluation data: JSON Lines, one example per line; its fields say which task it is for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_runtime.errors import DataError
from saten_runtime.files import parse_json, sha256_file

__all__ = ["KINDS", "Data", "Kind", "read_data"]


@dataclass(frozen=True)
class Kind:
    """Fields of one kind of data, each with the type of its values; int values pass as float."""

    name: str
    fields: dict[str, type]


KINDS = (
    Kind("search", {"query": str, "answer": str}),
    Kind("pairs", {"text_a": str, "text_b": str, "label": float}),
    Kind("texts", {"text": str, "label": float}),
)


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
    """Read a file; lines of white space are passed over, further fields ignored.

    Raises:
        DataError: with file and line: no JSON object, fields of no kind, a value of another type.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as cause:
        raise DataError(f"{path}: cannot be read ({cause.strerror})") from None
    rows = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{path}: holds no examples; expected one JSON object per line")
    examples = [(where, _object(where, line)) for where, line in rows]
    kind = _kind(*examples[0])
    checked = [_example(where, example, kind) for where, example in examples]
    columns = {field: [example[field] for example in checked] for field in kind.fields}
    return Data(path, sha256_file(path), kind.name, columns)


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except (ValueError, RecursionError) as cause:
        raise DataError(f"{where}: no JSON ({cause}); expected one object per line") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _kind(where: str, example: dict[str, Any]) -> Kind:
    for kind in KINDS:
        if set(kind.fields) <= set(example):
            return kind
    expected = " or ".join("{" + ", ".join(kind.fields) + "}" for kind in KINDS)
    raise DataError(f"{where}: found the fields {_quoted(example)}, expected {expected}")


def _example(where: str, example: dict[str, Any], kind: Kind) -> dict[str, Any]:
    missing = [field for field in kind.fields if field not in example]
    if missing:
        raise DataError(f"{where}: has no field {missing[0]!r}; every line needs {', '.join(kind.fields)}")
    for field, expected in kind.fields.items():
        if not _fits(example[field], expected):
            name = {str: "a text", float: "a finite number"}[expected]
            raise DataError(f"{where}: {field!r} is {example[field]!r:.60}, expected {name}")
    return example


def _fits(value: Any, expected: type) -> bool:
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, expected)


def _quoted(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(repr(name)[:40] for name in list(names)[:8]) or "none"
