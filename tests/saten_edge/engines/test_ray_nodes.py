"""A node of a Ray cluster is lost with all that ran on it: the others take over, and --resume comes to the same."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import saten_edge
from saten_edge.decomposition.recipe import Recipe
from saten_edge.options import CompressOptions, EngineOptions

OPTIONS = CompressOptions(budget=0.4, group=8, allocation="uniform", recipe=Recipe(rounds=1))
STORE_BYTES = 100 << 20


@pytest.fixture(scope="module")
def by_one(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that one local worker comes to."""
    out = tmp_path_factory.mktemp("one") / "out"
    saten_edge.compress(tiny_bert, out, OPTIONS, engine=EngineOptions(workers=1))
    return (out / "model.safetensors").read_bytes()


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with a processor each; the first is the head."""
    pytest.importorskip("ray", reason="not installed: pip install 'saten-edge[ray]'")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "120")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = importlib.import_module("ray.cluster_utils").Cluster()
    common = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    try:
        cluster.add_node(**common)
        yield SimpleNamespace(address=cluster.address, other=cluster.add_node(**common))
    finally:
        cluster.shutdown()


def kill_node(node: Any) -> None:
    """As if its plug was pulled: the raylet and with it its workers."""
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)


def layers_done(folder: Path) -> int:
    """How many layers of a compression lie in its folder; what workers are to read lies there, too."""
    return sum(not path.name.startswith("input.") for path in folder.glob("*.safetensors"))


def when(ready: Callable[[], bool], do: Callable[[], None]) -> threading.Thread:
    """Do something as soon as it is time for it."""

    def watch() -> None:
        while not ready():
            time.sleep(0.01)
        do()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow  # starts a cluster of two nodes
def test_a_node_that_is_lost_loses_nothing(by_one: bytes, nodes: Any, tiny_bert: Path, tmp_path: Path) -> None:
    kept = tmp_path / ".out.compression"
    thread = when(lambda: layers_done(kept) > 2, lambda: kill_node(nodes.other))
    saten_edge.compress(tiny_bert, tmp_path / "out", OPTIONS, engine=EngineOptions("ray", 2, nodes.address))
    thread.join(60)
    assert not thread.is_alive()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == by_one
    assert not kept.exists()


@pytest.mark.slow  # starts a cluster
def test_without_any_node_the_run_ends_and_can_be_resumed(
    by_one: bytes, tiny_bert: Path, tmp_path: Path, offline: dict[str, str]
) -> None:
    """The cluster that the run started itself: its only raylet is killed."""
    pytest.importorskip("ray", reason="not installed: pip install 'saten-edge[ray]'")
    psutil, kept = importlib.import_module("psutil"), tmp_path / ".out.compression"
    told = ("--budget", "0.4", "--group", "8", "--allocation", "uniform", "--rounds", "1", "--quiet")
    line = [sys.executable, "-m", "saten_edge", "compress", tiny_bert, "-o", tmp_path / "out", *told, "--engine", "ray"]
    environment = {**offline, "HOME": str(tmp_path), "RAY_gcs_server_port_wait_time_s": "120", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        list(map(str, [*line, "--workers", 1])),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def kill() -> None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == "raylet":
                    child.kill()

    when(lambda: process.poll() is not None or layers_done(kept) > 2, kill)
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0, out + err
    assert not (tmp_path / "out").exists()
    assert layers_done(kept) > 2
    saten_edge.compress(tiny_bert, tmp_path / "out", OPTIONS, engine=EngineOptions(workers=1), resume=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == by_one
