"""Times of finalists: on this machine, on devices, kept and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from saten_edge.devices.local import Local
from saten_edge.optimize import measuring
from saten_edge.optimize.finals import slowest
from saten_edge.optimize.goal import Row
from saten_edge.optimize.measuring import Times, measure, reach
from saten_edge.optimize.showing import table_rows
from saten_edge.optimize.space import Candidate
from saten_runtime.bench.plan import Plan
from saten_runtime.bench.results import read_bench
from saten_runtime.errors import DeviceError, UsageError

PLAN = Plan(tokens=(8,))
NAMES = ("dense", "saten")


def result(ms: float, *, names: tuple[str, ...] = NAMES, reasons: tuple[str, ...] = ()) -> dict:
    """What `bench` writes: the second bundle takes twice as long as the first."""
    size = {"threads": 1, "batch": 1, "tokens": 8, "memory_mode": "fast", "count": 10}
    times = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "mean_ms"), ms)
    return {
        "schema_version": 1,
        "environment": {"machine": "aarch64"},
        "verdict": {"valid": not reasons, "reasons": list(reasons)},
        "cells": [
            {"bundle": name, **size, **{key: value * (k + 1) for key, value in times.items()}}
            for k, name in enumerate(names)
        ],
        "loads": [],
    }


def board(label: str) -> Local:
    return Local(f"stand:{label}", label)


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Boards that only pretend. asked: their labels, in order; broken: those that are lost; answers: by label."""
    stage = SimpleNamespace(asked=[], broken=set(), answers={"a": result(2.0), "b": result(5.0)})

    def run_job(device, job, *, folder, talk):
        stage.asked.append(device.label)
        if device.label in stage.broken:
            raise DeviceError(f"{device.label}: lost")
        folder.mkdir(parents=True, exist_ok=True)
        answer = {**stage.answers[device.label], "device": {"label": device.label, "url": device.url}}
        (folder / "bench.json").write_text(json.dumps(answer))
        return answer

    monkeypatch.setattr(measuring, "run_job", run_job)
    monkeypatch.setattr(measuring, "bench_job", lambda bundles, plan, baseline: (bundles, plan, baseline))
    monkeypatch.setattr(measuring, "Bundle", SimpleNamespace(open=lambda path: SimpleNamespace(name=path.name)))
    return stage


def test_each_device_has_its_times_and_the_slowest_counts(boards, tmp_path: Path) -> None:
    times = measure([Path(name) for name in NAMES], PLAN, [board("a"), board("b")], tmp_path, None)
    assert times.of("dense") == {"a": 2.0, "b": 5.0}
    assert times.of("saten") == {"a": 4.0, "b": 10.0}
    assert times.of("other") == {"a": None, "b": None}
    assert slowest(times.of("saten").values()) == 10.0
    assert slowest([1.0, None]) is None
    assert {cell["bundle"] for cell in times.joined["cells"]} == {f"{n} @ {d}" for n in NAMES for d in ("a", "b")}


def test_a_lost_device_costs_nothing_of_the_others(boards, tmp_path: Path) -> None:
    paths, devices = [Path(name) for name in NAMES], [board("a"), board("b")]
    boards.broken = {"b"}
    with pytest.raises(DeviceError, match="b: lost"):
        measure(paths, PLAN, devices, tmp_path, None)
    boards.broken = set()
    assert measure(paths, PLAN, devices, tmp_path, None).of("dense") == {"a": 2.0, "b": 5.0}
    assert boards.asked == ["a", "b", "b"]


def test_a_result_that_is_not_whole_is_measured_again(boards, tmp_path: Path) -> None:
    paths = [Path(name) for name in NAMES]
    boards.answers["a"] = result(2.0, names=("dense",), reasons=("interrupted",))
    assert measure(paths, PLAN, [board("a")], tmp_path, None).of("saten") == {"a": None}
    boards.answers["a"] = result(3.0)
    assert measure(paths, PLAN, [board("a")], tmp_path, None).of("saten") == {"a": 6.0}
    assert measure(paths, PLAN, [board("a")], tmp_path, None).of("saten") == {"a": 6.0}
    assert boards.asked == ["a", "a"]


def test_why_times_are_not_believed_says_where() -> None:
    busy, quiet = read_bench(result(1.0, reasons=("the load was 3",))), read_bench(result(1.0))
    assert Times({"": busy}).reasons == ["the load was 3"]
    assert Times({"pi": busy, "b": quiet}).reasons == ["pi: the load was 3"]


def test_the_table_has_a_column_for_each_device() -> None:
    usual = Row("x", Candidate("dense", "int8"), None, 10**6, 2.5, 0.9, 0.0, 0.9, 0.0)
    assert table_rows([usual])[0][2:3] == ("ms",)
    there = Row(*list(vars(usual).values())[:-1], {"pi": 2.5, "phone": None})
    assert [line[2:4] for line in table_rows([there])] == [("ms, pi", "ms, phone"), ("2.500", "–")]


def test_devices_are_asked_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(measuring, "device_facts", lambda device, talk: asked.append(device.label))
    assert [device.label for device in reach(["local"], None)] == asked == ["local"]
    with pytest.raises(UsageError, match="expected ssh://"):
        reach(["pi5"], None)
