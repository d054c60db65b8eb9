"""How every command prints: data to stdout, as text or JSON; talk to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from saten_edge.console import Talk
from saten_runtime.options import Printing

__all__ = ["show", "talk"]


def show(value: Any, text: Callable[[Any], str], printing: Printing) -> None:
    """Print a result: as JSON, or as `text` says it."""
    print(json.dumps(value, indent=2, allow_nan=False) if printing.as_json else text(value))


def talk(printing: Printing) -> Talk:
    """Where a command says what it is doing."""
    return Talk(quiet=printing.quiet)
