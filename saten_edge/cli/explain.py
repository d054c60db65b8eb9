"""`saten-edge explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saten_edge.cli.printing import show
from saten_runtime.options import Printing


def explain(bundle: Annotated[Path, typer.Argument(help="Bundle to explain")], printing: Printing) -> None:
    """Show how each layer is written, how long that was predicted to take, and what else was possible."""
    from saten_runtime.bundle import explain as explanation
    from saten_runtime.bundle.folder import Bundle

    show(explanation.explain(Bundle.open(bundle)), explanation.explain_table, printing)
