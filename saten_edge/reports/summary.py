"""The report for machines: what `summary.json` holds."""

from __future__ import annotations

from typing import Any

from saten_edge.reports.model import Report

__all__ = ["summary_json"]

_METRICS = ("recall_at_1", "recall_at_10", "cosine")


def summary_json(report: Report) -> list[dict[str, Any]]:
    """One object per bundle; the same keys always, None for what was not measured.

    bytes: on disk; p50_ms: milliseconds by token count (a string, as JSON keys are);
    peak_anon_mib: MiB.
    """
    return [
        {
            "name": row.name,
            "bytes": row.bytes,
            "p50_ms": {str(tokens): row.p50_ms(tokens) for tokens in report.tokens},
            "peak_anon_mib": row.peak_anon_mib,
            **{metric: row.metrics.get(metric) for metric in _METRICS},
        }
        for row in report.rows
    ]
