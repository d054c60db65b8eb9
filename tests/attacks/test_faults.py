"""The n-th write, fsync, rename or read fails, n = 1, 2, 3 … until none is left: the old is there, or the new."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.operations import FIRST, OPERATIONS, State
from faults.server import Outcome

HERE = Path(__file__).parent
KILLED = 0
FAULTS = {"no space": errno.ENOSPC, "damaged disk": errno.EIO, "killed": KILLED}
KINDS = ("write", "fsync", "rename", "read")
MOST = 400  # calls of one kind that an operation makes
# What it reads is read before.
UNMET = (("report", "read"),)
# A fault that a command line turns into one line with exit code 2.
EXPECTED = ("SatenError", "OSError", "killed")

Ask = Callable[..., Outcome]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: faults cannot be made")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-w", "-o", library, HERE / "faults" / "shim.c", "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="session")
def work() -> Iterator[Path]:
    """In memory where there is such a place: thousands of times everything is synced."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name) / "work"


@pytest.fixture(scope="session")
def ask(shim: Path, sound: dict[str, Path], work: Path) -> Iterator[Ask]:
    """ask(operation, kind, n, errno) -> what came of it."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    shutil.copytree(sound["bundle"], work / "bundle")
    inputs = {**{name: str(path) for name, path in sound.items()}, "bundle": str(work / "bundle")}
    command = [sys.executable, "-m", "faults.server", json.dumps(inputs), str(work)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as server:

        def one(operation: str, kind: str, nth: int, error: int, place: str = str(work)) -> Outcome:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps({"operation": operation, "fault": [kind, nth, error], "work": place}) + "\n")
            server.stdin.flush()
            return Outcome(**json.loads(server.stdout.readline()))

        yield one
        server.stdin.close()


@pytest.fixture
def state(work: Path) -> Iterator[State]:
    yield State(work, None, None, None, None, work / "bundle")
    for path in work.iterdir():
        if path.name != "bundle":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def leftovers(work: Path) -> list[str]:
    return sorted(path.name for path in work.iterdir() if path.name not in ("bundle", "out", FIRST))


def some() -> Iterator[int]:
    """1, 2, … 8, then every fourth part further: what `make test` has time for."""
    nth = 1
    while nth < MOST:
        yield nth
        nth += max(1, nth // 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_old_or_new_at_some_calls(name: str, kind: str, ask: Ask, state: State) -> None:
    fault = list(FAULTS)[(list(OPERATIONS).index(name) + KINDS.index(kind)) % len(FAULTS)]
    _old_or_new(name, kind, fault, ask, state, some())


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_old_or_new_at_every_call(name: str, kind: str, fault: str, ask: Ask, state: State) -> None:
    _old_or_new(name, kind, fault, ask, state, iter(range(1, MOST)))


def _old_or_new(name: str, kind: str, fault: str, ask: Ask, state: State, places: Iterator[int]) -> None:
    operation = OPERATIONS[name]
    if name == "report":
        state.out.write_text("old")
    else:
        assert ask(name, "none", 0, 0).ended == "done"
    met = 0
    for nth in places:
        if operation.anew:
            shutil.rmtree(state.work / operation.anew, ignore_errors=True)
        outcome = ask(name, kind, nth, FAULTS[fault])
        if outcome.ended != "done":
            assert outcome.ended in EXPECTED, outcome.words
        operation.check(state)
        if fault != "killed":
            assert leftovers(state.work) in ([], [operation.keeps])
        if not outcome.fired:
            break
        met += 1
        if operation.keeps:
            assert ask(name, "none", 0, 0).ended == "done"
            operation.check(state)
    assert outcome.ended == "done"
    assert bool(met) != ((name, kind) in UNMET)
    assert leftovers(state.work) == []  # swept by the one that succeeded
    operation.check(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_disk_of_one_megabyte(name: str, ask: Ask, state: State, work: Path) -> None:
    """The same on a file system that is really full: with the first bytes, and with ever more room."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system of one megabyte")
    for room in (4, 64, 256, 1024):
        disk = work / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            disk.rmdir()
            pytest.skip("no file system can be mounted here")
        try:
            outcome = ask(name, "none", 0, 0, str(disk))
            assert outcome.ended in ("done", *EXPECTED), outcome.words
            assert {path.name for path in disk.iterdir()} <= {"out", OPERATIONS[name].keeps}
            if (disk / "out").exists():
                OPERATIONS[name].check(State(disk, None, None, None, None, work / "bundle"))
        finally:
            subprocess.run(["umount", str(disk)], check=True)
            disk.rmdir()
