"""`saten-edge trim`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import saten_edge
from saten_edge.cli.options import Output, Overwrite, Recipe
from saten_edge.cli.printing import followed, show, talk
from saten_edge.cli.tables import trim_table
from saten_edge.options import TrimOptions
from saten_runtime.options import Printing


def trim(
    model: Annotated[str, typer.Argument(help="Dense model: folder, GGUF file or hub name")],
    output: Output,
    data: Annotated[Path, typer.Option(help="JSON Lines or CSV file of texts as the model will read them")],
    options: TrimOptions,
    printing: Printing,
    recipe: Recipe = None,
    overwrite: Overwrite = False,
) -> None:
    """Leave out of a dense model's vocabulary what the texts of its task do not use."""
    with followed(recipe, "trim", options, output) as how, talk(printing) as said:
        found = saten_edge.trim(model, output, data, how, overwrite=overwrite, progress=said.progress)
    show(found, trim_table, printing)
