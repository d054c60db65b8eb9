"""`saten-edge demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from saten_edge.cli.printing import talk
from saten_edge.options import DemoOptions
from saten_runtime.options import Printing


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write; that of an earlier demo is replaced")
    ],
    options: DemoOptions,
    printing: Printing,
    model: Annotated[
        Path | None, typer.Option(help="Folder of a sentence-embedding model, instead of the packaged one")
    ] = None,
) -> None:
    """Compress, fine-tune, export and measure all-MiniLM-L6-v2 on docstrings, offline."""
    from saten_edge.demo import run_demo
    from saten_edge.reports import headline, print_table, summary_json

    report = run_demo(output, options, talk(printing), model=model)
    if printing.as_json:
        print(json.dumps(summary_json(report), indent=2, allow_nan=False))
        return
    print_table(report)
    print(f"\n{headline(report)}\n\nreport: {output / 'report.html'}\nsummary: {output / 'summary.json'}")
