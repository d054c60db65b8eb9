"""Numbers and strings as a reader sees them, in every output the same."""

from __future__ import annotations

import re

__all__ = [
    "MIB",
    "MISSING",
    "bytes_as_mib",
    "count",
    "mb",
    "metric_title",
    "mib",
    "milliseconds",
    "percent",
    "plural",
    "score",
]

MISSING = "–"
MIB = 1 << 20
_NAMES = {"mrr": "MRR", "f1": "F1"}


def significant(value: float) -> str:
    """Three significant digits without an exponent: 123, 12.3, 1.23, 0.123, 0.0123."""
    digits = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if digits:
        return f"{value:.{max(0, 3 - digits)}f}"
    zeros = re.match(r"-?0\.(0*)", f"{value:.9f}")
    return f"{value:.{min(9, 3 + len(zeros.group(1)))}f}" if zeros and value else "0"


def milliseconds(value: float | None) -> str:
    """A time in milliseconds, three significant digits."""
    return MISSING if value is None else significant(value)


def mb(size_bytes: float | None) -> str:
    """Bytes as megabytes of 10⁶, one decimal; below 0.1 MB three significant digits."""
    if size_bytes is None:
        return MISSING
    return f"{size_bytes / 1e6:.1f}" if size_bytes >= 1e5 or not size_bytes else significant(size_bytes / 1e6)


def mib(value: float | None) -> str:
    """Mebibytes (2²⁰ bytes), one decimal."""
    return MISSING if value is None else f"{value:.1f}"


def bytes_as_mib(size_bytes: int | None) -> str:
    """Bytes as mebibytes (2²⁰), one decimal."""
    return mib(None if size_bytes is None else size_bytes / MIB)


def percent(fraction: float | None) -> str:
    """A fraction as percent, one decimal, the sign left out."""
    return MISSING if fraction is None else f"{100 * fraction:.1f}"


def score(value: float | None) -> str:
    """An accuracy metric, three decimals; a value above 10 (perplexity) three digits."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if abs(value) < 10 else significant(value)


def count(value: float | None) -> str:
    """A whole number with thin groups of three."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def plural(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def metric_title(name: str) -> str:
    """`recall_at_10` as `recall@10`, `mrr_at_10` as `MRR@10`."""
    stem, _, rank = name.partition("_at_")
    title = _NAMES.get(stem, stem.replace("_", " "))
    return f"{title}@{rank}" if rank else title
