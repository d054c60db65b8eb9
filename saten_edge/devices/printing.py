"""Results of several devices as one table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saten_runtime.accuracy.results import read_evaluation
from saten_runtime.bench.results import Cell, read_bench
from saten_runtime.records.plain_text import align

__all__ = ["bench_table", "eval_table", "invalid_reasons"]

Results = Mapping[str, dict[str, Any]]  # by label of the device


def bench_table(results: Results) -> str:
    """Latencies, device after device, then the verdict of each."""
    measured = {label: read_bench(value) for label, value in results.items()}
    head = ("device", "bundle", "threads", "batch", "tokens", "memory", "n", "p50 ms", "p99 ms", "ratio [95 %]")
    rows = [(label, *_cell_row(cell)) for label, bench in measured.items() for cell in bench.cells]
    verdicts = (
        f"{label}: " + ("VALID" if bench.verdict.valid else "INVALID: " + "; ".join(bench.verdict.reasons))
        for label, bench in measured.items()
    )
    return align([head, *rows]) + "\n\n" + "\n".join(verdicts)


def eval_table(results: Results) -> str:
    """Metrics, device after device."""
    scored = {label: read_evaluation(value) for label, value in results.items()}
    names = list(dict.fromkeys(name for found in scored.values() for row in found.rows for name in row.metrics))
    rows = [
        (label, row.bundle, *(_number(row.metrics.get(name), 4) for name in names))
        for label, found in scored.items()
        for row in found.rows
    ]
    return align([("device", "bundle", *names), *rows])


def invalid_reasons(results: Results) -> list[str]:
    """Why a benchmark must not be believed, by device; nothing when all may be."""
    verdicts = {label: read_bench(value).verdict for label, value in results.items()}
    return [f"{label}: {'; '.join(verdict.reasons)}" for label, verdict in verdicts.items() if not verdict.valid]


def _cell_row(cell: Cell) -> tuple[str, ...]:
    setting = (cell.bundle, str(cell.threads), str(cell.batch), str(cell.tokens), cell.memory_mode, str(cell.count))
    if cell.failed is not None:
        return (*setting, "", "", f"failed: {cell.failed}")
    ratio = cell.ratio
    shown = "" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    return (*setting, _number(cell.p50_ms, 3), _number(cell.p99_ms, 3), shown)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
