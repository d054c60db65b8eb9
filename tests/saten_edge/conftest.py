"""What the tests of compression and training share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _trace_once(trace_once: object) -> None:
    """For every export here."""


@pytest.fixture(scope="session")
def saten_edge_command(
    warm_python: list[str], offline: dict[str, str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """saten_edge_command(*arguments, cwd=…) -> the finished `saten-edge`, which cannot reach the hub."""
    environment = {**offline, "COLUMNS": "100"}

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [*warm_python, "-m", "saten_edge", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **options)

    return run


@pytest.fixture(scope="session")
def lowered_dense(tiny_saten: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a compressed model, every layer of it written as a dense matrix. Read-only."""
    from saten_edge.checkpoints.models import load_model
    from saten_exporters import export

    folder = tmp_path_factory.mktemp("lowered") / "lowered-dense"
    return export(load_model(tiny_saten), folder, lowering="dense").path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments) -> exit code, stdout, stderr of a command in this process."""

    from saten_edge.cli import commands as cli

    def in_process(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["saten-edge", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), *capfd.readouterr()
        return 0, *capfd.readouterr()

    return in_process
