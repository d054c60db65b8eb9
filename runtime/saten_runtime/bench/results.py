"""What a benchmark says in the end: the schema of `bench.json`, and the result as a table.

Times are in milliseconds, sizes in bytes. A cell is one bundle at one setting.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from saten_runtime.bench.floor import Floor
from saten_runtime.bench.plan import Size
from saten_runtime.machine.memory import Memory, Timeline
from saten_runtime.machine.power import Energy
from saten_runtime.records.plain_text import align
from saten_runtime.records.reader import Count, Natural, Positive, read_result

__all__ = [
    "SCHEMA_VERSION",
    "BenchResult",
    "Cell",
    "CellRatio",
    "Load",
    "LoadMemory",
    "Verdict",
    "read_bench",
    "table",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CellRatio:
    """`value` times the latency of the bundle `to`, with its 95 % interval."""

    to: str
    value: Positive
    low: Positive
    high: Positive


@dataclass(frozen=True)
class Cell:
    """Latency of one sample at one size, see `plan.Size`. `failed` says why the numbers are None, or is None.

    quantiles_ms: the percentiles 0, 5, 10 … 100; trimmed_mean_ms: without the fastest and the
    slowest tenth. tokens_per_s: of all sequences together, by the median; ttft_ms: of a decoder,
    from an empty cache to the first new token. energy: of one sample, by sensor, of the whole
    machine part it watches.
    """

    bundle: str
    threads: Natural
    batch: Natural
    tokens: Natural
    memory_mode: str
    phase: str = "run"
    depth: Count = 0
    count: Count = 0
    p50_ms: Positive | None = None
    p90_ms: Positive | None = None
    p95_ms: Positive | None = None
    p99_ms: Positive | None = None
    mean_ms: Positive | None = None
    trimmed_mean_ms: Positive | None = None
    quantiles_ms: list[Positive] = field(default_factory=list)
    tokens_per_s: Positive | None = None
    ttft_ms: Positive | None = None
    energy: list[Energy] = field(default_factory=list)
    floor: Floor | None = None
    ratio: CellRatio | None = None
    failed: str | None = None

    def __post_init__(self) -> None:
        if self.failed is None and self.p50_ms is None:
            raise ValueError("found neither p50_ms nor failed, expected one of them")

    @property
    def size(self) -> Size:
        """What one sample did."""
        return Size(self.batch, self.tokens, self.phase, self.depth)

    @property
    def times_floor(self) -> float | None:
        """How many times its floor the median takes."""
        return self.p50_ms / self.floor.ms if self.p50_ms is not None and self.floor else None


@dataclass(frozen=True)
class LoadMemory:
    """Readings of a whole process that ran alone, and the interpreter's own anonymous share.

    base: Python, numpy and ONNX Runtime imported, nothing loaded; loaded: session made; steady:
    after several runs at the largest size; peak: the largest of each number, sampled, see
    `memory.PERIOD_S`. peak_anon_bytes, peak_rss_bytes: the two that matter most, from `peak`.
    """

    base: Memory
    loaded: Memory
    steady: Memory
    peak: Memory = field(default_factory=Memory)
    peak_anon_bytes: Count | None = None
    peak_rss_bytes: Count | None = None
    interpreter_anon_bytes: Count | None = None
    timeline: Timeline = field(default_factory=Timeline)


@dataclass(frozen=True)
class Load:
    """How a bundle starts in a fresh process with its files in the page cache: medians over the rounds.

    cold_load_ms: from starting the process to its first result; session_ms: making the session;
    first_run_ms: the first run at the smallest size. predicted_bytes: what was foreseen before the
    start, see `memory.needed_bytes`. disk_bytes: by file.
    """

    bundle: str
    threads: Natural
    memory_mode: str
    cold_load_ms: Positive
    session_ms: Positive
    first_run_ms: Positive
    memory: LoadMemory
    predicted_bytes: Count | None = None
    disk_bytes: dict[str, Count] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether the numbers may be believed, and if not, why."""

    valid: bool
    reasons: list[str] = field(default_factory=list)


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


def read_bench(value: object, where: str = "bench.json") -> BenchResult:
    """The content of `bench.json`, its strings made printable.

    where: names it in errors.

    Raises:
        DataError: another schema version, or a field missing, of a wrong type or out of range.
    """
    return read_result(BenchResult, value, where, SCHEMA_VERSION)


def table(result: BenchResult) -> str:
    """The result as aligned text: cells, then loads, then the verdict."""
    cells = [
        ("bundle", "threads", "batch", "size", "memory", "n", *_TIMES, "tokens/s", "× floor", "ratio [95 %]"),
        *(_cell_row(cell) for cell in result.cells),
    ]
    loads = [
        ("bundle", "threads", "memory", "cold load ms", "session ms", "first run ms", "peak anon MiB", "disk MiB"),
        *(_load_row(load) for load in result.loads),
    ]
    verdict = "VALID" if result.verdict.valid else "INVALID: " + "; ".join(result.verdict.reasons)
    return "\n\n".join([align(cells), align(loads), verdict])


_TIMES = ("p50 ms", "p90 ms", "p95 ms", "p99 ms")


def _cell_row(cell: Cell) -> tuple[str, ...]:
    setting = (cell.bundle, str(cell.threads), str(cell.batch), cell.size.name, cell.memory_mode, str(cell.count))
    if cell.failed is not None:
        return (*setting, *[""] * (len(_TIMES) + 2), f"failed: {cell.failed}")
    ratio = cell.ratio
    shown = "" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    times = (f"{value:.3f}" for value in (cell.p50_ms, cell.p90_ms, cell.p95_ms, cell.p99_ms))
    above = "" if cell.times_floor is None else f"{cell.times_floor:.2f}"
    return (*setting, *times, f"{cell.tokens_per_s:.0f}", above, shown)


def _load_row(load: Load) -> tuple[str, ...]:
    times = (f"{value:.1f}" for value in (load.cold_load_ms, load.session_ms, load.first_run_ms))
    sizes = (_mebibytes(load.memory.peak_anon_bytes), _mebibytes(sum(load.disk_bytes.values())))
    return (load.bundle, str(load.threads), load.memory_mode, *times, *sizes)


def _mebibytes(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else f"{size_bytes / 2**20:.1f}"
