"""A board on this machine: the real agent, in a folder of its own, with a runtime that only pretends to measure."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from saten_edge.devices import deploy, wheels
from saten_edge.devices.channel import Channel
from saten_runtime.bundle.manifest import FileEntry, Manifest, Postprocess, Tokenizer

BENCH = {
    "schema_version": 1,
    "environment": {"cpu": "Cortex-A76", "machine": "aarch64"},
    "verdict": {"valid": True, "reasons": []},
    "cells": [
        {"bundle": "tiny", "threads": 1, "batch": 1, "tokens": 8, "memory_mode": "fast", "count": 10}
        | {"p50_ms": 2.5, "p90_ms": 2.6, "p99_ms": 2.7, "mean_ms": 2.5}
    ],
    "loads": [],
}
EVALUATION = {
    "schema_version": 1,
    "task": "search",
    "data": {"file": "data.jsonl", "sha256": "0", "count": 4},
    "rows": [{"bundle": "tiny", "metrics": {"recall_at_1": 0.5}, "seconds": 1.0}],
}
FACTS = {
    **{"machine": "aarch64", "cpu": "Cortex-A76", "board": "Raspberry Pi 5", "cores": 4, "cpu_flags": ["asimd"]},
    **{"emulator": None, "packages": {"onnxruntime": "1.31.1"}},
    "kernels": {"state": "not installed", "version": None, "isa": None, "fault": ""},
}
VALID = {"valid": True, "reasons": []}
CHECKS = [{"name": "cpu", "status": "WARN", "found": "Cortex-A72", "advice": "measure both"}]

# What `python -m saten_runtime` does on the stand-in board: `behaviour` is put in front.
RUNTIME = """
import json, os, pathlib, signal, sys, time, zipfile
if sys.argv[1] == "doctor":
    print(json.dumps(checks))
    sys.exit(0)
if "--help" in sys.argv:
    print(usage)
    sys.exit(0)
if sys.argv[1] == "device":
    print(json.dumps(facts))
    sys.exit(0)
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
if sys.argv[1] == "calibrate":
    with zipfile.ZipFile(sys.argv[2]) as archive:
        listed = json.loads(archive.read("probes.json"))
    times = [
        {"probe": probe["name"], "rows": rows, "count": 20, "p50_ns": 2000 + 10 * rows}
        for probe in listed["probes"] for rows in listed["rows"]
        if probe["name"] != "idle" and not probe["native"]
    ]
    result = {"schema_version": 1, "probes": "0", "environment": facts, "verdict": verdict, "idle_ns": 1000}
    (out / "calibrate.json").write_text(json.dumps({**result, "times": times}))
    sys.exit(0)
if sys.argv[1] == "eval":
    (out / "eval.json").write_text(json.dumps(evaluation))
    sys.exit(0)
def stop(*_):
    (out / "bench.json").write_text(json.dumps({**bench, "verdict": {"valid": False, "reasons": ["interrupted"]}}))
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
done = (out / "samples.jsonl").read_text().count("\\n") if "--resume" in sys.argv else 0
with (out / "samples.jsonl").open("a" if done else "w") as journal:
    for step in range(done, steps):
        journal.write(json.dumps({"kind": "samples", "step": step}) + "\\n")
        journal.flush()
        at_step(step)
(out / "bench.json").write_text(json.dumps(bench))
sys.exit(0 if bench["verdict"]["valid"] else 4)
"""


@dataclass
class Stand:
    """A stand-in board at `root`; see `Device`. commands: every command that was started."""

    root: Path
    label: str = "stand"
    ready: bool = False
    commands: list[list[str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"stand:{self.label}"

    @property
    def folder(self) -> str:
        return str(self.root)

    def command(self, bootstrap: str) -> list[str]:
        self.commands.append(["sh", "-c", bootstrap.replace("python3", '"$0"', 1), sys.executable])
        return self.commands[-1]

    def explain(self, returncode: int | None, last_words: str) -> str:
        return f"ended with {returncode}: {last_words}"


def cut_power(stand: Stand) -> None:
    """Everything on the board ends at once: the agent, the supervisor, the run. All have the lock open."""
    lock = str(stand.root / "lock")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(handle) == lock for handle in (folder / "fd").iterdir()):
                os.kill(int(folder.name), signal.SIGKILL)


@pytest.fixture
def power_cut() -> Callable[[Stand], None]:
    """power_cut(stand) ends everything that runs there."""
    return cut_power


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path / "board")
    yield stand
    cut_power(stand)  # what a test left running


@pytest.fixture
def channels(monkeypatch: pytest.MonkeyPatch) -> list[Channel]:
    """Every channel that is opened from now on."""
    found: list[Channel] = []
    open_channel = Channel.__init__

    def opened(self: Channel, *given: Any, **options: Any) -> None:
        open_channel(self, *given, **options)
        found.append(self)

    monkeypatch.setattr(Channel, "__init__", opened)
    return found


@pytest.fixture
def cut(channels: list[Channel]) -> Callable[[], None]:
    """cut() ends the newest connection as a broken cable would."""

    def kill_newest() -> None:
        channels[-1]._process.kill()

    return kill_newest


@pytest.fixture
def make_stand(tmp_path: Path) -> Callable[[str], Stand]:
    """make_stand(label) -> one more board."""
    return lambda label: Stand(tmp_path / label, label)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """runtime(name=value…): what the pretended `saten-run` on the board does from now on."""

    monkeypatch.setattr(wheels, "wheel_cache", lambda: tmp_path / "cache")  # no wheel of this user's is sent

    def use(at_step: str = "def at_step(step): pass", **values: Any) -> None:
        given = {"bench": BENCH, "evaluation": EVALUATION, "checks": CHECKS, "steps": 3, "usage": "", "facts": FACTS}
        given |= {"verdict": VALID, **values}
        settings = "".join(f"{name} = {value!r}\n" for name, value in given.items())
        wheel = tmp_path / "saten_runtime-0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("saten_runtime/__init__.py", "")
            archive.writestr("saten_runtime/__main__.py", f"import os, time\n{settings}{at_step}\n{RUNTIME}")
        monkeypatch.setattr(deploy, "fetch_wheels", lambda hello: [wheel])

    use()
    return use


def useless_graph() -> bytes:
    """A sound ONNX file of the manifest's versions, with an operator that nobody has."""
    node = ir.Node("", "NoSuchOperator", [])
    graph = ir.Graph([], node.outputs, nodes=[node], name="nothing", opset_imports={"": 20})
    return ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder that is a bundle by its manifest; nothing could run it."""
    folder = tmp_path / "tiny"
    contents = {
        "model.onnx": useless_graph(),
        "model.onnx.data": bytes(range(256)) * 12_000,
        "odd $(touch pwned) 'n\name": b"x",
    }
    for name, content in contents.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    files = {name: FileEntry(len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()}
    manifest = Manifest(
        schema_version=1,
        made_by={"saten-edge": "0.1.0"},
        name="tiny",
        source={"model": "tiny"},
        task="feature-extraction",
        precision="fp32",
        opset=20,
        ir_version=10,
        smallest_onnxruntime="1.23",
        inputs=["input_ids"],
        outputs=["last_hidden_state"],
        tokenizer=Tokenizer("tokenizer.json", 0, 48),
        postprocess=Postprocess("mean", True),
        tolerance={},
        files=files,
    )
    (folder / "saten_edge.json").write_text(json.dumps(manifest.to_json()))
    return folder
