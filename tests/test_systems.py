"""What is known of Windows and macOS without one: the modules and files that Linux alone has are taken away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Runner
from saten_runtime.errors import UsageError
from saten_runtime.records import system
from saten_runtime.records.jsonl import LineWriter

# Ours alone are kept from it: libraries have a way of their own for each system, which is not what is tested here.
ELSEWHERE = """
import builtins, io, os, pathlib, signal, subprocess, sys, types
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda *_: None)  # subprocess has looked already
MODULES = {"fcntl", "resource", "pwd", "grp", "termios"}
_import, _open, _os_open, _exists = builtins.__import__, io.open, os.open, pathlib.Path.exists
def ours(name): return str(name).partition(".")[0] in ("saten_runtime", "saten_edge", "saten_exporters")
def guarded(name, globals=None, *rest, **more):
    if name in MODULES and ours((globals or {}).get("__name__", "")):
        raise ModuleNotFoundError(name + " is not of this system")
    return _import(name, globals, *rest, **more)
def hidden(path): return str(path).startswith(("/proc", "/sys"))
def read_text(self, *rest, _read=pathlib.Path.read_text, **more):
    if hidden(self): raise FileNotFoundError(str(self))
    return _read(self, *rest, **more)
def read_bytes(self, _read=pathlib.Path.read_bytes):
    if hidden(self): raise FileNotFoundError(str(self))
    return _read(self)
builtins.__import__ = guarded
pathlib.Path.read_text, pathlib.Path.read_bytes = read_text, read_bytes
pathlib.Path.exists = lambda self, **more: not hidden(self) and _exists(self, **more)
for name in ("O_NOFOLLOW", "O_NONBLOCK", "getuid", "geteuid", "killpg"): delattr(os, name)
for name in ("SIGALRM", "setitimer"): delattr(signal, name)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which every Python process is on such a system."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "sitecustomize.py").write_text(ELSEWHERE)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder), "USERNAME": "w", "HF_HUB_OFFLINE": "1"}


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_what_is_taken_away_is_missed(elsewhere: dict[str, str]) -> None:
    code = "__name__ = 'saten_runtime.x'\nimport {}"
    for name in ("fcntl", "resource"):
        assert "is not of this system" in run(elsewhere, "-c", code.format(name)).stderr
    assert "FileNotFoundError" in run(elsewhere, "-c", "import pathlib; pathlib.Path('/proc/stat').read_text()").stderr


@pytest.mark.parametrize("package", ["saten_runtime", "saten_edge"])
def test_every_module_imports(package: str, elsewhere: dict[str, str]) -> None:
    code = (
        f"import importlib, pkgutil, {package} as package\n"
        f"names = [each.name for each in pkgutil.walk_packages(package.__path__, '{package}.')]\n"
        "names = [name for name in names if not name.endswith(('__main__', '.phone', '.sentence_transformers'))]\n"
        "[importlib.import_module(name) for name in names]\nprint(len(names))"
    )
    done = run(elsewhere, "-c", code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


def test_the_runtime_runs_there(elsewhere: dict[str, str], tiny_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tiny_bundle("dense-fp32")
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"query": f"gar {k}", "answer": f"bel {k}"}) + "\n" for k in range(8))
    )
    options = ("-s", "8", "--min-time", "0.01", "--rounds", "2", "--no-floor", "--json", "-o", tmp_path / "bench")
    benched = run(elsewhere, "-m", "saten_runtime", "bench", bundle, *options)
    found = json.loads(benched.stdout)
    assert found["cells"][0]["p50_ms"] > 0
    assert found["loads"][0]["memory"]["peak"]["rss_anon_bytes"] > 10e6  # through psutil
    for arguments in (("predict", bundle, "gar"), ("eval", bundle, "--data", tmp_path / "data.jsonl", "--json")):
        there = run(elsewhere, "-m", "saten_runtime", *arguments)
        assert there.returncode == 0, there.stderr
    predicted = json.loads(run(elsewhere, "-m", "saten_runtime", "predict", bundle, "gar").stdout)
    np.testing.assert_array_equal(np.float32(predicted["embedding"]), Runner.load(bundle).predict(["gar"])[0])


@pytest.mark.slow
def test_compress_and_export_run_there(elsewhere: dict[str, str], tiny_bert: Path, tmp_path: Path) -> None:
    done = run(elsewhere, "-m", "saten_edge", "compress", tiny_bert, "-o", tmp_path / "small", "--quiet")
    assert done.returncode == 0, done.stderr
    done = run(elsewhere, "-m", "saten_edge", "export", tmp_path / "small", "-o", tmp_path / "bundle", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bundle" / "saten_edge.json").is_file()


def test_a_file_is_locked_as_windows_locks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: set[tuple[int, int]] = set()

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(handle: int, mode: int, size: int) -> None:
            place = (os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR))
            assert (mode, size) == (2, 1)
            assert place[1] > 2**32  # nothing that anybody reads
            if place in held:
                raise PermissionError(13, "Permission denied")
            held.add(place)

    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    with LineWriter(tmp_path / "a.jsonl") as writer:
        writer.write({"a": 1})
        with pytest.raises(UsageError, match="another run is writing it"):
            LineWriter(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"a": 1}\n'


def test_a_link_is_refused_where_the_system_would_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saten_runtime.errors import BundleError
    from saten_runtime.records.files import open_regular

    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    monkeypatch.delattr(os, "O_NOFOLLOW")
    monkeypatch.setattr("saten_runtime.records.files.NO_LINK", 0)
    open_regular(tmp_path / "file", BundleError).close()
    with pytest.raises(BundleError, match="a link"):
        open_regular(tmp_path / "link", BundleError)


def test_a_dead_process_is_known_without_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()

    def no_signal(*_: Any) -> None:
        raise AssertionError("on Windows this would be Ctrl-C")

    assert [system.is_dead(os.getpid()), system.is_dead(done.pid)] == [False, True]
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(os, "kill", no_signal)
    monkeypatch.setattr("psutil.pid_exists", lambda process: process != done.pid)  # it asks Linux by a signal
    assert [system.is_dead(os.getpid()), system.is_dead(done.pid)] == [False, True]
