"""How every command prints: data to stdout, as text or JSON; talk to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from saten_edge.console import Talk
from saten_runtime.options import Printing

__all__ = ["followed", "leads", "show", "talk"]

Kind = TypeVar("Kind")


def show(value: Any, text: Callable[[Any], str], printing: Printing) -> None:
    """Print a result: as JSON, or as `text` says it."""
    if leads():
        print(json.dumps(value, indent=2, allow_nan=False) if printing.as_json else text(value))


@contextlib.contextmanager
def followed(recipe: Path | None, stage: str, options: Kind, output: Path) -> Iterator[Kind]:
    """The options of a stage, those of a recipe's file among them; in the end it is said what was read besides.

    Raises:
        UsageError: with file and line: there is no such stage or option, or the command line contradicts it.
    """
    if recipe is None:
        yield options
        return
    from saten_edge.recipes import merged, other_inputs, read_recipe, stages_in

    file = read_recipe(recipe)
    yield merged(file, stage, options)
    done = [each for each in stages_in(output) if each.stage == stage]
    for other in other_inputs(file.stage(stage), done[-1]) if done else ():
        print(f"saten-edge: {recipe}: {stage} read another {other}", file=sys.stderr)


def leads() -> bool:
    """Whether this process is the first of those that torchrun started, which alone talks, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def talk(printing: Printing) -> Talk:
    """Where a command says what it is doing."""
    return Talk(quiet=printing.quiet or not leads())
