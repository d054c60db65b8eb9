"""`devices calibrate` and `export --device`, with a stand-in board whose steps all take equally long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saten_edge.console import Talk
from saten_edge.devices import calibrate, transports
from saten_exporters.choice.prices import read_prices, shipped_prices
from saten_exporters.choice.probes import Sizes

FACTS = {
    **{"machine": "aarch64", "cpu": "Cortex-A76", "board": "Raspberry Pi 5", "cores": 4, "cpu_flags": ["asimd"]},
    **{"emulator": None, "packages": {"onnxruntime": "1.31.1"}},
    "kernels": {"state": "not installed", "version": None, "isa": None, "fault": ""},
}
KERNELS = {"state": "active", "version": "0.1.0", "isa": "neondot", "fault": ""}


@pytest.fixture(autouse=True)
def stands(make_stand, runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`stand:LABEL` is a device, small models are probed, and prices are kept in `tmp_path`."""
    monkeypatch.setitem(transports.TRANSPORTS, "stand", lambda url: make_stand(url.partition(":")[2]))
    monkeypatch.setattr(calibrate, "QUICK", Sizes(((128, 128),), (256, 64), (1, 8)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "saten-edge/prices").glob("*.json"))


def test_calibrate_writes_prices_that_export_reads(run, tmp_path):
    code, printed, shown = run("devices", "calibrate", "stand:a", "-o", tmp_path / "a.json", "-q")
    assert (code, printed, shown) == (0, f"{tmp_path / 'a.json'}: prices of a, VALID\n", "")
    found = read_prices(tmp_path / "a.json", "arm64")
    assert set(found.table) == set(shipped_prices("arm64").table)
    assert (found.source["device"], found.source["cpu"]) == ("a", "Cortex-A76")
    assert found.table["product fp32"] != shipped_prices("arm64").table["product fp32"]
    code, printed, shown = run("devices", "calibrate", "stand:a", "-o", tmp_path / "a.json", "-q")
    assert (code, "already exists" in shown) == (2, True)


def test_a_run_that_may_not_be_believed_ends_with_4(run, runtime, tmp_path):
    runtime(verdict={"valid": False, "reasons": ["load: 3 other processes"]})
    code, printed, shown = run("devices", "calibrate", "stand:a", "-q", "--json")
    (path,) = kept(tmp_path)
    assert (code, shown) == (4, "saten-edge: error: load: 3 other processes\n")
    assert json.loads(printed) == {"output": str(path), "valid": False, "reasons": ["load: 3 other processes"]}
    assert read_prices(path, "arm64").notice == "prices of a: load: 3 other processes"


def test_another_device_has_other_prices(run, runtime, tmp_path):
    """A board under the same name, a newer ONNX Runtime, other kernels: nothing that was measured counts."""
    for change in ({}, {"cpu": "Cortex-A72"}, {"packages": {"onnxruntime": "1.32.0"}}, {"kernels": KERNELS}):
        runtime(facts={**FACTS, **change})
        assert run("devices", "calibrate", "stand:a", "-q")[0] == 0
    assert len(kept(tmp_path)) == 4
    assert run("devices", "calibrate", "stand:a", "-q")[0] == 0
    assert len(kept(tmp_path)) == 4  # the twin


def test_export_makes_the_prices_once(run, tiny_saten, tmp_path, make_stand, monkeypatch):
    measured = []
    original = calibrate._measured
    monkeypatch.setattr(calibrate, "_measured", lambda *given: measured.append(given) or original(*given))
    code, _, shown = run("export", tiny_saten, "-o", tmp_path / "out", "--target", "arm64", "--device", "stand:a", "-q")
    assert (code, shown) == (0, "")
    assert [calibrate.prices_of(make_stand("a"), "arm64", Talk(quiet=True))] == kept(tmp_path)
    assert len(measured) == 1
    stage = json.loads((tmp_path / "out/saten_edge.json").read_text())["recipe"][-1]
    assert stage["inputs"]["prices"]["device"] == "a"
    assert stage["inputs"]["prices"]["cpu"] == "Cortex-A76"
    assert "by-shipped-prices" in stage["outcome"]
    code, printed, _ = run("explain", tmp_path / "out")
    assert (code, "\nprices of a; by those of x86-64: " in printed) == (0, True)


def test_prices_of_another_processor_are_refused_before_the_model_is_read(run, tmp_path):
    run("devices", "calibrate", "stand:a", "-o", tmp_path / "a.json", "-q")
    code, _, shown = run("export", tmp_path / "no-model", "-o", tmp_path / "out", "--prices", tmp_path / "a.json", "-q")
    assert code == 2
    assert "measured on aarch64 (a), which --target x86-64 is not for; choose arm64 or arm64+kernels or mobile" in shown


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"emulator": "qemu-aarch64-static"}, ["--target", "arm64"], "a: measured in an emulator"),
        ({}, ["--target", "x86-64"], "a: measured on aarch64 (a), which --target x86-64 is not for"),
        ({}, ["--target", "atari"], "--target atari: there are x86-64, "),
    ],
)
def test_nothing_is_measured_in_vain(change, options, words, run, runtime, tiny_saten, tmp_path):
    runtime(facts={**FACTS, **change})
    code, _, shown = run("export", tiny_saten, "-o", tmp_path / "out", "--device", "stand:a", "-q", *options)
    assert (code, words in shown) == (2, True)
    assert kept(tmp_path) == []


def test_emulated_alone_says_nothing(run, tiny_saten, tmp_path):
    code, _, shown = run("export", tiny_saten, "-o", tmp_path / "out", "--emulated", "-q")
    assert (code, shown.startswith("saten-edge: error: --emulated: the prices that ship")) == (2, True)


def test_one_of_the_two(run, tiny_saten, tmp_path):
    options = ["--prices", tmp_path / "a.json", "--device", "stand:a"]
    code, _, shown = run("export", tiny_saten, "-o", tmp_path / "out", *options)
    assert (code, shown.startswith("saten-edge: error: --prices and --device: expected one of the two")) == (2, True)


@pytest.mark.parametrize("facts", [{}, {**FACTS, "kernels": 3}, {**FACTS, "packages": []}, {**FACTS, "machine": 3}])
def test_a_board_that_does_not_say_what_it_is(facts, run, runtime):
    runtime(facts=facts)
    code, printed, shown = run("devices", "calibrate", "stand:a", "-q")
    assert (code, printed) == (2, "")
    assert shown.startswith("saten-edge: error: ")
    assert shown.count("\n") == 1
