"""Finding the native library, without one: what is not there, and what only pretends to be."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from saten_runtime.doctor import examine
from saten_runtime.records.system import user_cache
from saten_runtime.run import kernels
from saten_runtime.run.kernels import SWITCH, Kernels, probe, register
from saten_runtime.run.runner import Runner


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library of an installed package, not yet written."""
    package = tmp_path / "site" / "saten_kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nothing of it is imported')\n")
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    kernels._say.cache_clear()
    return package / "libsaten_kernels.so"


def elf(machine: int) -> bytes:
    return b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + bytes(100)


OWN = {"x86_64": 62, "aarch64": 183}.get(platform.machine(), 0)
OTHER = {"x86_64": 183, "aarch64": 62}.get(platform.machine(), 62)

FAULTS = {
    "missing": (None, "cannot be read (No such file or directory)"),
    "empty": (b"", "is no library of this system"),
    "a script": (b"#!/bin/sh\n" * 10, "is no library of this system"),
    "for another machine": (elf(OTHER), f"this is {platform.machine()}"),
    "a head without a body": (elf(OWN), "Failed to load library"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_one_line_and_said_once(case: str, fake: Path, caplog: pytest.LogCaptureFixture) -> None:
    content, words = FAULTS[case]
    if content is not None:
        fake.write_bytes(content)
    options = onnxruntime.SessionOptions()
    with caplog.at_level(logging.WARNING, "saten_runtime"):
        found = [register(options) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].state == "unusable"
    assert words in found[0].fault
    assert str(fake) in found[0].fault
    (line,) = caplog.messages
    assert line == f"native kernels: {found[0].fault}; the function bodies run instead"
    assert "\n" not in line
    assert "ONNXRuntimeError" not in line


def test_the_switch_comes_before_everything(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.write_bytes(b"")
    monkeypatch.setenv(SWITCH, "0")
    assert register(onnxruntime.SessionOptions()) == Kernels("off")


def test_not_installed_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert register(onnxruntime.SessionOptions()) == Kernels("not installed")
    assert caplog.messages == []


def test_the_current_folder_is_no_place_to_look(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.write_bytes(b"")
    monkeypatch.chdir(fake.parents[2])
    for here in ("", ".", str(fake.parents[2])):
        monkeypatch.setattr(sys, "path", [here])
        assert register(onnxruntime.SessionOptions()) == Kernels("not installed")


def test_what_kills_the_process_is_reported_not_suffered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kernels, "python_command", lambda code: [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), 4)"]
    )
    found = probe()
    assert found.state == "unusable"
    assert "SIGILL" in found.fault


CRASHES = """
#include <signal.h>
__attribute__((constructor)) static void crash(void) { if (getenv("CRASH")) raise(SIGILL); }
"""


@pytest.fixture
def crashing(fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of this machine that ends whoever loads it by SIGILL, as one for a newer processor does."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source = tmp_path / "crash.c"
    source.write_text("#include <stdlib.h>" + CRASHES)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(fake), str(source)], check=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CRASH", "1")
    kernels._probe_once.cache_clear()
    return fake


def test_a_library_that_crashes_at_load_is_named_and_the_bodies_run(
    crashing: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "saten_runtime"):
        assert len(Runner.load(tiny).predict(["w1 w2"])) == 1
    (line,) = caplog.messages
    assert line.startswith(f"native kernels: {crashing}: killed by SIGILL (this processor lacks an instruction")
    assert line.endswith("; the function bodies run instead")


def test_the_crash_is_one(crashing: Path) -> None:
    """The twin: in the process itself the library would have ended everything."""
    done = subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(crashing)!r})"])
    assert done.returncode == -signal.SIGILL


def test_what_was_loaded_once_is_not_tried_again(
    crashing: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Kernels("active", "1.2", "neon")
    answer = f"print({json.dumps(json.dumps(vars(found)))})"
    monkeypatch.setattr(kernels, "python_command", lambda code: [sys.executable, "-c", answer])
    assert kernels._tried(crashing) == found
    assert kernels._tried(crashing) is None
    crashing.write_bytes(crashing.read_bytes() + b"another")  # another build is another library
    assert kernels._tried(crashing) == found


def test_without_a_home_it_is_tried_every_time(crashing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(FileNotFoundError, match="set XDG_CACHE_HOME"):
        user_cache("kernels")
    assert register(onnxruntime.SessionOptions()).fault.startswith(f"{crashing}: killed by SIGILL")


def homeless() -> Path:
    """As `Path.home` ends for a user whom the system does not know, with no HOME."""
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        (Kernels("active", "1.2", "neon"), "OK", "1.2, neon"),
        (Kernels("not installed"), "OK", "not installed"),
        (Kernels("off"), "WARN", "off"),
        (Kernels("unusable", fault="torn"), "WARN", "torn"),
    ],
)
def test_doctor_says_it(found: Kernels, status: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saten_runtime.doctor.probe", lambda: found)
    (check,) = [check for check in examine() if check.name == "kernels"]
    assert (check.status, check.found) == (status, words)
    assert bool(check.advice) == (status == "WARN")
