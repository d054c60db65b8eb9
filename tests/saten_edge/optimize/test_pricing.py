"""Whose prices choose: a device's that were measured, those of a file, or those that ship, always said by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saten_edge.devices.calibrate import known_prices, measured_on
from saten_edge.devices.local import Local
from saten_edge.optimize import pricing, tasks
from saten_edge.optimize.chains import Chains
from saten_edge.optimize.estimate import Layers, estimate
from saten_edge.optimize.pricing import Pricing, planned_words, prices_in, pricing_of
from saten_edge.optimize.space import STARTS
from saten_edge.optimize.tasks import Source
from saten_edge.options import OptimizeOptions
from saten_edge.recipes import read_recipe, recorded, write_recipe
from saten_exporters.choice.prices import Rates, shipped_prices, write_prices
from saten_runtime.bench.results import Verdict
from saten_runtime.bundle.recipe import Recipe, Stage
from saten_runtime.errors import DataError, UsageError
from saten_runtime.records.files import sha256_file

FACTS: dict[str, Any] = {
    **{"machine": "x86_64", "cpu": "Ryzen", "board": None, "cores": 4, "cpu_flags": ["avx2"], "emulator": None},
    **{"packages": {"onnxruntime": "1.31.1"}},
    "kernels": {"state": "not installed", "version": None, "isa": None, "fault": ""},
}
STAND = Local("stand:a", "a")
replay = importlib.import_module("saten_edge.optimize.replay")
LAYERS = Layers({"layer.0.dense": ("linear", 256, 256)}, 1000)
USUAL = OptimizeOptions()


@pytest.fixture(autouse=True)
def facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the stand-in says of itself; prices that are known lie in `tmp_path`."""
    said = dict(FACTS)
    monkeypatch.setattr(pricing, "device_facts", lambda device, talk: said)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return said


@pytest.fixture
def priced() -> Callable[..., Path]:
    """Write prices that are so many times those that ship."""

    def write(path: Path, times: float, valid: bool = True, **facts: Any) -> Path:
        table = {
            key: Rates(**{name: value * times for name, value in vars(rates).items()})
            for key, rates in shipped_prices("x86-64").table.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        verdict = Verdict(valid, [] if valid else ["the load was 3"])
        write_prices(path, measured_on("a", {**FACTS, **facts}), verdict, table)
        return path

    return write


def us(found: Pricing) -> float:
    return estimate(replace(STARTS[0], trim=False), LAYERS, "x86-64", 32, found.prices).us


def test_the_prices_of_a_device_count_where_they_are_known(priced, facts: dict[str, Any]) -> None:
    shipped = pricing_of(USUAL, [])
    without = pricing_of(USUAL, [STAND])
    assert us(without) == us(shipped)
    assert without.words.startswith("those that ship, of x86-64 server (AMD EPYC, ")
    assert without.words.endswith("none are known of a, saten-edge devices calibrate stand:a measures them")
    priced(known_prices(measured_on("a", FACTS)), 2)
    found = pricing_of(USUAL, [STAND, Local("stand:b", "b")])
    assert us(found) == pytest.approx(2 * us(shipped))
    assert found.words == "those of a (Ryzen, ONNX Runtime 1.31.1, kernels not installed)"
    facts["cpu"] = "another"  # a board of the same name
    assert us(pricing_of(USUAL, [STAND])) == us(shipped)


def test_a_file_of_prices_counts_before_a_device(priced, tmp_path: Path) -> None:
    priced(known_prices(measured_on("a", FACTS)), 2)
    options = OptimizeOptions(prices=priced(tmp_path / "a.json", 3, valid=False))
    found = pricing_of(options, [STAND])
    assert us(found) == pytest.approx(3 * us(pricing_of(USUAL, [])))
    assert found.words.endswith("prices of a: the load was 3")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match=r"a\.json: schema_version is None"):
        pricing_of(options, [STAND])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": "aarch64"}, "which --target x86-64 is not for; choose arm64 or arm64"),
        ({"emulator": "qemu-x86_64"}, "measured in an emulator"),
    ],
)
def test_prices_that_say_nothing_of_the_target_are_refused(change: dict[str, Any], words: str, priced, facts) -> None:
    facts |= change
    priced(known_prices(measured_on("a", facts)), 2, **change)
    with pytest.raises(UsageError, match=words):
        pricing_of(USUAL, [STAND])
    if "emulator" in change:
        assert us(pricing_of(OptimizeOptions(emulated=True), [STAND])) == pytest.approx(2 * us(pricing_of(USUAL, [])))
    with pytest.raises(UsageError, match="--emulated: the prices that ship are of a real machine"):
        pricing_of(OptimizeOptions(emulated=True), [])


