from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Bundle, doctor
from saten_runtime.bundle.manifest import MANIFEST_FILE
from saten_runtime.cli import main
from saten_runtime.doctor import CHECKS, Check, Examination, examine
from saten_runtime.records.files import sha256_file
from saten_runtime.run.parity import write_case
from saten_runtime.run.session import make_session

FakeRoot = Callable[[dict[str, str]], Path]


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_can_run_the_bundle(tiny: Path) -> None:
    checks = examine(tiny)
    assert len(checks) == len(CHECKS) == len(by_name(checks))
    for name in ("python", "glibc", "onnxruntime", "bundle", "run"):
        assert by_name(checks)[name].status == "OK", by_name(checks)[name]
    for check in checks:
        assert (check.status == "OK") is (check.advice == "")


def test_json_and_exit_code(tiny: Path, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny)]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    broken = copy_of(tiny)
    (broken / "model.onnx").write_bytes(b"")
    assert main(["doctor", str(broken), "--json"]) == 2
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["bundle"]["status"] == rows["run"]["status"] == "FAIL"
    assert "0 bytes" in rows["bundle"]["found"]
    assert rows["onnxruntime"]["status"] == "OK"


def kill_by(signal_name: str) -> Callable[[str], list[str]]:
    import sys

    return lambda code: [sys.executable, "-c", f"import os, signal; os.kill(os.getpid(), signal.{signal_name})"]


def test_a_deadly_import_is_reported_not_suffered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "python_command", kill_by("SIGILL"))
    check = by_name(examine())["onnxruntime"]
    assert check.status == "FAIL"
    assert "SIGILL (this processor lacks an instruction" in check.found


def test_a_failing_import_shows_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(doctor, "python_command", lambda code: [sys.executable, "-c", "import nothing_like_it"])
    assert "No module named 'nothing_like_it'" in by_name(examine())["onnxruntime"].found


@pytest.mark.parametrize(
    ("available_mib", "status"),
    [(10, "FAIL"), (60, "FAIL"), (300, "WARN"), (2000, "OK"), (None, "WARN")],
)
def test_memory(fake_root: FakeRoot, tmp_path: Path, available_mib: int | None, status: str) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    with (bundle / "model.onnx.data").open("wb") as file:
        file.truncate(200 * 2**20)
    files = {"proc/meminfo": f"MemAvailable: {available_mib * 1024} kB\n"} if available_mib else {"proc/stat": ""}
    assert doctor._memory(Examination(fake_root(files), bundle)).status == status


@pytest.mark.parametrize(
    ("check", "files", "status"),
    [
        (doctor._cpu, {"proc/cpuinfo": "model name : X\nflags : avx2\n"}, "WARN"),
        (doctor._cpu, {"proc/cpuinfo": "model name : X\nflags : avx512_vnni\n"}, "OK"),
        (doctor._cpu, {"proc/cpuinfo": "CPU implementer : 0x41\nCPU part : 0xd08\nFeatures : asimd\n"}, "WARN"),
        (doctor._governor, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave"}, "WARN"),
        (doctor._governor, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance"}, "OK"),
        (doctor._governor, {"proc/stat": ""}, "OK"),
        (doctor._throttling, {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"}, "WARN"),
        (doctor._throttling, {"sys/devices/platform/soc/soc:firmware/get_throttled": "0"}, "OK"),
        (doctor._throttling, {"sys/class/thermal/thermal_zone0/temp": "61000"}, "OK"),
    ],
)
def test_device_checks(check: Any, files: dict[str, str], status: str, fake_root: FakeRoot) -> None:
    found = check(Examination(fake_root(files)))
    assert found.status == status
    assert (found.status == "OK") is (found.advice == "")


@pytest.mark.parametrize(
    ("libc", "status"),
    [(("glibc", "2.36"), "OK"), (("glibc", "2.27"), "FAIL"), (("", ""), "FAIL"), (("musl", "1"), "FAIL")],
)
def test_libc(monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str], status: str) -> None:
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: libc)
    assert doctor._glibc(Examination()).status == status


def test_sums_that_saturate_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_name(examine())["int8 sums"].status == "OK"
    monkeypatch.setattr(doctor, "probe_products", lambda: {"ONNX Runtime": False, "native kernels": True})
    check = by_name(examine())["int8 sums"]
    assert (check.status, check.found) == ("WARN", "ONNX Runtime: products of 8 bits saturate")
    assert "int8-block" in check.advice
    monkeypatch.undo()
    monkeypatch.setattr("saten_runtime.run.products.python_command", kill_by("SIGILL"))
    assert "SIGILL (this processor lacks" in by_name(examine())["int8 sums"].found


def with_case(folder: Path, states: np.ndarray, ids: np.ndarray) -> Path:
    """The bundle with one validation case, and its manifest made to fit."""
    ones = np.ones_like(ids)
    arrays = {"input_ids": ids, "attention_mask": ones, "token_type_ids": 0 * ids, "last_hidden_state": states}
    write_case(folder, "short", arrays)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    for path in (folder / "validation").iterdir():
        entry = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        manifest["files"][f"validation/{path.name}"] = entry
    manifest["tolerance"] = {"relative": 1e-5}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder


def test_a_bundle_is_replayed(tiny: Path, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.array([[1, 9, 17, 2]])
    bundle = Bundle.open(tiny)
    feeds = {name: ids if name == "input_ids" else np.ones_like(ids) for name in bundle.manifest.inputs}
    (states,) = make_session(bundle).run(None, feeds)
    folder = with_case(copy_of(tiny), states, ids)
    check = by_name(examine(folder))["validation"]
    assert (check.status, check.found.partition(",")[0]) == ("OK", "2 outputs as in torch")
    assert check.found.endswith("; allowed are 1.0e-05")
    assert main(["validate", str(folder)]) == 0
    assert "relative error" in capsys.readouterr().out
    with_case(folder, -states, ids)  # the twin: as if its weights were another's, with a manifest that fits them
    check = by_name(examine(folder))["validation"]
    assert check.status == "FAIL"
    assert "2.00e+00 from torch's, allowed are 1.00e-05" in check.found
    assert main(["doctor", str(folder)]) == 2
    capsys.readouterr()
    assert main(["validate", str(folder), "--json"]) == 3
    stdout, stderr = capsys.readouterr()
    assert [row["relative_error"] for row in json.loads(stdout)] == pytest.approx([2, 2])
    assert stderr.startswith("saten-run: error: tiny: output 'last_hidden_state' of case short")


def test_a_bundle_that_allows_anything_is_a_warning(tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    folder = with_case(copy_of(tiny), np.ones((1, 4, 8), np.float32), np.array([[1, 9, 17, 2]]))
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "tolerance": {}}))
    check = by_name(examine(folder))["validation"]
    assert (check.status, check.found.rpartition("; ")[2]) == ("WARN", "the bundle allows any")
