"""The same bytes from every engine and any number of workers; clusters that are not there; what is lost and found."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import saten_edge
from saten_edge.checkpoints import layers
from saten_edge.decomposition.recipe import Recipe
from saten_edge.engines import ENGINES
from saten_edge.engines.pool import Pool
from saten_edge.options import CompressOptions, EngineOptions
from saten_runtime.errors import DeviceError, SatenError, UsageError

OPTIONS = CompressOptions(budget=0.4, group=8, allocation="uniform", recipe=Recipe(rounds=1))
NAMES = {"ray": "ray", "slurm": "submitit"}


def need(engine: str) -> None:
    pytest.importorskip(NAMES[engine], reason=f"not installed: pip install 'saten-edge[{engine}]'")


@pytest.fixture(scope="module")
def by_one(tiny_bert: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that one local worker comes to."""
    out = tmp_path_factory.mktemp("one") / "out"
    saten_edge.compress(tiny_bert, out, OPTIONS, calibration=texts, engine=EngineOptions(workers=1))
    return (out / "model.safetensors").read_bytes()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a cluster, which may take its time to start."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "120")


def compressed(engine: EngineOptions, dense: Path, texts: list[str], out: Path, **more: Any) -> bytes:
    saten_edge.compress(dense, out, OPTIONS, calibration=texts, engine=engine, **more)
    return (out / "model.safetensors").read_bytes()


def test_two_workers_make_what_one_does(by_one: bytes, tiny_bert: Path, texts: list[str], tmp_path: Path) -> None:
    """And this process, where it has one thread, as in tests."""
    assert compressed(EngineOptions(workers=2), tiny_bert, texts, tmp_path / "two") == by_one
    assert compressed(EngineOptions(), tiny_bert, texts, tmp_path / "here") == by_one
    assert not list(tmp_path.glob(".*"))
    other = CompressOptions(budget=0.3, group=8, allocation="uniform", recipe=Recipe(rounds=1))
    saten_edge.compress(tiny_bert, tmp_path / "other", other, calibration=texts)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != by_one


@pytest.mark.slow  # starts a cluster
def test_ray_makes_the_same(by_one: bytes, tiny_bert: Path, texts: list[str], tmp_path: Path, home: None) -> None:
    need("ray")
    assert compressed(EngineOptions("ray", workers=2), tiny_bert, texts, tmp_path / "out") == by_one


@pytest.mark.slow  # a process for each of 14 layers
def test_slurm_makes_the_same(by_one: bytes, tiny_bert: Path, texts: list[str], tmp_path: Path, home: None) -> None:
    need("slurm")
    assert compressed(EngineOptions("slurm", 2, "local"), tiny_bert, texts, tmp_path / "out") == by_one


def test_a_cluster_that_is_started_here_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No dashboard, nothing reported to anybody, and it ends with the run."""
    told: dict[str, Any] = {}
    ended: list[bool] = []
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    fake = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda *where, **how: told.update(how, where=where, reports=os.environ["RAY_USAGE_STATS_ENABLED"]),
        remote=lambda **how: lambda function: function,
        shutdown=lambda: ended.append(True),
    )
    monkeypatch.setattr("saten_edge.engines.ray.imported", lambda *names: fake)
    with ENGINES["ray"](tmp_path, 2, 1, None):
        assert not ended
    assert ended
    assert (told["where"], told["include_dashboard"], told["reports"]) == ((), False, "0")


def test_a_request_of_a_lost_node_is_asked_once_more_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost with a second node, it ends the run."""
    asked: list[str] = []
    lost = {"b": 1}

    class RayError(Exception):
        pass

    def get(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["do"])
        if lost.get(request["do"], 0):
            lost[request["do"]] -= 1
            raise RayError("the node died")
        return {"ok": {"did": request["do"]}}

    fake = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda *where, **how: None,
        remote=lambda **how: lambda function: SimpleNamespace(remote=lambda request: request),
        get=get,
        shutdown=lambda: None,
        exceptions=SimpleNamespace(RayError=RayError),
    )
    monkeypatch.setattr("saten_edge.engines.ray.imported", lambda *names: fake)
    counted: list[int] = []
    with ENGINES["ray"](tmp_path, 1, 1, None) as engine:
        found = engine.run([{"do": name} for name in "abc"], counted.append)
        assert [each["did"] for each in found] == ["a", "b", "c"]
        assert (asked, counted) == (["a", "b", "b", "c"], [1, 2, 3])
        lost["d"] = 2
        with pytest.raises(DeviceError, match=r"^a worker of Ray was lost \(the node died\)$"):
            engine.run([{"do": "d"}], counted.append)
    assert counted == [1, 2, 3]


