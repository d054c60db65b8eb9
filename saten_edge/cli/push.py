"""`saten-edge push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saten_edge.cli.printing import show
from saten_runtime.options import Printing


def push(
    folder: Annotated[Path, typer.Argument(help="Bundle, or a folder that `export --layout` wrote")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face hub")],
    printing: Printing,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private if it is new")] = False,
) -> None:
    """Upload a bundle to the Hugging Face hub."""
    from saten_exporters.bundles import hub

    show({"url": hub.push(folder, repository, private=private)}, lambda result: result["url"], printing)
