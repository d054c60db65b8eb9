"""Reports: measurements as a table in the terminal, Markdown, CSV, JSON, and one HTML page.

    report = build_report(bundles, bench, evaluation, notes=[("Data", "…")], history=steps)
    print_table(report)
    write_html(report, Path("report.html"))

Nothing here measures; a report is a pure function of what it is given.
"""

from __future__ import annotations

from saten_edge.reports.compare import compare_runs, comparison_table, read_run
from saten_edge.reports.devices import beside, join_benches, join_evaluations
from saten_edge.reports.headline import headline
from saten_edge.reports.html import html_page, write_html
from saten_edge.reports.markdown import csv_table, markdown_table
from saten_edge.reports.model import Report, build_report
from saten_edge.reports.summary import summary_json
from saten_edge.reports.terminal import print_table, terminal_table

__all__ = [
    "Report",
    "beside",
    "build_report",
    "compare_runs",
    "comparison_table",
    "csv_table",
    "headline",
    "html_page",
    "join_benches",
    "join_evaluations",
    "markdown_table",
    "print_table",
    "read_run",
    "summary_json",
    "terminal_table",
    "write_html",
]