class Here(Pool):
    """An engine without workers; `lost`: the number of the request whose worker is lost, always."""

    lost = -1

    def _ask(self, request: Any) -> dict[str, Any]:
        given = {key: value for key, value in request.items() if key not in ("do", "threads", "folder")}
        ASKED.append(given["task"])
        if len(ASKED) > self.lost >= 0:
            raise DeviceError("worker killed by SIGKILL")
        return layers.decompose_file(Path(request["folder"]), **given)

    def _end(self) -> None:
        pass


ASKED: list[Any] = []


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    ASKED.clear()
    monkeypatch.setitem(ENGINES, "local", Here)
    monkeypatch.setattr(Here, "lost", -1)
    return Here


def test_the_largest_layer_is_first_and_with_blocks_they_come_in_order(
    here: type[Here], tiny_bert: Path, texts: list[str], tmp_path: Path
) -> None:
    saten_edge.compress(tiny_bert, tmp_path / "plain", OPTIONS, engine=EngineOptions(workers=1))
    assert ASKED[0]["name"] == "embeddings.word_embeddings"
    assert ASKED[1]["name"] == "encoder.layer.0.intermediate.dense"
    ASKED.clear()
    table = saten_edge.compress(
        tiny_bert, tmp_path / "blocks", OPTIONS, calibration=texts, engine=EngineOptions(workers=1)
    )
    assert [task["name"] for task in ASKED] == [row["name"] for row in table["layers"]]


def test_after_a_lost_worker_a_run_goes_on_and_does_nothing_twice(
    by_one: bytes, here: type[Here], tiny_bert: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "lost", 5)
    with pytest.raises(DeviceError, match=r"^worker killed by SIGKILL; --resume goes on with what is kept in "):
        compressed(EngineOptions(workers=1), tiny_bert, texts, tmp_path / "out")
    before = {task["name"] for task in ASKED[:5]}
    ASKED.clear()
    monkeypatch.setattr(here, "lost", -1)
    assert compressed(EngineOptions(workers=1), tiny_bert, texts, tmp_path / "out", resume=True) == by_one
    assert not before & {task["name"] for task in ASKED}
    assert len(ASKED) + len(before) == 14


def test_a_worker_lost_just_behind_its_file_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "decompose_layer", lambda *_: pytest.fail("decomposed again"))
    (tmp_path / "parts").write_bytes(b"")
    assert layers.decompose_file(tmp_path, {}, "parts") == {}


# --- clusters that are not there ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "cloud"}, "--engine cloud: there are local, ray, slurm"),
        ({"address": "auto"}, "--address auto: is one of --engine ray or slurm; leave it out"),
        ({"engine": "local", "address": "auto"}, "--address auto: is one of --engine ray or slurm; leave it out"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        EngineOptions(**options)


@pytest.mark.parametrize("name", list(NAMES))
def test_an_engine_that_is_not_installed_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> Any:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UsageError, match=rf"--engine {name} needs {NAMES[name]}: pip install 'saten-edge\[{name}\]'"):
        ENGINES[name](tmp_path, 1, 1, None)


def test_without_slurm_it_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no sinfo or sbatch here"):
        ENGINES["slurm"](tmp_path, 1, 1, None)


