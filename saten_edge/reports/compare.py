"""Two benchmark runs side by side: what got faster, what slower, and how surely."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saten_edge.reports.model import environment_facts
from saten_runtime.bench.journal import SAMPLES_FILE, SUMMARY_FILE, Line, SamplesLine, read_journal
from saten_runtime.bench.results import BenchResult, Cell, read_bench
from saten_runtime.bench.stats import Interval, unpaired_ratio
from saten_runtime.errors import DataError
from saten_runtime.records.files import read_json
from saten_runtime.records.jsonl import Notice, silent
from saten_runtime.records.plain_text import align, printable

__all__ = ["Comparison", "RunData", "compare_runs", "comparison_table", "read_run"]

CellKey = tuple[str, int, str, int, int, str, int]
# What makes two runs incomparable, or explains a difference.
_DECIDING = ("cpu", "board", "cores", "governor", "packages.", "session_options.")


@dataclass(frozen=True)
class RunData:
    """A run: bench.json, and the samples in ns by cell and round, empty where only bench.json is there."""

    name: str
    bench: BenchResult
    samples: Mapping[CellKey, list[list[int]]]


@dataclass(frozen=True)
class Comparison:
    """One cell in two runs: p50 in ms, and how many times the first run's time the second takes.

    ratio: with its 95 % interval where both runs kept their samples, else value alone. verdict:
    "faster", "slower" or "same" by the interval, "?" without one.
    """

    cell: CellKey
    before_ms: float | None
    after_ms: float | None
    ratio: Interval | None
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain JSON data."""
        return asdict(self)


def read_run(path: Path, notice: Notice = silent) -> RunData:
    """Read a run's folder, or its bench.json alone.

    Raises:
        DataError: no bench.json there, or one that cannot be read.
    """
    summary = path / SUMMARY_FILE if path.is_dir() else path
    bench = read_bench(read_json(summary, DataError))
    samples = summary.parent / SAMPLES_FILE
    return RunData(str(path), bench, _samples(read_journal(samples, notice)) if samples.is_file() else {})


def compare_runs(before: RunData, after: RunData) -> list[Comparison]:
    """Every cell of either run, in the order of the first.

    Raises:
        DataError: the runs share no cell.
    """
    olds, news = ({_key(cell): cell for cell in run.bench.cells} for run in (before, after))
    if not olds.keys() & news.keys():
        raise DataError(f"{before.name} and {after.name}: share no cell; expected the same bundles and settings")
    return [
        _comparison(key, olds.get(key), news.get(key), before.samples.get(key), after.samples.get(key))
        for key in dict.fromkeys([*olds, *news])
    ]


def comparison_table(before: RunData, after: RunData, rows: Iterable[Comparison]) -> str:
    """The comparison as aligned text, with what differs between the machines below it."""
    head = ("bundle", "threads", "memory", "batch", "size", "A, p50 ms", "B, p50 ms", "B / A [95 %]", "")
    lines = [head]
    for row in rows:
        bundle, threads, mode, batch, tokens, phase, depth = row.cell
        size = f"{tokens} {phase}" + (f" @ {depth}" if depth else "")
        times = (_shown(row.before_ms), _shown(row.after_ms))
        lines.append((bundle, str(threads), mode, str(batch), size, *times, _ratio(row.ratio), row.verdict))
    notes = [f"A: {before.name}{_validity(before.bench)}", f"B: {after.name}{_validity(after.bench)}"]
    return "\n\n".join([align(lines), "\n".join([*notes, *_differences(before.bench, after.bench)])])


def _samples(lines: Iterable[Line]) -> dict[CellKey, list[list[int]]]:
    rounds: dict[CellKey, dict[int, list[int]]] = defaultdict(dict)
    for line in lines:
        if isinstance(line, SamplesLine):
            rounds[_key(line)][line.round] = line.samples_ns
    return {key: [found[index] for index in sorted(found)] for key, found in rounds.items()}


def _key(cell: Cell | SamplesLine) -> CellKey:
    return (printable(cell.bundle), cell.threads, cell.memory_mode, cell.batch, cell.tokens, cell.phase, cell.depth)


def _comparison(
    key: CellKey,
    old: Cell | None,
    new: Cell | None,
    old_samples: list[list[int]] | None,
    new_samples: list[list[int]] | None,
) -> Comparison:
    before, after = old.p50_ms if old else None, new.p50_ms if new else None
    if before is None or after is None:
        missing = "failed" if old and new else "only in A" if old else "only in B"
        return Comparison(key, before, after, None, missing)
    if not old_samples or not new_samples:
        return Comparison(key, before, after, Interval(after / before, None, None), "?")
    ratio = unpaired_ratio(new_samples, old_samples)
    verdict = "slower" if ratio.low > 1 else "faster" if ratio.high < 1 else "same"
    return Comparison(key, before, after, Interval(ratio.value, ratio.low, ratio.high), verdict)


def _differences(before: BenchResult, after: BenchResult) -> list[str]:
    old, new = (dict(environment_facts(bench)) for bench in (before, after))
    names = [name for name in dict.fromkeys([*old, *new]) if name.startswith(_DECIDING)]
    return [f"{name}: {old.get(name)} → {new.get(name)}" for name in names if old.get(name) != new.get(name)]


def _validity(bench: BenchResult) -> str:
    return "" if bench.verdict.valid else f", INVALID: {'; '.join(bench.verdict.reasons)}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ratio(ratio: Interval | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio.value:.3f}" + ("" if ratio.low is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]")
