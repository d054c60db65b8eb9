"""The search beside random search and hand-picked rows: volumes, cells that are kept, and workers beside each other."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import random
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'saten-edge[optimize]')")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The programs import what they share from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def search(load: Any) -> Any:
    return load("search")


def bundle(name: str, lost: float, us: float, size: float, ms: float | None = None) -> dict[str, Any]:
    dense = name.startswith("dense")
    return {"name": name, "bytes": size, "us": us, "ms": ms, "drop": lost, "confirm_drop": lost, "dense": dense}


FLOAT = bundle("dense-fp32", 0, 200, 4e6, 2.0)


def dominated(points: list[dict[str, Any]]) -> float:
    """The volume of a union of boxes by inclusion and exclusion, from each point to the reference."""
    corners = [(each["confirm_drop"] / 10, each["us"] / 200, each["bytes"] / 4e6) for each in points]
    total = 0.0
    for count in range(1, len(corners) + 1):
        for some in itertools.combinations(corners, count):
            sides = [max(0.0, 1 - max(axis)) for axis in zip(*some, strict=True)]
            total += (-1) ** (count + 1) * math.prod(sides)
    return total


@pytest.mark.parametrize("seed", range(20))
def test_a_volume_is_that_of_the_union_of_the_boxes(seed: int, search: Any) -> None:
    pytest.importorskip("moocore", reason="not installed: pip install 'saten-edge[bench]'")
    order = random.Random(seed)
    drawn = [
        bundle(f"{k}", order.uniform(-1, 12), order.uniform(20, 230), order.uniform(3e5, 4.5e6), 1.0) for k in range(6)
    ]
    found = search.volume([FLOAT, *drawn], "us")
    assert found == pytest.approx(dominated(drawn), rel=1e-12)
    swapped = [{**each, "us": each["bytes"] / 2e4, "bytes": each["us"] * 2e4} for each in drawn]
    assert found == pytest.approx(search.volume([FLOAT, *swapped], "us"), rel=1e-12)  # the axes are alike
    lost = [{**each, "us": 200 - each["us"]} for each in drawn]
    assert found != pytest.approx(search.volume([FLOAT, *lost], "us"), rel=1e-3)


def test_what_was_not_measured_counts_for_nothing(search: Any) -> None:
    pytest.importorskip("moocore", reason="not installed: pip install 'saten-edge[bench]'")
    good, unmeasured = bundle("a", 0, 100, 2e6, 1.0), bundle("b", 0, 10, 1e5)
    assert search.volume([FLOAT, good], "ms") == 0.25
    assert search.volume([FLOAT, good, unmeasured], "ms") == 0.25
    assert search.volume([FLOAT, good, unmeasured], "us") > 0.25


def cell(way: str, lost: float, reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    about = {"task": "sst2", "way": way, "seed": 0, "spent_minutes": 90.0, "tried": 3, "reasons": list(reasons)}
    return {**about, "points": [FLOAT, bundle("saten", lost, 100, 2e6, 1.0)]}


def test_the_table_says_whether_the_search_is_as_good(search: Any) -> None:
    pytest.importorskip("moocore", reason="not installed: pip install 'saten-edge[bench]'")
    better = search.table([search.shown(cell(*each)) for each in (("optimize", 0.5), ("random", 5), ("by hand", 0.5))])
    assert "| sst2 | optimize | 0 | 90 | 3 | 1 | 0.2375 | 0.2375 | 2.00 |" in better
    assert "- met  sst2, seed 0, measured times: optimize 0.2375 (wanted ≥ random's 0.1250)" in better
    assert "- met  sst2, seed 0, measured times: optimize 0.2375 (wanted ≥ by hand's 0.2375)" in better
    worse = search.table([search.shown(cell("optimize", 5)), search.shown(cell("random", 0.5, ("the load was 3",)))])
    assert "- MISS sst2, seed 0, predicted times: optimize 0.1250 (wanted ≥ random's 0.2375)" in worse
    assert "| sst2 | random | 0 | 90 | 3 | 1 | – | 0.2375 | 2.00 |" in worse


def test_a_way_is_drawn_the_same_by_the_same_seed_and_each_candidate_once(search: Any, monkeypatch: Any) -> None:
    drawn: list[list[Any]] = []
    monkeypatch.setattr(search, "fully", lambda cell, given, out, candidates, minutes: drawn.append(list(candidates)))
    trims = SimpleNamespace(layers=SimpleNamespace(trims=True))
    monkeypatch.setattr(search, "read_inputs", lambda *given: trims)
    subject = search.Subject("a", Path("m"), Path("d"), Path("j"))
    for seed in (0, 0, 1):
        options = search.OptimizeOptions(seed=seed, trials=30)
        search.at_random(search.Cell("random", subject, options, Path("w"), Path("r")), Path("w"))
    search.by_hand(search.Cell("by hand", subject, options, Path("w"), Path("r")), Path("w"))
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 30
    assert {each.trim for each in drawn[0]} == {False, True}
    assert drawn[3] == list(search.BY_HAND)
    assert len({each.label for each in search.BY_HAND}) == 8


@pytest.mark.slow  # exports seven bundles
def test_a_quick_run_makes_each_way_once(warm_python: list[str], offline: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("moocore", reason="not installed: pip install 'saten-edge[bench]'")
    environment = {**offline, "SATEN_WARM_PYTHON": shlex.join(warm_python)}
    line = [*warm_python, FOLDER / "search.py", "--work", tmp_path / "work", "--quick", "-o", tmp_path / "search.json"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=600, env=environment)

    done = run()
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "search.json").read_text())["rows"]
    assert [(row["way"], row["tried"], row["measured"]) for row in rows] == [
        (way, 1, 1) for way in ("optimize", "random", "by hand")
    ]
    assert all("dense-fp32" in {each["name"] for each in row["points"]} for row in rows)
    assert "tiny, seed 3, " in done.stdout
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "results").iterdir()}
    assert len(kept) == 3
    again = run()  # what has a result is not made again
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_what_a_search_found_is_beside_its_goal(load: Any, tmp_path: Path) -> None:
    program = load("optimize")

    def found(reasons: tuple[str, ...] = (), ms: float = 2.0) -> str:
        rows = [
            {"name": "dense-fp32", "bytes": 8e6, "ms": 9.0, "drop": 0.0, "confirm_drop": 0.0},
            {"name": "dense-int8", "bytes": 2e6, "ms": 4.0, "drop": 0.1, "confirm_drop": 0.2},
            {"name": "svd", "bytes": 3e5, "ms": 1.0, "drop": 0.1, "confirm_drop": 1.2},
            {"name": "saten", "bytes": 5e5, "ms": ms, "drop": 0.1, "confirm_drop": 0.9},
        ]
        result = {"rows": rows, "best": "saten", "reasons": list(reasons), "trials": [{}, {}]}
        (tmp_path / "result.json").write_text(json.dumps(result))
        (tmp_path / "optimize.json").write_text(json.dumps({"options": {"minutes": 80.0}}))
        text: str = program.table([*program.rows_of("sst2", tmp_path)])
        return text

    good = found()
    assert "| sst2 | **saten** | 0.50 | 0.250 | 2.00 | 0.50 | 0.10 | 0.90 |" in good
    assert (
        "- met  sst2, 80 minutes, 2 candidates; within 1 point: least bytes 0.250 (wanted ≤ 0.33), least time 0.50"
        in good
    )
    assert good.endswith("; saten is all of it\n")
    assert "- MISS sst2" in found(ms=3.0)
    busy = found(reasons=("the load was 3",))
    assert "| sst2 | **saten** | 0.50 | 0.250 | – | – | 0.10 | 0.90 |" in busy
    assert "- MISS sst2" in busy


def test_a_compressed_step_is_beside_a_dense_one(load: Any) -> None:
    training = load("training")

    def row(name: str, batch: int, ms: float, ratio: float, busy: tuple[str, ...] = ()) -> dict[str, Any]:
        of_dense = {"value": ratio, "low": ratio - 0.1, "high": ratio + 0.1}
        return {"name": name, "batch": batch, "ms": [ms], "busy": list(busy), "of_dense": of_dense}

    dense = row("dense", 128, 400, 1.0)
    good = training.table([row("saten int8", 32, 250, 1.6), dense, row("saten int8", 128, 480, 1.2)])
    assert "| 128 | saten int8 | 480 | 1.20 (1.10–1.30) |" in good
    assert good.endswith("\n- met  saten int8, 128 texts: 1.20 of dense (wanted ≤ 1.3)\n")
    assert "- MISS saten int8, 128 texts: 1.40 of dense" in training.table([dense, row("saten int8", 128, 560, 1.4)])
    busy = training.table([dense, row("saten int8", 128, 480, 1.2, ("cc1",))])
    assert "- INVALID: other programs ran (cc1)" in busy
    assert "1.20" not in busy


def test_the_texts_are_as_long_as_sentences_and_always_the_same(load: Any, tmp_path: Path) -> None:
    training = load("training")
    lengths = [len(json.loads(line)["text"].split()) for line in training.texts_in(tmp_path).read_text().splitlines()]
    assert len(lengths) == training.TEXTS
    assert 7 < sum(lengths) / len(lengths) < 11
    assert max(lengths) <= training.MOST_WORDS
    again = tmp_path / "again"
    again.mkdir()
    assert training.texts_in(again).read_bytes() == training.texts_in(tmp_path).read_bytes()


def test_two_workers_are_as_many_times_faster_as_their_turns_say(load: Any, monkeypatch: Any, tmp_path: Path) -> None:
    workers = load("workers")
    seconds = {1: iter([10.0, 12.0, 11.0]), 2: iter([5.0, 6.0, 6.0])}
    made: list[int] = []

    def compressed(model: Path, out: Path, count: int, told: Any) -> dict[str, Any]:
        made.append(count)
        return {"seconds": next(seconds[count]), "sha256": "a" if count == 1 or not odd else "b", "busy": busy}

    monkeypatch.setattr(workers, "compressed", compressed)
    monkeypatch.setattr(workers, "saten_edge", lambda *_: None)
    busy: list[str] = []
    odd = False
    rows = workers.measured(tmp_path, tmp_path, (), 3)
    assert made == [1, 2] * 3
    assert rows[1]["speed_up"]["value"] == 2.0
    text = workers.table("bert-base", rows)
    assert "| bert-base | 2 | 6.0 | 2.00 (1.83–2.00) |" in text
    assert "- met  2 workers: times as fast as one: 2.00 (wanted ≥ 1.6)" in text
    slow = [rows[0], {**rows[1], "speed_up": {"value": 1.5, "low": 1.4, "high": 1.6}}]
    assert "- MISS 2 workers: times as fast as one: 1.50" in workers.table("bert-base", slow)
    assert "INVALID: other programs ran (cc1)" in workers.table("bert-base", [rows[0], {**rows[1], "busy": ["cc1"]}])
    odd, seconds = True, {1: iter([1.0]), 2: iter([1.0])}
    with pytest.raises(SystemExit, match="the bytes depend on the number of workers"):
        workers.measured(tmp_path, tmp_path, (), 1)
