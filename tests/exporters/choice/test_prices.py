"""Files of prices: what is written is read back and chosen by, and everything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_exporters.choice.cost import choose, predicted_us
from saten_exporters.choice.prices import (
    KERNELS,
    MeasuredOn,
    Rates,
    prices_for,
    read_prices,
    shipped_prices,
    write_prices,
)
from saten_exporters.choice.random_layers import random_layer
from saten_exporters.choice.settings import ExportSettings
from saten_runtime.bench.results import Verdict
from saten_runtime.errors import DataError, SatenError, UsageError

PI = MeasuredOn("pi5", "aarch64", "Cortex-A76", "Raspberry Pi 5", 4, ["asimd"], None, "1.31.1", "0.1.0, neondot")
Change = Callable[[dict[str, Any]], object]


def scaled(factor: float, target: str = "arm64+kernels") -> dict[str, Rates]:
    """The shipped prices, as of a machine that takes so many times as long."""
    table = shipped_prices(target).table
    return {key: Rates(*(min(factor * price, 9e3) for price in vars(rates).values())) for key, rates in table.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_prices(tmp_path / "pi5.json", PI, Verdict(True), scaled(3))
    return tmp_path / "pi5.json"


def changed(path: Path, change: Change) -> Path:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


def test_what_is_written_is_read_back(file: Path) -> None:
    for target in ("arm64", "arm64+kernels", "mobile"):
        found = read_prices(file, target)
        expected = {key: rates for key, rates in scaled(3).items() if key in shipped_prices(target).table}
        assert found.table == expected
    assert found.source["device"] == "pi5"
    assert found.source["name"] == "pi5.json"
    assert prices_for("arm64", None) is shipped_prices("arm64")


def test_the_sha256_is_that_of_the_prices(file: Path) -> None:
    before = read_prices(file, "arm64").source["sha256"]
    changed(file, lambda value: value["targets"]["arm64"]["product fp32"].update(mac=1.25))
    assert read_prices(file, "arm64").source["sha256"] != before


def test_a_device_that_is_not_steady_is_told_of(file: Path) -> None:
    changed(file, lambda value: value["verdict"].update(valid=False, reasons=["load: 3 other processes"]))
    assert read_prices(file, "arm64").notice == "prices of pi5: load: 3 other processes"


def rates(**prices: Any) -> Change:
    return lambda value: value["targets"]["arm64"]["product fp32"].update(prices)


DAMAGED: dict[str, tuple[Change, type[SatenError], str]] = {
    "another schema": (lambda value: value.update(schema_version=2), DataError, "schema_version is 2, expected 1"),
    "another version": (lambda value: value.update(saten_edge="0.0.9"), DataError, "forms of saten-edge 0.0.9"),
    "another processor": (
        lambda value: value["device"].update(machine="x86_64"),
        UsageError,
        "measured on x86_64 (pi5), which --target arm64 is not for; choose x86-64 or x86-64+kernels",
    ),
    "an emulator": (
        lambda value: value["device"].update(emulator="qemu-aarch64-static"),
        UsageError,
        "measured in an emulator (qemu-aarch64-static)",
    ),
    "negative": (rates(mac=-1e-9), DataError, ".targets.arm64.product fp32.mac: found -1e-09, expected nanoseconds"),
    "absurd": (rates(mac=1e5), DataError, "mac: found 100000.0, expected nanoseconds from 0 to 10000"),
    "a call of a second": (rates(call=1e9), DataError, "call: found 1000000000.0, expected nanoseconds"),
    "all zero": (rates(call=0, weight=0, mac=0, move=0), DataError, "all four prices are 0"),
    "text": (rates(mac="fast"), DataError, "mac: found 'fast', expected a finite number"),
    "true": (rates(mac=True), DataError, "mac: found True, expected a finite number"),
    "a price too many": (rates(energy=1), DataError, "found the unknown 'energy'"),
    "a family too few": (
        lambda value: value["targets"]["arm64"].pop("product fp32"),
        DataError,
        "has no prices of product fp32 (1 in all); measure again with saten-edge devices calibrate",
    ),
    "no device": (lambda value: value.pop("device"), DataError, "device is missing"),
    "no target": (lambda value: value.update(targets={}), DataError, "has no prices of"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_bad_input_is_refused_by_name(case: str, file: Path) -> None:
    change, error, words = DAMAGED[case]
    read_prices(file, "arm64")  # the twin
    with pytest.raises(error) as caught:
        read_prices(changed(file, change), "arm64")
    assert words in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_what_is_no_number_is_no_price(number: str, file: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace('"mac": ', f'"mac": {number}, "was": ', 1))
    with pytest.raises(DataError, match=r"not JSON"):
        read_prices(file, "arm64")


def test_an_emulators_prices_are_taken_when_they_are_asked_for_by_name(file: Path) -> None:
    changed(file, lambda value: value["device"].update(emulator="qemu-aarch64-static"))
    assert read_prices(file, "arm64", emulated=True).source["emulator"] == "qemu-aarch64-static"


def test_prices_without_kernels_are_none_of_a_target_with_them(file: Path) -> None:
    changed(file, lambda value: value["targets"].pop("arm64" + KERNELS))
    assert read_prices(file, "arm64").table
    with pytest.raises(DataError, match="choose a target without kernels"):
        read_prices(file, "arm64" + KERNELS)


def test_no_prices_of_a_browser(file: Path) -> None:
    with pytest.raises(UsageError, match="which --target web is not for"):
        read_prices(file, "web")


def only(**prices: float) -> Change:
    """Everything takes the same calls, weights, products or moves."""

    def change(value: dict[str, Any]) -> None:
        for each in value["targets"]["arm64"].values():
            each.update({"call": 0, "weight": 0, "mac": 0, "move": 0, **prices})

    return change


def test_forms_are_chosen_by_them(file: Path) -> None:
    """Where only calls take time, factors beat the chain; where only products do, the chain may beat them."""
    parts = random_layer((384, 384), 96, "none", 0, np.random.default_rng(0))
    settings = ExportSettings(target="arm64")
    calls = read_prices(changed(file, only(call=1e6)), "arm64")
    products = read_prices(changed(file, only(mac=1)), "arm64")
    by_calls, others = choose(parts, settings, prices=calls)
    times = {each.lowering: each.predicted_us for each in (by_calls, *others)}
    assert (times["dense"], times["low-rank"]) == (pytest.approx(1e3), pytest.approx(2e3))
    assert by_calls.lowering == "low-rank"  # dense is faster, and larger
    by_products, others = choose(parts, settings, prices=products)
    assert by_products.predicted_us == min(each.predicted_us for each in (by_products, *others))
    assert predicted_us(by_products.form, parts, 128, "arm64", products) == by_products.predicted_us
    assert by_products.predicted_us != predicted_us(by_products.form, parts, 128, "arm64")
