"""`local`: this machine, through the same path as a board."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from saten_runtime.errors import UsageError
from saten_runtime.records.plain_text import printable

__all__ = ["Local", "parse_local"]


@dataclass(frozen=True)
class Local:
    """See `Device`. The runtime is the one that is installed here."""

    url: str = "local"
    label: str = "local"
    folder: str | None = None
    ready: bool = True

    def command(self, bootstrap: str) -> list[str]:
        """`bootstrap` in a shell of this machine, with this Python as its python3."""
        return ["sh", "-c", bootstrap.replace("python3", '"$0"', 1), sys.executable]

    def explain(self, returncode: int | None, last_words: str) -> str:
        """Its last words."""
        return f"python ended with exit code {returncode}: {last_words}"


def parse_local(url: str) -> Local:
    """`local`.

    Raises:
        UsageError: something follows.
    """
    if url != "local":
        raise UsageError(f"--device {printable(url)}: nothing may follow local")
    return Local()
