"""`saten-edge finetune`."""

from __future__ import annotations

from typing import Annotated

import typer

import saten_edge
from saten_edge.cli.options import Output, Overwrite, Recipe
from saten_edge.cli.printing import followed, leads, show, talk
from saten_edge.cli.tables import metrics_table
from saten_edge.options import FinetuneOptions
from saten_runtime.options import Printing
from saten_runtime.records.plain_text import printable


def finetune(
    model: Annotated[str, typer.Argument(help="Saten checkpoint or dense model: folder, GGUF file or hub name")],
    output: Output,
    data: Annotated[str, typer.Option(help="JSON Lines or CSV file, or NAME[:CONFIG] of a data set on the hub")],
    options: FinetuneOptions,
    printing: Printing,
    recipe: Recipe = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a model on labels, towards the dense model it was made from, or both."""
    with followed(recipe, "finetune", options, output) as how, talk(printing) as said:
        metrics = saten_edge.finetune(
            model, output, data, how, resume=resume, overwrite=overwrite, progress=said.progress
        )
    for notice in metrics.get("notices", []) if leads() else ():
        typer.echo(f"saten-edge: {printable(notice)}", err=True)
    show(metrics, metrics_table, printing)
