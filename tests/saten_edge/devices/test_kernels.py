"""The native kernels go to the board: the wheel that fits is found, sent, left out, or said to be missing."""

from __future__ import annotations

import dataclasses
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from saten_edge.devices import transports
from saten_edge.devices.board import Hello
from saten_edge.devices.kernels import Shipment, find_kernels
from saten_runtime.errors import DeviceError, UsageError

PI = Hello((3, 11), "aarch64", 64, (2, 36), "CPython")
HERE = platform.machine()

MakeWheel = Callable[..., Path]


@pytest.fixture
def make_wheel(tmp_path: Path) -> MakeWheel:
    """make_wheel(tag, folder) -> a wheel with an importable `saten_kernels`."""

    def make(tag: str, folder: str = "dist") -> Path:
        path = tmp_path / folder / f"saten_kernels-0.1.0-py3-none-{tag}.whl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("saten_kernels/__init__.py", "")
        return path

    return make


class TestFind:
    @pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
    def test_the_one_of_the_boards_machine(self, machine, make_wheel):
        both = {name: make_wheel(f"manylinux2014_{name}.manylinux_2_17_{name}") for name in ("aarch64", "x86_64")}
        hello = dataclasses.replace(PI, machine=machine)
        assert find_kernels(hello, Shipment(both[machine].parent)) == ([both[machine]], "")

    def test_the_cache_is_where_it_looks_by_itself(self, make_wheel, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        folder = tmp_path / "saten-edge/wheels"
        assert find_kernels(PI, Shipment()) == (
            [],
            "no native kernels for aarch64 with glibc 2.36: found no wheel of saten_kernels-0.1.0 in "
            f"{folder}; the function bodies run instead; `make wheels` builds one, --wheels DIR names its folder",
        )
        other = make_wheel("manylinux_2_17_x86_64", "saten-edge/wheels")
        wheels, lack = find_kernels(PI, Shipment())
        assert (wheels, other.name in lack) == ([], True)
        wheel = make_wheel("manylinux_2_17_aarch64", "saten-edge/wheels")
        assert find_kernels(PI, Shipment()) == ([wheel], "")

    @pytest.mark.parametrize(
        "tag", ["manylinux_2_17_x86_64", "manylinux_2_39_aarch64", "linux_aarch64", "macosx_11_0_arm64"]
    )
    def test_a_wheel_that_does_not_fit_is_refused_by_name(self, tag, make_wheel):
        wheel = make_wheel(tag)
        with pytest.raises(DeviceError) as caught:
            find_kernels(PI, Shipment(wheel.parent))
        assert str(caught.value).startswith(
            f"--wheels {wheel.parent}: found {wheel.name}, expected one for aarch64 with glibc 2.36; "
        )

    def test_another_version_is_none(self, make_wheel):
        wheel = make_wheel("manylinux_2_17_aarch64")
        wheel.rename(wheel.with_name(wheel.name.replace("0.1.0", "0.2.0")))
        wheels, lack = find_kernels(PI, Shipment(wheel.parent))
        assert (wheels, f"no wheel of saten_kernels-0.1.0 in {wheel.parent}" in lack) == ([], True)

    def test_left_out(self, make_wheel, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        make_wheel("manylinux_2_17_aarch64", "saten-edge/wheels")
        assert find_kernels(PI, Shipment(kernels=False)) == ([], "")


class TestCommands:
    @pytest.fixture(autouse=True)
    def stands(self, make_stand, runtime, monkeypatch) -> None:
        """`stand:LABEL` is a board whose doctor says whether it has the kernels."""
        monkeypatch.setitem(transports.TRANSPORTS, "stand", lambda url: make_stand(url.partition(":")[2]))
        runtime(
            "import importlib.util\n"
            "has = importlib.util.find_spec('saten_kernels') is not None\n"
            "checks = [{'name': 'kernels', 'status': 'OK', 'found': f'kernels: {has}', 'advice': ''}]\n"
            "def at_step(step): pass"
        )

    def doctor(self, run, *options: object) -> tuple[str, str]:
        code, printed, shown = run("devices", "doctor", "stand:a", *options)
        assert code == 0
        return printed, " ".join(shown.split())

    def test_they_are_sent(self, run, make_wheel):
        wheel = make_wheel(f"manylinux_2_17_{HERE}")
        printed, shown = self.doctor(run, "--wheels", wheel.parent)
        assert "kernels: True" in printed
        assert "no native kernels" not in shown

    def test_what_is_there_already_does_not_stay_in_use(self, run, make_wheel):
        wheel = make_wheel(f"manylinux_2_17_{HERE}")
        assert "kernels: True" in self.doctor(run, "--wheels", wheel.parent)[0]
        printed, shown = self.doctor(run, "--no-kernels")
        assert "kernels: False" in printed
        assert "no native kernels" not in shown

    def test_without_a_wheel_one_line_says_so_and_the_run_goes_on(self, run, bundle, tmp_path):
        code, printed, shown = run("bench", bundle, "--device", "stand:a")
        assert (code, "a: VALID" in printed) == (0, True)
        assert " ".join(shown.split()).count("a: no native kernels for ") == 1
        assert str(tmp_path / "cache") in shown.replace("\n", "")

    def test_a_wheel_of_the_wrong_machine_is_one_line(self, run, bundle, make_wheel):
        wheel = make_wheel("manylinux_2_17_riscv64")
        code, printed, shown = run("bench", bundle, "--device", "stand:a", "--wheels", wheel.parent, "-q")
        assert (code, printed, shown.count("\n")) == (2, "", 1)
        assert f"found {wheel.name}, expected one for {HERE}" in shown

    def test_a_wheel_that_is_none_is_one_line(self, run, bundle, make_wheel):
        wheel = make_wheel(f"manylinux_2_17_{HERE}")
        wheel.write_bytes(b"not a zip archive")
        code, printed, shown = run("bench", bundle, "--device", "stand:a", "--wheels", wheel.parent, "-q")
        assert (code, printed) == (2, "")
        assert shown == f"saten-edge: error: {wheel}: expected a wheel, found no zip archive; remove it and run again\n"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--no-kernels"], "--no-kernels: only on a device"),
            (["--wheels", "."], "--wheels: only on a device"),
            (["--device", "local", "--no-kernels"], "--no-kernels: nothing is sent to local"),
            (["--device", "stand:a,local", "--wheels", "."], "--wheels: nothing is sent to local"),
            (["--device", "stand:a", "--wheels", ".", "--no-kernels"], "--wheels and --no-kernels: expected one"),
            (["--device", "stand:a", "--wheels", "nowhere"], "--wheels nowhere: expected a folder"),
        ],
    )
    @pytest.mark.parametrize("command", ["bench", "eval"])
    def test_what_would_not_be_honoured_is_refused(self, command, options, words, run, bundle, tmp_path):
        data = tmp_path / "data.jsonl"
        data.write_text('{"query": "a", "answer": "b"}\n')
        given = ["--data", data] if command == "eval" else []
        code, printed, shown = run(command, bundle, *given, *options, "-q")
        assert (code, printed) == (2, "")
        assert shown.startswith(f"saten-edge: error: {words}")

    def test_so_is_what_the_doctor_would_not_honour(self, run):
        code, _, shown = run("devices", "doctor", "local", "--no-kernels")
        assert (code, shown.startswith("saten-edge: error: --no-kernels: nothing is sent to local")) == (2, True)


def test_nothing_given_is_always_fine():
    Shipment().refuse_unused([])
    with pytest.raises(UsageError):
        Shipment(kernels=False).refuse_unused([])
