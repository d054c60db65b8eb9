"""`saten-edge layout`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saten_edge.cli.options import Output, Overwrite
from saten_edge.cli.printing import show
from saten_runtime.options import Printing


def layout(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of one model, each in another precision")],
    output: Output,
    printing: Printing,
    layout: Annotated[str, typer.Option(help="Layout of the folder: transformersjs")] = "transformersjs",
    overwrite: Overwrite = False,
) -> None:
    """Write bundles as the folder that another program expects."""
    from saten_exporters.bundles.layouts import write_layout
    from saten_runtime.bundle.folder import Bundle

    write_layout(layout, [Bundle.open(path) for path in bundles], output, overwrite=overwrite)
    show({"output": str(output)}, lambda result: result["output"], printing)
