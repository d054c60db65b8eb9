"""The table as Markdown, for a README or an issue, and as CSV, for a spreadsheet."""

from __future__ import annotations

import csv
import html
import io
import re

from saten_edge.reports.columns import FULL, PAGE, Column, columns
from saten_edge.reports.model import Report, Row

__all__ = ["csv_table", "markdown_table"]

_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")
_FORMULA = ("=", "+", "-", "@")


def markdown_table(report: Report) -> str:
    """A GitHub table with one row per bundle, below a line that says INVALID where that is so."""
    shown = columns(report, PAGE)
    lines = [
        *_warning(report),
        "| bundle | " + " | ".join(_heading(column, report) for column in shown) + " |",
        "|---|" + "---:|" * len(shown),
        *(
            f"| {_escape(row.name)} | " + " | ".join(_text(column, row) for column in shown) + " |"
            for row in report.rows
        ),
    ]
    return "\n".join(lines) + "\n"


def csv_table(report: Report) -> str:
    """RFC 4180 text: a header line, then one line per bundle, numbers unrounded, empty = not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    shown = columns(report, FULL)
    writer.writerow(["name", *(column.key for column in shown), "valid", "failed"])
    valid = "" if report.verdict is None else str(report.verdict.valid).lower()
    for row in report.rows:
        failed = "; ".join(
            f"{cell.tokens} tokens: {cell.failed}" for cell in row.cells.values() if cell.failed is not None
        )
        writer.writerow([_inert(row.name), *(column.value(row) for column in shown), valid, _inert(failed)])
    return out.getvalue()


def _heading(column: Column, report: Report) -> str:
    baseline = report.baseline.name
    of = {"%": f" of {baseline}", "ratio": f" to {baseline}"}.get(column.title, "")
    return _escape(column.alone + of)


def _text(column: Column, row: Row) -> str:
    note = column.note(row)
    return _escape(column.text(row)) + (f" ({_escape(note)})" if note else "")


def _warning(report: Report) -> list[str]:
    if report.verdict is None or report.verdict.valid:
        return []
    return [f"**INVALID**, do not believe these times: {_escape('; '.join(report.verdict.reasons))}", ""]


def _escape(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False))


def _inert(text: str) -> str:
    """A spreadsheet runs a cell that begins like a formula; an apostrophe makes it text."""
    return f"'{text}" if text.startswith(_FORMULA) else text
