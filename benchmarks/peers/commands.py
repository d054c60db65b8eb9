"""Commands of saten-edge as the user runs them, without the seconds in which each would import torch again."""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))

from warm_python import COMMANDS, WarmPython

__all__ = ["saten_edge"]


# The command of a warm Python that whoever started this program has already.
PYTHON = "SATEN_WARM_PYTHON"
_starting = threading.Lock()


@functools.cache
def _python() -> list[str]:
    """A Python that has imported what the commands need, until this process ends."""
    if PYTHON in os.environ:
        return shlex.split(os.environ[PYTHON])
    python = WarmPython(COMMANDS)
    atexit.register(python.__exit__)
    return python.__enter__().command


def saten_edge(*arguments: object, threads: int | None = None) -> None:
    """Run a command of ours; threads: for what runs beside others.

    Raises:
        RuntimeError: it failed; what it said last.
    """
    with _starting:
        python = _python()
    command = [*python, "-m", "saten_edge", *map(str, arguments), "--quiet"]
    beside = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **beside}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode:
        words = (done.stdout + done.stderr).strip()[-300:]
        raise RuntimeError(words or f"saten-edge {arguments[0]}: exit code {done.returncode}")
