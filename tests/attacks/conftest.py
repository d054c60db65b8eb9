"""Sound inputs, and the process that tries hostile ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile.server import Outcome
from hostile.sound import save_bundle

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def lookup_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of about two thousand bytes. Read-only."""
    return save_bundle(tmp_path_factory.mktemp("bundles") / "lookup")


@pytest.fixture(scope="session")
def sound(tiny_bert: Path, tiny_saten: Path, tiny_saten_unstructured: Path, lookup_bundle: Path) -> dict[str, Path]:
    """What hostile inputs are made from, by name."""
    return {
        "bert": tiny_bert,
        "saten": tiny_saten,
        "unstructured": tiny_saten_unstructured,
        "bundle": lookup_bundle,
    }


@pytest.fixture(scope="session")
def tried(sound: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Outcome]]:
    """tried(case id) -> what came of it, in a process of its own."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "200",
    }
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-m", "hostile.server", json.dumps({name: str(path) for name, path in sound.items()})]
    with subprocess.Popen(command, text=True, env=environment, **pipes) as server:

        def ask(case: str) -> Outcome:
            folder = tmp_path_factory.mktemp("case")
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps({"case": case, "folder": str(folder)}) + "\n")
            server.stdin.flush()
            return Outcome(**json.loads(server.stdout.readline()))

        yield ask
        server.stdin.close()
