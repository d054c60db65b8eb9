"""The search over stages that only pretend: what is dropped and why, and that a kill at any task changes nothing."""

from __future__ import annotations

import errno
import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'saten-edge[optimize]')")

from pretended_stages import OPTIONS, Killed, Stages, search_in, searched

from saten_edge.optimize import tasks
from saten_edge.optimize.finals import chosen
from saten_edge.optimize.lengths import Training
from saten_edge.optimize.search import Search
from saten_edge.optimize.space import RIVALS, STARTS, Candidate, offered
from saten_edge.optimize.study import LEVELS, Study, Trial
from saten_edge.optimize.tasks import Source, Task, folder_of, forget, made, outcome_of
from saten_edge.options import OptimizeOptions
from saten_exporters.quantize import PRECISIONS
from saten_runtime.errors import ExportError
from saten_runtime.records.files import write_json

# --- what is dropped ---------------------------------------------------------------------------------------------


def test_levels_drop_and_say_why(tmp_path: Path, monkeypatch):
    stages = Stages()
    trials = searched(tmp_path, stages, monkeypatch)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert sum(trial.level != LEVELS[0] for trial in trials) == 6
    assert len({trial.candidate for trial in trials}) == len(trials)
    shortly = [trial for trial in trials if trial.level == LEVELS[2]]
    assert 3 <= len(shortly) < 6
    assert all(trial.why for trial in trials if trial not in shortly)
    assert all(trial.drop is not None for trial in trials if trial.level != LEVELS[0])
    # once before training and once after, each by its own hash
    assert {count for name, count in stages.done.items() if name.startswith("export saten")} == {1, 2}
    assert stages.done["compress"] == 6


def test_what_is_predicted_to_be_too_large_costs_nothing(tmp_path: Path, monkeypatch):
    trials = searched(tmp_path, Stages(), monkeypatch, OptimizeOptions(trials=16, max_mb=0.15))
    dropped = [trial for trial in trials if trial.level == LEVELS[0]]
    unpaid = [trial for trial in dropped if "has too few bytes for any part at int" in trial.why]
    assert 0 < len(unpaid) < len(dropped)
    assert all(trial.why.endswith("MB, --max-mb is 0.15") for trial in dropped if trial not in unpaid)
    assert all(trial.drop is None for trial in dropped)
    assert all(trial.bytes <= 1.15 * 150_000 for trial in trials if trial not in dropped)


def test_a_rival_within_the_goal_makes_hopeless_what_is_larger_and_slower(tmp_path: Path, monkeypatch):
    search = search_in(tmp_path, Stages(), monkeypatch)
    rivals = search.rivals()
    int8 = next(rival for rival in rivals if rival.candidate.precision == "int8")
    larger = Trial(0, 0, STARTS[0], 2 * int8.bytes, 2 * int8.predicted.us)
    assert search._hopeless(larger, [int8]) == ("cannot win: dense-int8 is predicted to take fewer bytes and less time")
    assert search._hopeless(replace(larger, us=int8.predicted.us), [int8]) == ""
    assert search._hopeless(replace(larger, bytes=int8.bytes), [int8]) == ""
    assert search._hopeless(larger, [replace(int8, drop=1.1)]) == ""


def test_a_goal_that_no_candidate_can_have_ends_the_search(tmp_path: Path, monkeypatch):
    trials = searched(tmp_path, Stages(), monkeypatch, OptimizeOptions(max_mb=0.01))
    assert {trial.level for trial in trials} == {LEVELS[0]}


def test_what_a_stage_refuses_is_a_reason_and_not_an_end(tmp_path: Path, monkeypatch):
    trials = searched(tmp_path, Stages(refused="int8"), monkeypatch)
    refused = [trial for trial in trials if "too much is lost" in trial.why]
    assert refused
    assert all(trial.candidate.precision == "int8" for trial in refused)
    with pytest.raises(ExportError, match="the dense model: too much is lost"):
        searched(tmp_path / "other", Stages(refused="fp32"), monkeypatch)


# --- what is asked, and in which order ---------------------------------------------------------------------------


def test_labels_are_learned_once_before_anything_waits_for_them(tmp_path: Path, monkeypatch):
    search, asked = search_in(tmp_path, Stages(), monkeypatch), []
    write_json(tmp_path / "model.dense", {"budget": 1.0})
    search.chains = replace(search.chains, headless=True)
    run = search.engine.run
    monkeypatch.setattr(
        search.engine, "run", lambda some, done: asked.append([each["task"]["do"] for each in some]) or run(some, done)
    )
    assert len(search.rivals()) == len(RIVALS)
    assert asked == [["finetune"], ["trim"], ["judge"] * len(RIVALS)]


