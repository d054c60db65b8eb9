"""What a benchmark leaves: `samples.jsonl`, written as it goes, and its summary `bench.json`.

The dataclasses are the schema of `bench.json`; times are in milliseconds, sizes in bytes. A cell is
one bundle at one setting.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from saten_runtime.errors import UsageError
from saten_runtime.files import refuse_existing, write_json
from saten_runtime.memory import Memory

__all__ = [
    "BenchResult",
    "Cell",
    "CellRatio",
    "Journal",
    "Load",
    "LoadMemory",
    "Verdict",
    "align",
    "printable",
    "table",
]

SAMPLES_FILE = "samples.jsonl"
SUMMARY_FILE = "bench.json"


@dataclass(frozen=True)
class CellRatio:
    """`value` times the latency of the bundle `to`, with its 95 % interval."""

    to: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """Latency of one run of the graph. `failed` says why the numbers are None, or is None."""

    bundle: str
    threads: int
    batch: int
    tokens: int
    memory_mode: str
    count: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    ratio: CellRatio | None = None
    failed: str | None = None


@dataclass(frozen=True)
class LoadMemory:
    """Readings of a whole process that ran alone, and the interpreter's own anonymous share.

    base: Python, numpy and ONNX Runtime imported, nothing loaded; loaded: session made; steady:
    after several runs at the largest size. peak_anon_bytes: sampled, see `memory.PERIOD_S`.
    """

    base: Memory
    loaded: Memory
    steady: Memory
    peak_anon_bytes: int | None
    peak_rss_bytes: int | None
    interpreter_anon_bytes: int | None


@dataclass(frozen=True)
class Load:
    """How a bundle starts in a fresh process with its files in the page cache: medians over the rounds.

    cold_load_ms: from starting the process to its first result; session_ms: making the session;
    first_run_ms: the first run at the smallest size. disk_bytes: by file.
    """

    bundle: str
    threads: int
    memory_mode: str
    cold_load_ms: float
    session_ms: float
    first_run_ms: float
    memory: LoadMemory
    disk_bytes: dict[str, int]


@dataclass(frozen=True)
class Verdict:
    """Whether the numbers may be believed, and if not, why."""

    valid: bool
    reasons: list[str]


@dataclass(frozen=True)
class BenchResult:
    """Content of `bench.json`."""

    schema_version: int
    environment: dict[str, Any]
    verdict: Verdict
    cells: list[Cell]
    loads: list[Load]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return dataclasses.asdict(self)


class Journal:
    """The output folder of a benchmark, or nowhere when the path is None.

    Every line is on the disk before the next is measured, so that a crash keeps what was measured.
    """

    def __init__(self, folder: Path | None, *, overwrite: bool = False) -> None:
        self._folder = folder
        self._file = None if folder is None else _open_samples(folder, overwrite)

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Append one line; `kind` says what it is."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"kind": kind, **values}, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as cause:  # writing, unlike opening, does not say where
            raise OSError(cause.errno, cause.strerror, self._file.name) from None

    def finish(self, result: BenchResult) -> None:
        """Write `bench.json`."""
        if self._folder is not None:
            write_json(self._folder / SUMMARY_FILE, result.to_json())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _open_samples(folder: Path, overwrite: bool) -> Any:
    if not overwrite:
        refuse_existing(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is no folder; choose another output path")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    return (folder / SAMPLES_FILE).open("w", encoding="utf-8")


def table(result: BenchResult) -> str:
    """The result as aligned text: cells, then loads, then the verdict."""
    cells = [
        ("bundle", "threads", "batch", "tokens", "memory", "n", "p50 ms", "p90 ms", "p99 ms", "ratio [95 %]"),
        *(_cell_row(cell) for cell in result.cells),
    ]
    loads = [
        ("bundle", "threads", "memory", "cold load ms", "session ms", "first run ms", "peak anon MiB", "disk MiB"),
        *(_load_row(load) for load in result.loads),
    ]
    verdict = "VALID" if result.verdict.valid else "INVALID: " + "; ".join(result.verdict.reasons)
    return "\n\n".join([align(cells), align(loads), verdict])


def _cell_row(cell: Cell) -> tuple[str, ...]:
    setting = (cell.bundle, str(cell.threads), str(cell.batch), str(cell.tokens), cell.memory_mode, str(cell.count))
    if cell.failed is not None:
        return (*setting, "", "", "", f"failed: {cell.failed}")
    ratio = cell.ratio
    shown = "" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    return (*setting, *(f"{value:.3f}" for value in (cell.p50_ms, cell.p90_ms, cell.p99_ms)), shown)


def _load_row(load: Load) -> tuple[str, ...]:
    times = (f"{value:.1f}" for value in (load.cold_load_ms, load.session_ms, load.first_run_ms))
    sizes = (_mebibytes(load.memory.peak_anon_bytes), _mebibytes(sum(load.disk_bytes.values())))
    return (load.bundle, str(load.threads), load.memory_mode, *times, *sizes)


def _mebibytes(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else f"{size_bytes / 2**20:.1f}"


def align(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as a table with columns of equal width; the first row is as long as any."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    """`text` on one line, without the control characters that a stranger's name may carry."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)
