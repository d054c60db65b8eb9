"""`saten-edge import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import saten_edge
from saten_edge.cli.options import Output, Overwrite
from saten_edge.cli.printing import show, talk
from saten_edge.cli.tables import layers_table
from saten_runtime.options import Printing

MERGED = "the adapter is merged; every layer is dense"


def import_checkpoint(
    src: Annotated[
        Path,
        typer.Argument(help="State dict of the authors' code, their tm_params.pth, or a LoRA adapter: file or folder"),
    ],
    base: Annotated[str, typer.Option(help="Dense model of the same architecture: folder or hub name")],
    output: Output,
    printing: Printing,
    task: Annotated[
        str | None, typer.Option(help="Task as the hub names it; by default the heads in the checkpoint say it")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Read a checkpoint made with the Saten authors' code, or merge a LoRA adapter into its base."""
    with talk(printing) as said:
        table = saten_edge.import_checkpoint(src, base, output, task=task, overwrite=overwrite, progress=said.progress)
    show(table, lambda read: layers_table(read) if read["layers"] else MERGED, printing)
