"""How the numbers were measured, in words, for whoever doubts them."""

from __future__ import annotations

from saten_edge.reports.model import Report
from saten_edge.reports.text import count, plural

__all__ = ["method"]


def method(report: Report) -> list[tuple[str, str]]:
    """(term, explanation) for what this report contains."""
    return [*_latency(report), *_floor(report), *_start(report), *_accuracy(report), ("Bytes", _BYTES)]


_FLOOR = (
    "The larger of multiplications at ONNX Runtime’s measured GEMM rate and weight bytes at the measured copy "
    "rate of this machine, over the layers alone; “× floor” is how many times that the median takes."
)
_BYTES = "Every file the manifest lists: graph, weights with the indices of sparse parts, tokenizer. MB are 10⁶ bytes."


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
            "p50 is the median run: half are faster. p90 and p99 are what one run in ten and one in a hundred exceeds.",
        ),
        (
            "Ratio",
            f"Time of a bundle divided by the time of {report.baseline.name} in the same turn; below 1 is faster. "
            "With it the 95 % interval: if it includes 1, the two cannot be told apart. In the sentences above, a "
            "pair that was not measured in turns is compared by its medians.",
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
        ("Load", "From starting a fresh process to its first result, the files being in the page cache."),
        (
            "Memory",
            "The highest anonymous memory (RssAnon) of the process, interpreter and libraries included; pages the "
            "system can read back from a file are not counted. MiB are 2²⁰ bytes.",
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
