"""Wheels for another machine: the right tags, pip asked the right way, and a runtime packed from its sources."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag, cpython_tags
from packaging.utils import parse_wheel_filename

import saten_runtime
from saten_edge.devices import wheels
from saten_edge.devices.board import Hello
from saten_runtime.errors import DeviceError

PI = Hello((3, 11), "aarch64", 64, (2, 36), "CPython")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands pip was called with; it finds one wheel each time."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / "numpy-2-py3-none-any.whl").write_bytes(b"wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return commands


def test_tags_are_those_a_board_can_load():
    tags = wheels.wheel_tags(PI)
    assert tags[0] == "manylinux_2_36_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(tags)
    assert "manylinux_2_37_aarch64" not in tags
    assert "manylinux_2_28_aarch64" not in wheels.wheel_tags(dataclasses.replace(PI, glibc=(2, 27)))


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_aarch64.whl", True),
        ("tokenizers-0.23.3-cp310-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", True),
        ("onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("numpy-2.4.6-cp311-cp311-musllinux_1_2_aarch64.whl", False),
        ("new-1.0-cp311-cp311-manylinux_2_39_aarch64.whl", False),
    ],
)
def test_real_file_names(name: str, fits: bool):
    offered: frozenset[Tag] = parse_wheel_filename(name)[3]
    assert bool(offered & set(cpython_tags((3, 11), platforms=wheels.wheel_tags(PI)))) is fits


class TestDownload:
    def test_what_pip_is_asked_for(self, asked):
        found = wheels.fetch_wheels(PI)
        (command,) = asked
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--only-binary=:all:" in command
        assert command[command.index("--python-version") + 1] == "3.11"
        platforms = [command[place + 1] for place, word in enumerate(command) if word == "--platform"]
        assert platforms == wheels.wheel_tags(PI)
        declared = [Requirement(word) for word in importlib.metadata.requires("saten-runtime") or []]
        wanted = {requirement.name for requirement in declared if "extra" not in str(requirement.marker)}
        assert wanted == {"numpy", "onnxruntime", "tokenizers", "psutil"}
        assert wanted == {Requirement(word).name for word in command[-4:]}
        assert [path.name for path in found] == ["numpy-2-py3-none-any.whl", wheels.runtime_wheel(found[1].parent).name]

    def test_it_is_asked_once_for_one_kind_of_board(self, asked):
        wheels.fetch_wheels(PI)
        wheels.fetch_wheels(PI)
        assert len(asked) == 1
        wheels.fetch_wheels(dataclasses.replace(PI, python=(3, 12)))
        assert len(asked) == 2

    def test_what_failed_leaves_nothing(self, monkeypatch, tmp_path):
        words = (
            "WARNING: x\nERROR: Could not find a version that satisfies the requirement onnxruntime\nERROR: No match\n"
        )
        done = subprocess.CompletedProcess([], 1, "", words)
        monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: done)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.raises(
            DeviceError, match=r"^pip download for Python 3\.11 on aarch64: Could not find a version"
        ) as caught:
            wheels.fetch_wheels(PI)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_pip_that_hangs(self, monkeypatch, tmp_path):
        def hang(*_: Any, **__: Any) -> None:
            raise subprocess.TimeoutExpired("pip", 1)

        monkeypatch.setattr(wheels.subprocess, "run", hang)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.raises(DeviceError, match="no end after 1200 s"):
            wheels.fetch_wheels(PI)


class TestRuntimeWheel:
    def test_equal_sources_give_equal_bytes(self, tmp_path):
        first, second = wheels.runtime_wheel(tmp_path / "a"), wheels.runtime_wheel(tmp_path / "b")
        assert first.read_bytes() == second.read_bytes()

    def test_it_holds_every_module_of_the_runtime(self, tmp_path):
        package = Path(saten_runtime.__file__).parent
        with zipfile.ZipFile(wheels.runtime_wheel(tmp_path)) as archive:
            names = set(archive.namelist())
            assert archive.read("saten_runtime/bench/measure.py") == (package / "bench/measure.py").read_bytes()
        assert {f"saten_runtime/{path.relative_to(package)}" for path in package.rglob("*.py")} <= names

    def test_it_runs_from_where_it_was_unpacked(self, tmp_path):
        with zipfile.ZipFile(wheels.runtime_wheel(tmp_path)) as archive:
            archive.extractall(tmp_path / "site")
        code = (
            "import importlib.metadata as m, saten_runtime; print(saten_runtime.__file__, m.version('saten-runtime'))"
        )
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [f"{tmp_path}/site/saten_runtime/__init__.py", saten_runtime.__version__]

    def test_pip_takes_it_for_a_wheel(self, tmp_path):
        wheel = wheels.runtime_wheel(tmp_path)
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(tmp_path / "t"),
        ]
        done = subprocess.run([*command, str(wheel)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
