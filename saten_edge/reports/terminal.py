"""The report in a terminal: one table that fits 100 columns."""

from __future__ import annotations

import textwrap

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from saten_edge.reports.columns import BRIEF, Column, columns
from saten_edge.reports.model import Report, Row
from saten_edge.reports.text import MISSING

__all__ = ["print_table", "terminal_table"]

_LONGEST_NAME = 22
_HEADING_WIDTH = 6


def terminal_table(report: Report) -> Table:
    """The brief table: compressed bundles in bold, what must not be believed in red below it.

    Names and reasons are plain text; brackets in them are not read as markup.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, caption=_caption(report), caption_justify="left")
    names = [len(row.name) for row in report.rows]
    table.add_column("bundle", overflow="fold", min_width=min(max(names), _LONGEST_NAME), vertical="bottom")
    shown = columns(report, BRIEF)
    for column in shown:
        table.add_column(_heading(column), justify="right", no_wrap=True, vertical="bottom")
    for row in report.rows:
        cells = (Text(_text(column, row)) for column in shown)
        table.add_row(Text(row.name), *cells, style="" if row.dense else "bold")
    return table


def print_table(report: Report, console: Console | None = None) -> None:
    """Print the table to `console`, or to stdout.

    Where that is no terminal: without colour, as wide as it needs to be, and with characters the
    stream's encoding lacks spelled out.
    """
    console = console or Console()
    table = terminal_table(report)
    if console.is_terminal:
        console.print(table)
        return
    wide = Console(file=console.file, color_system=None, width=10_000)
    wide.width = wide.measure(table).maximum
    with wide.capture() as captured:
        wide.print(table)
    encoding = console.encoding
    lines = (line.rstrip() for line in captured.get().splitlines())
    console.file.write("".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace").decode(encoding))


def _heading(column: Column) -> Text:
    words = column.alone.replace("@", " @")
    return Text("\n".join(textwrap.wrap(words, _HEADING_WIDTH, break_long_words=False)), justify="right")


def _text(column: Column, row: Row) -> str:
    note = column.note(row)
    text = f"{column.text(row)} [{note}]" if note else column.text(row)
    return text.replace(MISSING, "-")


def _caption(report: Report) -> Text:
    lines = [Text(f"% and ratio: of {report.baseline.name}; ratio with its 95 % interval, below 1 is faster")]
    if report.setting:
        lines.append(Text(str(report.setting)))
    for cell in report.failures:
        lines.append(Text(f"failed: {cell.bundle} at {cell.tokens} tokens: {cell.failed}", style="red"))
    if report.verdict and not report.verdict.valid:
        reasons = "; ".join(report.verdict.reasons) or "no reason recorded"
        lines.append(Text(f"INVALID, do not believe these times: {reasons}", style="bold red"))
    return Text("\n").join(lines)
