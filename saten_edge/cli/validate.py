"""`saten-edge validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saten_edge.cli.printing import show
from saten_runtime.options import Printing


def validate(bundle: Annotated[Path, typer.Argument(help="Bundle to validate")], printing: Printing) -> None:
    """Compare a bundle with the torch outputs it carries; exit code 3 where they differ."""
    from saten_runtime.bundle.folder import Bundle
    from saten_runtime.run.parity import check_parity, parity_table

    comparisons = check_parity(Bundle.open(bundle))
    show([each.to_json() for each in comparisons], lambda _: parity_table(comparisons), printing)
