"""Times that a browser posts for prices: what is taken, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saten_edge.cli.commands import main
from saten_edge.phone.prices import LEAST_RUNS, PriceJob, PriceRun
from saten_edge.phone.received import Mismatch
from saten_edge.phone.schema import Bench, End, Prices, parse_post
from saten_exporters.choice.prices import read_prices, shipped_prices, write_prices
from saten_runtime.bench.probing import IDLE
from saten_runtime.errors import DataError

DEVICE = {"cores": 8, "memory_gib": 4.0, "isolated": True, "secure": True, "tick_ns": 5_000}
BROWSER = "Mozilla/5.0 (a test)"


def post_of(job: PriceJob, run: PriceRun, **changes: Any) -> dict[str, Any]:
    """Made-up times: a microsecond for each value that a graph reads, times its rows, and one more for the run."""
    asked = run.to_json()
    turns = [
        {
            "probe": index,
            "rows": rows,
            "round": number,
            "runs_per_sample": 2,
            "samples_ns": [1000 * (1 + (probe["width"] or 1) * rows * (probe["name"] != IDLE)) + k for k in range(4)],
        }
        for number, order in enumerate(asked["rounds"])
        for rows in asked["rows"]
        for index, probe in ((index, asked["probes"][index]) for index in order)
    ]
    return {"run": run.id, "loaded": job.sha256, "device": DEVICE, "hidden": False, "turns": turns, **changes}


def give(run: PriceRun, value: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(value).encode()
    return run.receive(parse_post(Prices, content), content, BROWSER)


@pytest.fixture
def run(small_prices: PriceJob, tmp_path: Path) -> PriceRun:
    return PriceRun(small_prices, tmp_path / "run")


def test_every_graph_lies_in_the_pack(small_prices: PriceJob, run: PriceRun) -> None:
    asked = run.to_json()
    assert small_prices.files() == {small_prices.sha256: small_prices.pack}
    assert asked["pack"]["bytes"] == len(small_prices.pack)
    ends = [probe["offset"] + probe["bytes"] for probe in asked["probes"]]
    assert [probe["offset"] for probe in asked["probes"]] == [0, *ends[:-1]]
    assert ends[-1] == len(small_prices.pack)
    assert IDLE in [probe["name"] for probe in asked["probes"]]
    assert not any(small_prices.subjects[probe["name"]].native for probe in asked["probes"] if probe["name"] != IDLE)
    assert all(sorted(order) == list(range(len(ends))) for order in asked["rounds"])
    assert asked["rounds"][0] != asked["rounds"][1]
    assert asked["most_samples"] >= LEAST_RUNS


def test_prices_are_those_of_the_browser(small_prices: PriceJob, run: PriceRun, tmp_path: Path) -> None:
    assert not run.has_results
    assert give(run, post_of(small_prices, run)) == {"verdict": {"valid": True, "reasons": []}}
    assert run.has_results
    assert run.priced is not None
    write_prices(tmp_path / "page.json", run.priced.device, run.priced.verdict, run.priced.prices)
    prices = read_prices(tmp_path / "page.json", "web")
    assert set(prices.table) == set(shipped_prices("web").table)
    assert prices.source["cpu"] == BROWSER
    assert prices.source["machine"] == "wasm32"
    assert prices.notice == ""
    run.receive(End(run.id), b"{}", BROWSER)
    assert not run.is_open


def test_a_page_in_the_background_is_no_result(small_prices: PriceJob, run: PriceRun, tmp_path: Path) -> None:
    verdict = give(run, post_of(small_prices, run, hidden=True))["verdict"]
    assert not verdict["valid"]
    assert "the page was in the background" in verdict["reasons"][0]


def test_times_of_a_busy_device_are_no_result(small_prices: PriceJob, run: PriceRun) -> None:
    value = post_of(small_prices, run)
    for turn in value["turns"]:
        turn["samples_ns"][-1] *= 10
    verdict = give(run, value)["verdict"]
    assert not verdict["valid"]
    assert verdict["reasons"][0].startswith("spread: ")


def test_too_few_samples_are_no_result(small_prices: PriceJob, run: PriceRun) -> None:
    value = post_of(small_prices, run)
    for turn in value["turns"]:
        turn["samples_ns"] = turn["samples_ns"][:2]
    verdict = give(run, value)["verdict"]
    assert not verdict["valid"]
    assert len(verdict["reasons"]) == 6
    assert "6 samples, at least 10 are needed" in verdict["reasons"][0]
    assert "more of the kind" in verdict["reasons"][-1]


def without_a_round(value: dict[str, Any]) -> None:
    value["turns"] = [turn for turn in value["turns"] if turn["round"] or turn["probe"]]


def without_the_last_round_of_one(value: dict[str, Any]) -> None:
    value["turns"] = [turn for turn in value["turns"] if turn["round"] < 2 or turn["probe"] != 3]


def without_a_graph(value: dict[str, Any]) -> None:
    value["turns"] = [turn for turn in value["turns"] if turn["probe"] != 3]


DAMAGES = {
    "other graphs": (lambda value: value.update(loaded="0" * 64), "graphs of another sha256"),
    "another run": (lambda value: value.update(run="x"), "this is another run"),
    "a graph that is not there": (lambda value: value["turns"][0].update(probe=9999), "was not asked for"),
    "rows that are not asked for": (lambda value: value["turns"][0].update(rows=3), "was not asked for"),
    "a round twice": (lambda value: value["turns"].append(value["turns"][-1]), "expected 3"),
    "a round left out": (without_a_round, "round 1 of graph 0, expected 0"),
    "a round less of one": (without_the_last_round_of_one, "with as many rounds each"),
    "a graph left out": (without_a_graph, "graphs and rows, expected"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_was_not_asked_for_is_refused(name: str, small_prices: PriceJob, run: PriceRun) -> None:
    damage, words = DAMAGES[name]
    value = post_of(small_prices, run)
    damage(value)
    with pytest.raises(Mismatch, match=words):
        give(run, value)
    assert not run.has_results
    give(run, post_of(small_prices, run))  # the twin


@pytest.mark.parametrize("ns", [0, -1, 1e300, None, "1"])
def test_what_is_no_time_is_refused(ns: object, small_prices: PriceJob, run: PriceRun) -> None:
    value = post_of(small_prices, run)
    value["turns"][0]["samples_ns"][0] = ns
    with pytest.raises(DataError):
        give(run, value)
    text = json.dumps(post_of(small_prices, run)).replace("[1000,", "[NaN,", 1).encode()
    with pytest.raises(DataError):
        parse_post(Prices, text)


def test_a_run_of_prices_takes_no_benchmark(run: PriceRun, bench_of, small_prices: PriceJob) -> None:
    content = json.dumps(bench_of(run.id)).encode()
    with pytest.raises(Mismatch, match="bench: this run asks for nothing of the kind"):
        run.receive(parse_post(Bench, content), content, BROWSER)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["local", "--port", "8000"], "--port: only for page"),
        (["local", "--host", "127.0.0.1"], "--host: only for page"),
        (["page", "--no-kernels"], "--no-kernels: nothing is sent to a page"),
        (["page", "--host", "0.0.0.0"], "expected one IPv4 address"),
    ],
)
def test_options_that_are_not_honoured_are_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["devices", "calibrate", *options])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