def test_a_search_goes_on_with_the_prices_that_it_began_with(priced, tmp_path: Path) -> None:
    out, first, other = tmp_path / "out", priced(tmp_path / "1.json", 2), priced(tmp_path / "2.json", 3)
    out.mkdir()
    asked = OptimizeOptions(prices=first)
    began = prices_in(out, pricing_of(asked, []), asked)
    assert began.path == out / "prices.json"
    (out / "study.journal").touch()
    first.unlink()
    again = prices_in(out, pricing_of(USUAL, []), USUAL)
    assert (again.prices, again.path) == (began.prices, began.path)
    assert again.words.endswith("; with which this search began")
    with pytest.raises(UsageError, match=r"2\.json: the search in .* began with those of a; leave the option out"):
        prices_in(out, pricing_of(OptimizeOptions(prices=other), []), OptimizeOptions(prices=other))


def test_a_search_that_began_with_those_that_ship_stays_with_them(priced, tmp_path: Path) -> None:
    assert prices_in(tmp_path, pricing_of(USUAL, []), USUAL).path is None
    (tmp_path / "study.journal").touch()
    priced(known_prices(measured_on("a", FACTS)), 2)
    found = prices_in(tmp_path, pricing_of(USUAL, [STAND]), USUAL)
    assert found.path is None
    assert us(found) == us(pricing_of(USUAL, []))
    assert list(tmp_path.glob("prices.json")) == []


def test_the_plan_says_whose_prices_will_choose(priced, tmp_path: Path) -> None:
    options = OptimizeOptions(prices=priced(tmp_path / "a.json", 2))
    assert planned_words(options, "pi5").startswith("those of a (Ryzen, ")
    assert planned_words(USUAL, "pi5").startswith("those of pi5, if saten-edge devices calibrate has measured them")
    assert planned_words(USUAL, None).startswith("those that ship, of x86-64 server")


def test_exports_are_told_the_prices_and_a_recipe_finds_them(priced, tmp_path: Path, monkeypatch) -> None:
    path = priced(tmp_path / "prices.json", 2)
    source, told = Source(str(path), sha256_file(path)), []
    chains = Chains(Source("model", "m"), Source("data", "d"), {}, USUAL, False, source)
    task = chains.bundle(replace(STARTS[0], family="dense"))
    assert task.key != replace(chains, prices=None).bundle(replace(STARTS[0], family="dense")).key
    bundle = type("Made", (), {"size_bytes": 1, "manifest": type("Says", (), {"task": "toy"})})
    monkeypatch.setattr(tasks.saten_edge, "export", lambda model, out, how: told.append(how.prices) or bundle)
    tasks.KINDS["export"](tmp_path / "out", dict(task.options), {"model": Path("model"), "prices": path})
    tasks.KINDS["export"](tmp_path / "out", dict(task.options), {"model": Path("model")})
    assert told == [path, None]
    inputs = {"prices": {"path": "/elsewhere/prices.json", "sha256": source.key}}
    stages = Stage("optimize", recorded("optimize", USUAL), inputs), Stage("export", {"prices": "prices.json"})
    write_recipe(tmp_path / "recipe.yaml", Recipe(stages))
    file = read_recipe(tmp_path / "recipe.yaml")
    found = replay._prices(file, file.stage("optimize"))
    assert found == {"prices": source}
    again = replay._task_of(file, {"model": chains.model, "data": chains.data, **found})
    assert again.inputs["prices"] == source
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"recipe\.yaml:1: .*prices\.json is not the prices of this recipe"):
        replay._prices(file, file.stage("optimize"))