@pytest.mark.parametrize(
    ("script", "words"),
    [("sleep 60", r"Slurm gave no answer within 0\.5 s"), ("echo 'no controller' >&2; exit 1", "no controller")],
)
def test_a_slurm_that_does_not_answer(script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("slurm")
    for name in ("sinfo", "sbatch"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("saten_edge.engines.slurm.ANSWER_S", 0.5)
    with pytest.raises(DeviceError, match=words):
        ENGINES["slurm"](tmp_path, 1, 1, None)


class FakeRay:
    """Ray as far as it is asked before there is a cluster."""

    def __init__(self, init: Callable[..., Any]) -> None:
        self.init = init

    def is_initialized(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (lambda *_, **__: time.sleep(60), r"^--address host:6379 gave no answer within 0\.2 s$"),
        (
            lambda *_, **__: exec("raise RuntimeError('Version mismatch: The cluster was started with: Ray: 2.9.0')"),
            r"Version mismatch: The cluster was started with: Ray: 2\.9\.0; install the cluster's versions here",
        ),
        (
            lambda *_, **__: exec("raise ConnectionError('Failed to connect')"),
            r"^--engine ray: no cluster at host:6379: Failed to connect$",
        ),
    ],
)
def test_a_ray_cluster_that_does_not_answer_or_does_not_fit_is_one_line(
    init: Callable[..., Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saten_edge.engines.ray.imported", lambda *_: FakeRay(init))
    monkeypatch.setattr("saten_edge.engines.ray.ANSWER_S", 0.2)
    with pytest.raises(DeviceError, match=words):
        ENGINES["ray"](tmp_path, 1, 1, "host:6379")


def test_the_words_of_a_mismatch_are_rays() -> None:
    """What the refusal looks for is what the installed Ray says."""
    need("ray")
    utils = importlib.import_module("ray._private.utils")
    with pytest.raises(RuntimeError, match="ersion mismatch"):
        utils.check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "here")


@pytest.mark.slow  # Ray takes seconds to give up
def test_a_port_that_says_nothing_is_no_ray_cluster(tmp_path: Path, home: None) -> None:
    need("ray")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code = (
            "import sys, pathlib; from saten_edge.engines import ENGINES; "
            "ENGINES['ray'](pathlib.Path(sys.argv[1]), 1, 1, sys.argv[2])"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), address], capture_output=True, text=True)
    assert done.returncode
    assert "DeviceError" in done.stderr.splitlines()[-1]
    assert address in done.stderr.splitlines()[-1]


@pytest.mark.slow  # starts a cluster
def test_a_worker_of_ray_that_is_killed_loses_nothing(
    by_one: bytes, tiny_bert: Path, texts: list[str], tmp_path: Path, home: None
) -> None:
    need("ray")
    psutil = importlib.import_module("psutil")
    killed = list[int]()

    def kill() -> None:
        """The first worker that has worked for a second, once."""
        while not killed:
            for process in psutil.process_iter(["pid", "cmdline"]):
                if "ray::answer" in " ".join(process.info["cmdline"] or ()):
                    os.kill(process.info["pid"], signal.SIGKILL)
                    killed.append(process.info["pid"])
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert compressed(EngineOptions("ray", workers=2), tiny_bert, texts, tmp_path / "out") == by_one
    assert killed


def test_nothing_of_a_cluster_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, saten_edge, saten_edge.engines; assert not {'ray', 'submitit', 'optuna'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_engine_is_for_the_method_that_decomposes(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--engine local: decomposes the layers of --method saten, this is flat"):
        saten_edge.compress(
            tiny_bert, tmp_path / "out", CompressOptions(method="flat"), engine=EngineOptions(workers=2)
        )


def test_a_refusal_of_a_layer_is_named_and_leaves_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(SatenError, match=r"^embeddings\.word_embeddings: "):
        saten_edge.compress(
            tiny_bert, tmp_path / "out", CompressOptions(budget=0.0005), engine=EngineOptions(workers=1)
        )
    assert not list(tmp_path.iterdir())