def test_a_batch_that_has_nothing_new_ends_the_search(tmp_path: Path, monkeypatch):
    search, asked = search_in(tmp_path, Stages(), monkeypatch), []
    monkeypatch.setattr(search, "_propose", lambda batch, rivals: asked.append(batch) or [])
    monkeypatch.setattr(search, "_goes_on", lambda: len(asked) < 3)
    assert search.run(search.rivals()) == []
    assert asked == [0]


@pytest.mark.parametrize("steps", [60, 400])
def test_bundles_of_finalists_are_not_made_twice(steps: int, tmp_path: Path, monkeypatch):
    """Where the short fine-tuning is as long as the full one, its bundle is the finalist's."""
    options = OptimizeOptions(trials=6, steps=steps)
    search = search_in(tmp_path, Stages(), monkeypatch, options)
    (finalist,) = chosen(search.run(search.rivals()), options, Training(1, steps))
    short = made_already(search, finalist, options.short_steps)
    assert short is (steps == options.short_steps)
    assert not made_already(search, finalist, 0)


def made_already(search: Search, trial: Trial, steps: int) -> bool:
    return (folder_of(search.chains.bundle(trial.candidate, steps), search.work) / "exported").exists()


def test_the_finalists_are_those_that_can_win(tmp_path: Path, monkeypatch):
    trials = searched(tmp_path, Stages(), monkeypatch)
    first = chosen(trials, OPTIONS, Training(2, 400))
    assert len(first) == 2
    assert all(trial.level == LEVELS[2] and not trial.why for trial in first)
    by_accuracy = chosen(trials, OptimizeOptions(objective="accuracy"), Training(1, 400))
    assert by_accuracy[0].drop == min(trial.drop for trial in trials if trial.level == LEVELS[2])


def test_the_longer_a_training_is_the_smaller_a_finalist_may_be():
    """100 times the steps are expected to leave 100 ** -0.6 of the points: of 15 points 0.95, of 25 points 1.6."""
    short = Candidate("svd", "int8", 0.1), Candidate("svd", "int8", 0.2), Candidate("svd", "int8", 0.3)
    points = zip((25.0, 15.0, 1.5), short, strict=True)
    trials = [Trial(at, 0, each, 100 + at, 1.0, LEVELS[2], drop) for at, (drop, each) in enumerate(points)]
    first = {times: chosen(trials, OPTIONS, Training(1, times * OPTIONS.short_steps))[0].drop for times in (1, 4, 100)}
    assert first == {1: 1.5, 4: 1.5, 100: 15.0}


def test_what_loses_too_much_is_not_drawn_again(tmp_path: Path):
    """Of 40 trials, whatever has a small budget lost nearly everything, and took the fewest bytes."""
    pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'saten-edge[optimize]')")
    budgets = [0.08 + 0.013 * number for number in range(40)]

    def drawn_after(promising: float) -> float:
        study = Study(tmp_path / f"{promising}.journal", 0, trims=False, promising=promising)
        for number, budget in enumerate(budgets):
            candidate = Candidate("svd", "int8", round(budget, 3))
            lost = 3.0 if budget > 0.3 else 80.0
            study.tell(Trial(number, 0, candidate, int(1e7 * budget), 100 * budget, LEVELS[2], lost, last=number == 39))
        asked = [each.budget for each, _ in zip(study.ask(1), range(40), strict=False)]
        return sum(budget > 0.2 for budget in asked) / len(asked)

    assert drawn_after(5.0) > 0.7
    assert drawn_after(float("inf")) < drawn_after(5.0) - 0.3  # the twin: all of them are as good as each other


# --- kills -------------------------------------------------------------------------------------------------------


def test_a_search_that_is_killed_at_any_task_ends_with_the_same_trials(tmp_path: Path, monkeypatch):
    whole = Stages()
    expected = [trial.to_json() for trial in searched(tmp_path / "whole", whole, monkeypatch)]
    count = sum(whole.done.values())
    assert count > 20
    for dies in range(0, count, 11):
        folder = tmp_path / str(dies)
        stages = Stages(dies)
        with pytest.raises(Killed):
            searched(folder, stages, monkeypatch)
        later = Stages()
        assert [trial.to_json() for trial in searched(folder, later, monkeypatch)] == expected
        both = sum(stages.done.values()) + sum(later.done.values())
        assert both == count


def test_a_full_disk_ends_a_search_which_goes_on_to_the_same_trials(tmp_path: Path, monkeypatch):
    whole = Stages()
    expected = [trial.to_json() for trial in searched(tmp_path / "whole", whole, monkeypatch)]
    count = sum(whole.done.values())
    for dies in range(5, count, 17):
        folder = tmp_path / str(dies)
        stages, later = Stages(dies, fault=full()), Stages()
        with pytest.raises(OSError, match="No space left"):
            searched(folder, stages, monkeypatch)
        assert not [path for path in (folder / "work").iterdir() if not (path / "outcome.json").is_file()]
        assert [trial.to_json() for trial in searched(folder, later, monkeypatch)] == expected
        assert sum(stages.done.values()) + sum(later.done.values()) == count


