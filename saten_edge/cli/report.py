"""`saten-edge report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import saten_edge
from saten_runtime.options import Printing

if TYPE_CHECKING:
    from saten_edge.reports import Report


def report(
    bundles: Annotated[
        list[Path], typer.Argument(help="Bundles in the order of the rows, and the folder of a bench run")
    ],
    printing: Printing,
    bench: Annotated[
        list[Path] | None, typer.Option(help="bench.json of a run, or its folder; repeat it for each device")
    ] = None,
    profile: Annotated[
        list[Path] | None, typer.Option(help="JSON file of `saten-run profile`; repeat it for each bundle")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--eval", help="JSON file of an eval run, or a folder with its eval.json; repeat it for each device"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write")] = None,
    form: Annotated[str, typer.Option("--format", help="Format on stdout: table, markdown, csv or json")] = "table",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists")] = False,
) -> None:
    """Put sizes, latency, memory and accuracy of bundles side by side."""
    from saten_runtime.bench.journal import SUMMARY_FILE

    printer = _printer("json" if printing.as_json else form)
    runs = [path for path in bundles if (path / SUMMARY_FILE).is_file()]
    built = saten_edge.report(
        [path for path in bundles if path not in runs],
        benches=[*(path / SUMMARY_FILE for path in runs), *(bench or ())],
        evaluations=evaluation or (),
        profiles=profile or (),
        output=output,
        overwrite=overwrite,
    )
    printer(built)


def _printer(form: str) -> Callable[[Report], None]:
    from saten_edge import reports

    printers: dict[str, Callable[[Report], None]] = {
        "table": reports.print_table,
        "markdown": lambda report: print(reports.markdown_table(report), end=""),
        "csv": lambda report: print(reports.csv_table(report), end=""),
        "json": lambda report: print(json.dumps(reports.summary_json(report), indent=2, allow_nan=False)),
    }
    if form not in printers:
        raise typer.BadParameter(f"{form!r}: there are {', '.join(printers)}", param_hint="--format")
    return printers[form]
