"""`saten-edge compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from saten_edge.cli.printing import show
from saten_runtime.options import Printing
from saten_runtime.records.plain_text import printable


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Folder of a bench run, or its bench.json")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another run, of the same bundles")],
    printing: Printing,
) -> None:
    """Compare two bench runs cell by cell: how much faster or slower B is, and how surely."""
    from saten_edge.reports import compare_runs, comparison_table, read_run

    def notice(text: str) -> None:
        if not printing.quiet:
            print(f"saten-edge: {printable(text)}", file=sys.stderr)

    old, new = read_run(before, notice), read_run(after, notice)
    rows = compare_runs(old, new)
    show([row.to_json() for row in rows], lambda _: comparison_table(old, new, rows), printing)
