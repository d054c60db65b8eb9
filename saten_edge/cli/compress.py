"""`saten-edge compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import saten_edge
from saten_edge.cli.options import Output, Overwrite, Recipe
from saten_edge.cli.printing import followed, show, talk
from saten_edge.cli.tables import layers_table
from saten_edge.options import CompressOptions, EngineOptions
from saten_edge.texts import read_items
from saten_runtime.options import Printing


def compress(
    model: Annotated[str, typer.Argument(help="Model folder, GGUF file, or a name on the Hugging Face hub")],
    output: Output,
    options: CompressOptions,
    engine: EngineOptions,
    printing: Printing,
    calibration: Annotated[
        Path | None, typer.Option(help="JSON Lines or CSV file of texts or images that weigh the errors")
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="Calibration texts or images to read at most")] = 512,
    recipe: Recipe = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Compress a model into a Saten checkpoint."""
    read = read_items(calibration)[:texts] if calibration else ()
    with followed(recipe, "compress", options, output) as how, talk(printing) as said:
        table = saten_edge.compress(
            model,
            output,
            how,
            calibration=read,
            engine=engine,
            resume=resume,
            overwrite=overwrite,
            progress=said.progress,
        )
    show(table, layers_table, printing)
