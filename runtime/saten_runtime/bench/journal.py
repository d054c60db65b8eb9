"""The output folder of a benchmark: `samples.jsonl`, written as it goes, and `bench.json` at the end.

Every line carries the version of the schema, what it is (`kind`), and the key of what it measured:
a hash of everything the numbers depend on. A run that resumes takes over the lines of its own keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saten_runtime.bench.results import BenchResult
from saten_runtime.errors import DataError, UsageError
from saten_runtime.records.files import refuse_existing, sync_folder, write_json
from saten_runtime.records.jsonl import LineWriter, Notice, read_lines, silent

__all__ = ["SAMPLES_FILE", "SUMMARY_FILE", "Journal", "key_of"]

SAMPLES_FILE = "samples.jsonl"
SUMMARY_FILE = "bench.json"
SCHEMA_VERSION = 1


def key_of(parts: Mapping[str, Any]) -> str:
    """A short name of JSON data: equal parts have equal keys, and no others do."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


class Journal:
    """The output folder, or nowhere when the path is None.

    Every line is on the disk before the next is measured, so that a crash keeps what was measured.
    earlier: the lines of the run that is resumed.

    Raises:
        UsageError: the folder exists and neither `overwrite` nor `resume` is given, or another run
            is writing it.
        DataError: lines of another version, or no lines of ours.
    """

    def __init__(
        self, folder: Path | None, *, overwrite: bool = False, resume: bool = False, notice: Notice = silent
    ) -> None:
        self._folder = folder
        self.earlier: list[dict[str, Any]] = []
        if folder is None:
            self._lines = LineWriter(None)
            return
        path = folder / SAMPLES_FILE
        _make_folder(folder, may_exist=overwrite or resume)
        self._lines = LineWriter(path, keep=resume, notice=notice)
        if resume:
            try:
                self.earlier = _read(path)
            except DataError:
                self._lines.close()
                raise
        (folder / SUMMARY_FILE).unlink(missing_ok=True)

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Append one line; `kind` says what it is."""
        self._lines.write_all([{"kind": kind, "schema_version": SCHEMA_VERSION, **values}])

    def finish(self, result: BenchResult) -> None:
        """Write `bench.json`."""
        if self._folder is not None:
            write_json(self._folder / SUMMARY_FILE, result.to_json())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()


def _make_folder(folder: Path, *, may_exist: bool) -> None:
    if not may_exist:
        refuse_existing(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is no folder; choose another output path")
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)


def _read(path: Path) -> list[dict[str, Any]]:
    rows = read_lines(path)
    for number, row in enumerate(rows, 1):
        if row.get("schema_version") != SCHEMA_VERSION or "kind" not in row:
            raise DataError(
                f"{path}:{number}: is of version {row.get('schema_version')!r:.40}, expected {SCHEMA_VERSION}; "
                "measure into another folder"
            )
    return rows
