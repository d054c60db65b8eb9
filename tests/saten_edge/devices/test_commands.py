"""`--device` and `saten-edge devices` on the command line, with a stand-in board."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saten_edge.devices import transports


@pytest.fixture(autouse=True)
def stands(make_stand, runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stand:LABEL` is a device."""
    monkeypatch.setitem(transports.TRANSPORTS, "stand", lambda url: make_stand(url.partition(":")[2]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"query": "a", "answer": "b"}\n')
    return path


def test_bench_on_two_devices(run, bundle, tmp_path):
    out = tmp_path / "out"
    code, printed, shown = run("bench", bundle, "--device", "stand:a,stand:b", "-o", out, "-q")
    assert (code, shown) == (0, "")
    assert [line.split()[0] for line in printed.splitlines() if line] == ["device", "a", "b", "a:", "b:"]
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    code, printed, _ = run("bench", bundle, "--device", "stand:a", "-q", "--json")
    assert (code, json.loads(printed)["a"]["device"]["url"]) == (0, "stand:a")


def test_an_invalid_run_ends_with_4(run, bundle, runtime):
    from saten_runtime.bench.results import read_bench

    bench = {"schema_version": 1, "environment": {}, "cells": [], "loads": []}
    bench["verdict"] = {"valid": False, "reasons": ["emulated: by qemu"]}
    read_bench(bench)
    runtime(bench=bench)
    code, printed, shown = run("bench", bundle, "--device", "stand:a", "-q")
    assert code == 4
    assert printed.endswith("a: INVALID: emulated: by qemu\n")
    assert shown == "saten-edge: error: a: emulated: by qemu\n"


def test_a_device_that_fails_does_not_hide_the_others(run, bundle, make_stand, monkeypatch):
    broken = make_stand("broken")
    broken.command = lambda bootstrap: ["false"]
    monkeypatch.setitem(transports.TRANSPORTS, "broken", lambda url: broken)
    code, printed, shown = run("bench", bundle, "--device", "broken:x,stand:b", "-q")
    assert code == 2
    assert printed.endswith("b: VALID\n")
    assert shown.startswith("saten-edge: error: broken: ended with 1")


def test_eval(run, bundle, data, tmp_path):
    options = ["--data", data, "--device", "stand:a", "--device", "stand:b", "-o", tmp_path / "out", "-q"]
    code, printed, shown = run("eval", bundle, *options)
    assert (code, shown) == (0, "")
    assert [line.split() for line in printed.splitlines()[1:]] == [["a", "tiny", "0.5000"], ["b", "tiny", "0.5000"]]
    assert json.loads((tmp_path / "out/b/eval.json").read_text())["device"]["label"] == "b"


def test_what_came_home_goes_into_one_report(run, bundle, data, tmp_path):
    assert run("bench", bundle, "--device", "stand:a,stand:b", "-o", tmp_path / "bench", "-q")[0] == 0
    assert run("eval", bundle, "--data", data, "--device", "stand:a,stand:b", "-o", tmp_path / "eval", "-q")[0] == 0
    benches = [part for name in "ab" for part in ("--bench", tmp_path / "bench" / name / "bench.json")]
    evaluations = [part for name in "ab" for part in ("--eval", tmp_path / "eval" / name / "eval.json")]
    code, printed, _ = run("report", bundle, *benches, *evaluations, "--format", "csv")
    assert code == 0
    assert [line.partition(",")[0] for line in printed.splitlines()[1:]] == ["tiny @ a", "tiny @ b"]


@pytest.mark.parametrize("url", ["ssh://-oProxyCommand=touch pwned", "telnet://x", "stand:a,stand:a"])
def test_a_device_that_is_none_is_one_line(url, run, bundle):
    code, printed, shown = run("bench", bundle, "--device", url, "-q")
    assert (code, printed) == (2, "")
    assert shown.startswith("saten-edge: error: --device")
    assert shown.count("\n") == 1


def test_doctor(run, bundle):
    code, printed, shown = run("devices", "doctor", "stand:a", bundle, "-q")
    assert (code, shown) == (0, "")
    assert printed.split() == ["WARN", "cpu", "Cortex-A72", "measure", "both"]


def test_doctor_that_finds_something(run, runtime):
    runtime(checks=[{"name": "disk", "status": "FAIL", "found": "\x1b[2J", "advice": "make room"}])
    code, printed, _ = run("devices", "doctor", "stand:a", "-q")
    assert code == 2
    assert printed.startswith("FAIL")
    assert "\x1b" not in printed
    code, printed, _ = run("devices", "doctor", "stand:a", "-q", "--json")
    assert (code, json.loads(printed)[0]["status"]) == (2, "FAIL")


def test_clean_removes_what_lies_on_the_board(run, bundle, tmp_path):
    run("bench", bundle, "--device", "stand:a", "-q")
    assert (tmp_path / "a/bundles").is_dir()
    assert run("devices", "clean", "stand:a") == (0, "", "")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["doctor", "clean", "android"])
def test_help(name, run):
    code, printed, _ = run("devices", name, "--help")
    assert code == 0
    assert "--help" in printed
