"""What a row of the table is."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Case", "Place", "saten_edge", "saten_run"]

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Place:
    """Where a case works: its own empty folder, and the sound inputs it makes its hostile ones from.

    sound: name → a folder or file that works as it is, read-only.
    """

    folder: Path
    sound: dict[str, Path]

    def copy(self, name: str) -> Path:
        """A copy of a sound folder or file, to be damaged."""
        source, target = self.sound[name], self.folder / name
        return shutil.copytree(source, target) if source.is_dir() else Path(shutil.copy(source, target))

    @property
    def out(self) -> Path:
        """Where a command of a case writes; nothing may be there afterwards."""
        return self.folder / "out"


@dataclass(frozen=True)
class Case:
    """One hostile input.

    threat: its id in docs/security.md. make: puts the input there. run: what meets it; returns an exit code or None.
    error: class of the refusal,
    as a pattern; None where the input is harmless and must stay so. words: of the message, as a pattern
    that names the place. most_bytes: that the process may grow by. seconds: of processor time.
    """

    threat: str
    name: str
    make: Callable[[Place], Any]
    run: Callable[[Place], Any]
    error: str | None
    words: str
    code: int = 2
    most_bytes: int = 96 * MEBIBYTE
    seconds: int = 30

    @property
    def id(self) -> str:
        return f"{self.threat}: {self.name}"


def saten_edge(*arguments: object) -> int:
    """The exit code of a `saten-edge` command."""
    from saten_edge.cli import commands as cli

    sys.argv = ["saten-edge", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def saten_run(*arguments: object) -> int:
    """The exit code of a `saten-run` command."""
    from saten_runtime import cli

    return cli.main(list(map(str, arguments)))
