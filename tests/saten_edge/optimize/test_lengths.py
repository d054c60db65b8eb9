"""How long finalists train: as asked, or as long as the minutes that are left pay for."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'saten-edge[optimize]')")

from pretended_stages import STEP_S, Stages, search_in

from saten_edge.optimize import lengths
from saten_edge.optimize.inputs import settled
from saten_edge.optimize.lengths import MOST_PASSES, PLANNED, Training, measuring_minutes, training_of
from saten_edge.optimize.search import Search
from saten_edge.optimize.tasks import Task, outcome_of
from saten_edge.options import DEFAULT_STEPS, OptimizeOptions
from saten_edge.texts import write_lines

OPTIONS = OptimizeOptions(trials=6, minutes=90)
EXAMPLES = 67_000


def searched(folder: Path, monkeypatch, options: OptimizeOptions = OPTIONS, examples: int = EXAMPLES) -> Search:
    """A search that has ended; no time has passed."""
    search = search_in(folder, Stages(), monkeypatch, options)
    search.chains = replace(search.chains, data=replace(search.chains.data, path=str(folder / "data.jsonl")))
    write_lines(folder / "data.jsonl", [{"text": f"a text {k}"} for k in range(examples)])
    search.run(search.rivals())
    search.began = time.monotonic()
    return search


def test_all_minutes_are_trained(tmp_path: Path, monkeypatch):
    search = searched(tmp_path, monkeypatch)
    found = training_of(search)
    left_s = 60 * (90 - measuring_minutes(OPTIONS, 3)) * PLANNED
    assert found.finalists == 3
    assert found.steps == pytest.approx(left_s / STEP_S / 3, rel=0.01)  # one worker, one after the other
    assert found.steps > 2 * DEFAULT_STEPS


def test_two_workers_train_twice_as_long(tmp_path: Path, monkeypatch):
    search = searched(tmp_path, monkeypatch, replace(OPTIONS, finalists=2))
    alone = training_of(search).steps
    search.engine.workers, search.options = 2, replace(search.options, minutes=91)  # other minutes: decided anew
    assert training_of(search).steps == pytest.approx(2 * alone, rel=0.05)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (replace(OPTIONS, steps=500), Training(3, 500)),
        (replace(OPTIONS, minutes=float("inf")), Training(3, DEFAULT_STEPS)),
        (replace(OPTIONS, minutes=float("inf"), steps=7), Training(3, 7)),
        (replace(OPTIONS, minutes=9, steps=500), Training(1, 500)),  # 3 minutes pay for one of them
    ],
)
def test_what_was_asked_for_counts(options, wanted, tmp_path: Path, monkeypatch):
    assert training_of(searched(tmp_path, monkeypatch, options, examples=8)) == wanted


def test_few_minutes_train_fewer_finalists_and_not_less_than_shortly(tmp_path: Path, monkeypatch):
    search = searched(tmp_path, monkeypatch, replace(OPTIONS, minutes=9))
    found = training_of(search)
    assert found.finalists == 1
    assert search.options.short_steps < found.steps < 2 * DEFAULT_STEPS
    search.options = replace(search.options, minutes=1)
    assert training_of(search) == Training(1, search.options.short_steps)


def test_few_examples_are_not_learned_by_heart(tmp_path: Path, monkeypatch):
    found = training_of(searched(tmp_path, monkeypatch, replace(OPTIONS, batch_size=8), examples=400))
    assert found.steps == MOST_PASSES * 400 // 8


@pytest.mark.parametrize(("asked", "examples", "wanted"), [(None, 19_999, 32), (None, 20_000, 128), (64, 20_000, 64)])
def test_a_step_takes_more_of_much_data(asked: int | None, examples: int, wanted: int, tmp_path: Path):
    write_lines(tmp_path / "data.jsonl", [{"text": f"a text {k}"} for k in range(examples)])
    assert settled(replace(OPTIONS, batch_size=asked), tmp_path / "data.jsonl").batch_size == wanted


def test_one_training_that_shared_its_cores_does_not_shorten_the_last(tmp_path: Path, monkeypatch):
    usual = training_of(searched(tmp_path / "usual", monkeypatch)).steps
    slow = iter([9.0])  # times as long as the others

    def seconds(task: Task, work: Path) -> dict[str, Any]:
        found = outcome_of(task, work)
        return {**found, "training_s": found["training_s"] * next(slow, 1.0)} if "training_s" in found else found

    monkeypatch.setattr(lengths, "outcome_of", seconds)
    assert training_of(searched(tmp_path / "busy", monkeypatch)).steps == pytest.approx(usual, rel=0.01)
    slow = iter([9.0] * 6)  # the twin: all of them
    assert training_of(searched(tmp_path / "slow", monkeypatch)).steps < usual / 5


def test_who_goes_on_trains_as_long(tmp_path: Path, monkeypatch):
    first = training_of(searched(tmp_path, monkeypatch))
    again = search_in(tmp_path, Stages(), monkeypatch, OPTIONS)
    again.began = time.monotonic() - 60 * 60
    assert training_of(again) == first
    again.options = replace(OPTIONS, minutes=80)  # the twin
    again.chains = replace(again.chains, data=replace(again.chains.data, path=str(tmp_path / "data.jsonl")))
    assert training_of(again).steps < first.steps
