"""How the numbers were measured, in words, for whoever doubts them."""

from __future__ import annotations

from saten_edge.reports.model import Report
from saten_edge.reports.text import count, plural

__all__ = ["method"]


def method(report: Report) -> list[tuple[str, str]]:
    """(term, explanation) for what this report contains."""
    return [*_latency(report), *_floor(report), *_start(report), *_accuracy(report), ("Bytes", _BYTES)]


_FLOOR = (
    "The time that no program could beat on this machine: the multiplications of the layers at ONNX Runtime’s measured "
    "GEMM rate, or their weight bytes at the measured copy rate, whichever takes longer. “× floor” is the median "
    "divided by that time."
)
_BYTES = (
    "All files that the manifest lists: graph, weights with the indices of sparse parts, tokenizer. An MB is 10⁶ bytes."
)


def _latency(report: Report) -> list[tuple[str, str]]:
    if not report.cells or report.setting is None:
        return []
    counts = [cell.count for cell in report.cells if cell.failed is None]
    samples = f" {count(min(counts))} to {count(max(counts))} runs per cell." if counts else ""
    return [
        (
            "Latency",
            f"{report.setting}, the same session options for every bundle.{samples} Each bundle runs in a process "
            "of its own, and the bundles take turns, so that a machine that slows down slows all of them.",
        ),
        (
            "Percentiles",
            "p50 is the median run: half are faster. One run in ten takes longer than p90, and one in a "
            "hundred longer than p99.",
        ),
        (
            "Ratio",
            f"Time of a bundle divided by the time of {report.baseline.name} in the same turn; below 1 is faster. "
            "If its 95 % interval includes 1, the two cannot be told apart. In the sentences above, a pair that was "
            "not measured in turns is compared by its medians.",
        ),
    ]


def _floor(report: Report) -> list[tuple[str, str]]:
    if not any(cell.floor for cell in report.cells):
        return []
    return [("Floor", _FLOOR)]


def _start(report: Report) -> list[tuple[str, str]]:
    if not report.loads:
        return []
    return [
        ("Load", "The time from starting a fresh process to its first result, with the files in the page cache."),
        (
            "Memory",
            "The highest anonymous memory (RssAnon) of the process, including the interpreter and the libraries. Pages "
            "that the system can read back from a file are not counted. A MiB is 2²⁰ bytes.",
        ),
    ]


def _accuracy(report: Report) -> list[tuple[str, str]]:
    data = report.data
    if data is None:
        return []
    words = (
        f"Task {report.task}: {plural(data.count, 'example')} of {data.file}, "
        "run from the same bundles as the latencies."
    )
    return [("Accuracy", words)]