def test_a_disk_that_is_full_in_the_middle_of_a_line_of_the_journal(tmp_path: Path, monkeypatch):
    """The trial was computed and is not told; its tasks are not done again."""
    expected = searched(tmp_path / "whole", Stages(), monkeypatch)
    journal = importlib.import_module("optuna").storages.journal.JournalFileBackend
    append, told = journal.append_logs, list[int]()

    def appended(self: Any, logs: list[dict[str, Any]]) -> None:
        told.append(len(logs))
        if len(told) < 6:
            append(self, logs)
            return
        with (tmp_path / "out" / "study.journal").open("a") as file:
            file.write(json.dumps(logs[0])[:20])
        raise full()

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append_logs", appended)
        with pytest.raises(OSError, match="No space left"):
            searched(tmp_path / "out", Stages(), patch)
    assert len(told) == 6
    later = Stages()
    assert searched(tmp_path / "out", later, monkeypatch) == expected
    assert not [name for name in later.done if name.startswith("export saten-int8-0.285")]


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def test_half_a_line_of_the_journal_is_what_a_kill_leaves(tmp_path: Path, monkeypatch):
    expected = searched(tmp_path, Stages(), monkeypatch)
    journal = tmp_path / "study.journal"
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]) + lines[-2][: len(lines[-2]) // 2])
    Path(f"{journal}.lock").write_text("")
    again = Stages()
    assert searched(tmp_path, again, monkeypatch) == expected
    assert not sum(again.done.values())


def test_other_seeds_are_other_searches(tmp_path: Path, monkeypatch):
    one, other = (
        searched(tmp_path / str(seed), Stages(), monkeypatch, OptimizeOptions(trials=6, seed=seed)) for seed in (0, 1)
    )
    assert one[:4] == other[:4]  # the usual good ones
    assert {trial.candidate for trial in one} != {trial.candidate for trial in other}


# --- tasks -------------------------------------------------------------------------------------------------------


def test_a_key_is_of_everything_that_goes_in():
    model = Source("here", "a")
    task = Task("export", {"precision": "int8"}, {"model": model})
    assert task.key == Task("export", {"precision": "int8"}, {"model": Source("elsewhere", "a")}).key
    others = [
        Task("export", {"precision": "fp32"}, {"model": model}),
        Task("judge", {"precision": "int8"}, {"model": model}),
        Task("export", {"precision": "int8"}, {"model": Source("here", "b")}),
        Task("export", {"precision": "int8"}, {"model": Task("compress", {}, {"model": model})}),
    ]
    assert len({task.key, *(other.key for other in others)}) == 5
    assert Task.from_json(json.loads(json.dumps(others[3].to_json()))) == others[3]


def test_what_was_removed_is_made_again_and_the_outcome_stays(tmp_path: Path, monkeypatch):
    stages = Stages()
    monkeypatch.setattr(tasks, "KINDS", stages.kinds())
    task = Task("compress", {"budget": 0.5, "precision": "fp32"}, {"model": Source("model", "m")})
    first = outcome_of(task, tmp_path)
    path = made(task, tmp_path)
    before = path.read_bytes()
    forget(task, tmp_path)
    assert not path.exists()
    assert outcome_of(task, tmp_path) == first
    assert stages.done["compress"] == 1
    assert made(task, tmp_path).read_bytes() == before
    assert stages.done["compress"] == 2
    assert [child.name for child in tmp_path.iterdir()] == [folder_of(task, tmp_path).name]


def test_what_another_process_made_meanwhile_stays_for_it_may_be_read(tmp_path: Path, monkeypatch):
    task = Task("compress", {"budget": 0.5}, {"model": Source("model", "m")})
    place = folder_of(task, tmp_path)

    def other_is_first(out: Path, options: dict[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
        for folder in (out, place / out.name):
            folder.mkdir(parents=True)
        (place / out.name / "others").touch()
        write_json(place / "outcome.json", {"seconds": 0})
        return {}

    monkeypatch.setattr(tasks, "KINDS", {"compress": other_is_first})
    assert "refused" not in outcome_of(task, tmp_path)
    assert [path.name for path in made(task, tmp_path).iterdir()] == ["others"]
    assert list(tmp_path.iterdir()) == [place]


def test_rivals_are_every_precision_and_two_that_are_trimmed():
    names = [f"dense-{name}" for name in PRECISIONS]
    assert [rival.label for rival in RIVALS] == [*names, "dense-int8-trimmed", "dense-int4-128-trimmed"]
    assert [rival.label for rival in offered(RIVALS, trims=False)] == names
