"""The output folder of a benchmark: `samples.jsonl`, written as it goes, and `bench.json` at the end.

Every line carries the version of the schema, what it is (`kind`), and the key of what it measured:
a hash of everything the numbers depend on. A run that resumes takes over the lines of its own keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saten_runtime.bench.results import BenchResult, LoadMemory
from saten_runtime.bench.summary import Start
from saten_runtime.errors import DataError, UsageError
from saten_runtime.machine.device import State
from saten_runtime.machine.load import Disturbance
from saten_runtime.machine.power import Energy
from saten_runtime.records.files import refuse_existing, sync_folder, write_json
from saten_runtime.records.jsonl import LineWriter, Notice, read_lines, silent
from saten_runtime.records.reader import Count, Natural, Reader

__all__ = [
    "SAMPLES_FILE",
    "SUMMARY_FILE",
    "FailedLine",
    "Journal",
    "Line",
    "MemoryLine",
    "SamplesLine",
    "StartLine",
    "StateLine",
    "read_journal",
]

SAMPLES_FILE = "samples.jsonl"
SUMMARY_FILE = "bench.json"
SCHEMA_VERSION = 1
_READER = Reader(DataError)


@dataclass(frozen=True, kw_only=True)
class Line:
    """key: of what was measured; empty in lines that no run can resume, such as those of a phone."""

    key: str = ""


@dataclass(frozen=True, kw_only=True)
class SamplesLine(Line):
    """The samples of one cell in one round, ns, the energy of each of them, and what disturbed them."""

    bundle: str
    threads: Natural
    memory_mode: str
    batch: Natural
    tokens: Natural
    phase: str = "run"
    depth: Count = 0
    round: Count
    samples_ns: list[Natural]
    energy: list[Energy] = field(default_factory=list)
    disturbance: Disturbance | None = None


@dataclass(frozen=True, kw_only=True)
class FailedLine(Line):
    """Why a cell has no result."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class StartLine(Line):
    """How a process started in one round."""

    round: Count
    start: Start


@dataclass(frozen=True, kw_only=True)
class MemoryLine(Line):
    """The memory of one bundle at one setup."""

    memory: LoadMemory


@dataclass(frozen=True, kw_only=True)
class StateLine(Line):
    """The state of the machine after a round."""

    state: State


# What is read back, by kind; further kinds are for people.
_LINES: dict[str, type[Line]] = {
    "samples": SamplesLine,
    "failed": FailedLine,
    "start": StartLine,
    "memory": MemoryLine,
    "state": StateLine,
}


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
        self.earlier: list[Line] = []
        if folder is None:
            self._lines = LineWriter(None)
            return
        path = folder / SAMPLES_FILE
        _make_folder(folder, may_exist=overwrite or resume)
        self._lines = LineWriter(path, keep=resume, notice=notice)
        if resume:
            try:
                self.earlier = read_journal(path)
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


def read_journal(path: Path, notice: Notice = silent) -> list[Line]:
    """The lines of a `samples.jsonl` that say what was measured; half a line at the end is dropped with a notice.

    Raises:
        DataError: the file cannot be read, or a line is of another version, no line of ours, or has a field missing,
            of a wrong type or out of range.
    """
    lines = []
    for number, row in enumerate(read_lines(path, notice), 1):
        where = f"{path}:{number}"
        if row.get("schema_version") != SCHEMA_VERSION or "kind" not in row:
            raise DataError(
                f"{where}: is of version {row.get('schema_version')!r:.40}, expected {SCHEMA_VERSION}; "
                "measure into another folder"
            )
        kind = _LINES.get(str(row["kind"]))
        if kind is not None:
            lines.append(_READER.read(kind, row, where))
    return lines


def _make_folder(folder: Path, *, may_exist: bool) -> None:
    if not may_exist:
        refuse_existing(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is not a folder; choose another output path")
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
