"""What the benchmark programs share: artifacts made once, our commands, tables for people."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["once", "pipe_table", "python", "saten_edge", "say", "short", "stored_bytes"]

# Graphs and weights of every engine.
SUFFIXES = (".onnx", ".data", ".bin", ".xml", ".safetensors", ".gguf")


def once(out: Path, make: Callable[[Path], Any]) -> Path:
    """`out`, made if it is not there."""
    if not out.exists():
        make(out)
    return out


def saten_edge(*arguments: object) -> None:
    """Run a command of ours in this process: a new one would spend seconds on importing the same again.

    Raises:
        SystemExit: the command failed, and said why on stderr.
    """
    from saten_edge.cli import main

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # stdout is for the table
            main([*map(str, arguments), "--quiet"])
    except SystemExit as ended:
        if ended.code:
            raise SystemExit(f"saten-edge {arguments[0]} ended with {ended.code}") from None


def python(*arguments: object) -> None:
    """Run a program of somebody else's.

    Raises:
        SystemExit: with its last words, where it fails.
    """
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-300:])


def stored_bytes(artifact: Path) -> int:
    """Graph and weights of an artifact, indices included."""
    return sum(path.stat().st_size for path in artifact.iterdir() if path.name.endswith(SUFFIXES))


def pipe_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first holds numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def short(value: float | None, form: str) -> str:
    """A cell; a dash where there is no value."""
    return "–" if value is None else form.format(value)


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)
