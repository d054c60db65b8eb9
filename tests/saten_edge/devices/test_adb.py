"""`adb:SERIAL` with a stand-in `adb`, with Debian's real one and no phone, and what a phone without Python gets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from saten_edge.devices.android import write_android
from saten_edge.devices.board import Board
from saten_edge.devices.jobs import bench_job, run_job
from saten_edge.devices.transports import parse_devices
from saten_runtime.bench.plan import Plan
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError, DeviceError, ParityError, UsageError
from saten_runtime.records.folders import MARK

# `adb -s SERIAL shell -T -x LINE`: the line goes to a shell "there", with the phone's PATH and no home.
ADB = """#!{python}
import os, sys
open({log!r}, "a").write(repr(sys.argv[1:]) + "\\n")
_, serial, shell, *options, line = sys.argv[1:]
if serial != "PHONE1":
    sys.exit(f"error: device '{{serial}}' not found")
os.environ.update(PATH={path!r}, HOME="/nowhere")
os.execv("/bin/sh", ["sh", "-c", line.replace("/data/local/tmp", {tmp!r})])
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """phone(python=True): put a stand-in `adb` first in PATH; the log of its calls."""

    def plug(*, python: bool) -> Path:
        there, here = tmp_path / "phone", tmp_path / "here"
        for folder in (there, here, tmp_path / "data"):
            folder.mkdir()
        if python:
            (there / "python3").symlink_to(sys.executable)
        settings = {
            "python": sys.executable,
            "log": str(tmp_path / "log"),
            "path": str(there),
            "tmp": str(tmp_path / "data"),
        }
        (here / "adb").write_text(ADB.format(**settings))
        (here / "adb").chmod(0o700)
        monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "log"

    return plug


def test_a_phone_with_python_is_a_board(phone, runtime, bundle, talk, tmp_path):
    log = phone(python=True)
    (device,) = parse_devices(["adb:PHONE1"])
    result = run_job(device, bench_job([bundle], Plan(tokens=(8,), rounds=1), None), folder=None, talk=talk)
    assert result["device"] == {"label": "adb-PHONE1", "url": "adb:PHONE1"}
    calls = [line for line in log.read_text().splitlines() if line]
    assert len(calls) == 1
    assert calls[0].startswith("['-s', 'PHONE1', 'shell', '-T', '-x', ")
    assert (tmp_path / "data/saten-edge/.cache/saten-edge/board/bundles").is_dir()


def test_a_phone_as_it_comes_is_told_of_another_way(phone):
    phone(python=False)
    (device,) = parse_devices(["adb:PHONE1"])
    with pytest.raises(DeviceError, match="has no python3, as Android comes; run `saten-edge devices android BUNDLE"):
        Board(device, "token")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", "allow USB debugging"),
        ("error: device offline", "replug it"),
        ("error: device 'X' not found", "not among `adb devices`"),
        ("error: closed", r"cannot be reached \(exit code 1: error: closed\)"),
    ],
)
def test_what_adb_says_is_explained(words, advice):
    import re

    (device,) = parse_devices(["adb:PHONE1"])
    assert re.search(advice, device.explain(1, words))


def test_without_adb(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (device,) = parse_devices(["adb:PHONE1"])
    with pytest.raises(DeviceError, match="apt install adb"):
        Board(device, "token")


@pytest.mark.skipif(shutil.which("adb") is None, reason="adb is not installed (apt install adb)")
def test_the_real_adb_without_a_phone_is_one_clear_line(tmp_path):
    # A server of its own, ended here, so that none that somebody uses is touched.
    environment = {**os.environ, "ANDROID_ADB_SERVER_PORT": "5999", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "saten_edge", "devices", "doctor", "adb:NOPHONE", "--quiet"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    finally:
        subprocess.run(["adb", "kill-server"], env=environment, capture_output=True, timeout=20)
    assert done.returncode == 2
    expected = "saten-edge: error: adb-NOPHONE: cannot be reached (error: device 'NOPHONE' not found): it is not among "
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


class TestFilesForAndroid:
    @pytest.fixture(scope="class")
    @staticmethod
    def exported(tiny_saten: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        import saten_edge

        out = tmp_path_factory.mktemp("bundles") / "tiny"
        saten_edge.export(tiny_saten, out, saten_edge.ExportOptions("int8"))
        return out

    @pytest.fixture(scope="class")
    @staticmethod
    def files(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("android") / "out"
        write_android(Bundle.open(exported), out)
        return out

    def test_everything_that_the_readme_speaks_of_is_there(self, files):
        names = {path.name for path in files.iterdir()}
        config = "required_operators_and_types.config"
        assert names == {"model.ort", config, "tokenizer.json", "test_data_set_0", "README.md", MARK}
        readme = (files / "README.md").read_text()
        assert "$" not in readme
        for name in names - {"README.md", MARK}:
            assert name in readme

    def test_the_graph_computes_the_same(self, files, exported):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(files / "model.ort"))
        arrays = [onnx.load_tensor(path) for path in sorted((files / "test_data_set_0").iterdir())]
        feeds = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in arrays}
        (expected,) = onnxruntime.InferenceSession(str(exported / "model.onnx")).run(None, feeds)
        assert np.array_equal(session.run(None, feeds)[0], expected)

    def test_the_operators_are_those_of_the_graph(self, files):
        text = (files / "required_operators_and_types.config").read_text()
        assert "ai.onnx;" in text
        assert "saten" not in [line.partition(";")[0] for line in text.splitlines()]

    def test_an_output_that_exists(self, files, exported):
        with pytest.raises(UsageError, match="already exists"):
            write_android(Bundle.open(exported), files)

    def test_a_graph_that_cannot_be_converted(self, bundle, tmp_path):
        with pytest.raises(BundleError, match=r"cannot be converted to model\.ort"):
            write_android(Bundle.open(bundle), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_another_answer_is_refused(self, exported, tmp_path, monkeypatch):
        from saten_edge.devices import android

        monkeypatch.setattr(android.np, "array_equal", lambda one, other: False)
        with pytest.raises(ParityError, match=r"model\.ort gives another"):
            write_android(Bundle.open(exported), tmp_path / "out")
        assert json.loads((exported / "saten_edge.json").read_text())["name"] == "tiny"
        assert not (tmp_path / "out").exists()
