"""Terminals and file names as they come: no traceback, whatever bytes they take or have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stdout_that_is_not_utf8(
    encoding: str, tiny_bert: Path, warm_python: list[str], offline: dict[str, str], tmp_path: Path
) -> None:
    """The table has × and –; JSON is the same in every encoding."""
    environment = {**offline, "PYTHONIOENCODING": encoding}
    command = [*warm_python, "-m", "saten_edge", "compress", str(tiny_bert), "--pattern", "none", "-q", "-o"]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"encoder.layer.0.attention.self.query" in done.stdout
    assert b"kept dense" in done.stdout
    done = subprocess.run([*command, str(tmp_path / "json"), "--json"], capture_output=True, env=environment)
    assert json.loads(done.stdout)["layers"]


@pytest.mark.parametrize("module", ["saten_edge", "saten_runtime"])
def test_an_argument_that_is_not_utf8(module: str, tmp_path: Path) -> None:
    command = [sys.executable.encode(), b"-m", module.encode(), b"bench", b"m\xffdel"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.endswith(b": is not UTF-8; rename it\n")
    assert done.stderr.count(b"\n") == 1
