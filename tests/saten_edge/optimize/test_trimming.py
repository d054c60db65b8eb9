"""The knob that trims: which candidates have it, what they are made of, and where there is none."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'saten-edge[optimize]')")

import pretended_stages
from pretended_stages import LAYERS, Stages, search_in, searched

import saten_edge
from saten_edge.optimize.chains import Chains
from saten_edge.optimize.estimate import Estimate, Layers, estimate, layers_of
from saten_edge.optimize.goal import Row
from saten_edge.optimize.inputs import read_inputs
from saten_edge.optimize.output import claim
from saten_edge.optimize.planning import refuse_impossible
from saten_edge.optimize.search import Rival, beside
from saten_edge.optimize.showing import sentence
from saten_edge.optimize.space import RIVALS, STARTS, Candidate
from saten_edge.optimize.study import LEVELS, Study
from saten_edge.optimize.tasks import Source, Task
from saten_edge.options import ExportOptions, OptimizeOptions
from saten_edge.recipes import read_recipe, recorded, write_recipe
from saten_edge.texts import write_lines
from saten_edge.trimming import rows_left
from saten_runtime.bundle.recipe import Recipe, Stage
from saten_runtime.errors import UsageError

replay = importlib.import_module("saten_edge.optimize.replay")
SOURCES = Source("model", "m" * 64), Source("data", "d" * 64)
PARTS = {part: Source(part, part * 8) for part in ("steer", "confirm")}
USUAL = OptimizeOptions()
SVD = Candidate("svd", "int8", 0.3)
TRIMMED = dataclasses.replace(SVD, trim=True)
WORDS = ["reads", "the", "number", "of", "returns", "file", "path"]


def chains_of(*, headless: bool = False) -> Chains:
    return Chains(*SOURCES, PARTS, USUAL, headless)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and judge.jsonl, of few words."""
    folder, order = tmp_path_factory.mktemp("data"), random.Random(7)
    rows = [{"text": f"{' '.join(order.choices(WORDS, k=6))} {k}", "label": k % 2} for k in range(48)]
    write_lines(folder / "train.jsonl", rows[:24])
    write_lines(folder / "judge.jsonl", rows[24:])
    return folder


# --- what a trimmed candidate is made of -------------------------------------------------------------------------


def stages_of(task: Task | Source) -> Iterator[Task]:
    """The tasks from the model that was given to this one."""
    if isinstance(task, Task):
        yield from stages_of(task.inputs["model"])
        yield task


@pytest.mark.parametrize("headless", [True, False])
def test_the_chain_of_a_trimmed_candidate_begins_with_the_trimmed_model(headless: bool):
    chains = chains_of(headless=headless)
    labels = ["finetune"] * headless
    trained = chains.checkpoint(TRIMMED, 5)
    assert isinstance(trained, Task)
    assert [task.do for task in stages_of(trained)] == [*labels, "trim", "compress", "finetune"]
    assert trained.inputs["teacher"] == chains.trimmed == trained.inputs["model"].inputs["model"]
    assert [task.do for task in stages_of(chains.bundle(TRIMMED))] == [*labels, "trim", "compress", "export"]
    dense = chains.bundle(Candidate("dense", "int8", trim=True))
    assert [task.do for task in stages_of(dense)] == [*labels, "trim", "export"]
    whole = chains.checkpoint(SVD, 5)
    assert isinstance(whole, Task)
    assert [task.do for task in stages_of(whole)] == [*labels, "compress", "finetune"]
    assert whole.inputs["teacher"] == chains.dense


def test_all_that_are_trimmed_share_one_task(tmp_path: Path, monkeypatch):
    stages = Stages()
    trials = searched(tmp_path, stages, monkeypatch)
    assert sum(trial.candidate.trim and trial.level != LEVELS[0] for trial in trials) > 1
    assert stages.done["trim"] == 1
    other = dataclasses.replace(chains_of(), data=Source("other", "o" * 64))
    assert chains_of().trimmed.key != other.trimmed.key


@pytest.mark.parametrize("headless", [True, False])
@pytest.mark.parametrize("candidate", [TRIMMED, SVD, RIVALS[-1]], ids=lambda each: each.label)
def test_a_recipe_has_the_stage_and_leads_to_the_same_tasks(candidate: Candidate, headless: bool, tmp_path: Path):
    chains = chains_of(headless=headless)
    task = chains.bundle(candidate, 5 if candidate.compress else 0)
    made_by = [written(each) for each in stages_of(task) if each not in stages_of(chains.trimmed)]
    manifest = SimpleNamespace(recipe=Recipe(tuple(made_by)), files={})
    bundle: Any = SimpleNamespace(name=candidate.label, manifest=manifest)
    write_recipe(tmp_path / "recipe.yaml", replay.recipe_of(chains, candidate, bundle, 1))
    assert ("- stage: trim\n" in (tmp_path / "recipe.yaml").read_text()) is candidate.trim
    file = read_recipe(tmp_path / "recipe.yaml")
    again = replay._task_of(file, dict(zip(("model", "data"), SOURCES, strict=True)))
    assert [each.do for each in stages_of(again)] == [each.do for each in stages_of(task)]
    assert teachers(again) == teachers(task)
    whole = dataclasses.replace(candidate, trim=not candidate.trim)
    assert [each.do for each in stages_of(again)] != [each.do for each in stages_of(chains.bundle(whole, 5))]


def written(task: Task) -> Stage:
    """As the stage of a command stands in a bundle."""
    options = {name: value for name, value in task.options.items() if name not in ("texts", "name")}
    calibration = {"calibration": {"texts": task.options["texts"]}} if task.do == "compress" else {}
    return Stage(task.do, options, calibration)


def teachers(task: Task) -> list[str]:
    return [each.inputs["teacher"].key for each in stages_of(task) if "teacher" in each.inputs]


# --- what it takes -----------------------------------------------------------------------------------------------


def test_the_layers_that_are_left_are_those_of_the_trimmed_model(make_bert, data: Path, tmp_path: Path):
    model = make_bert(width=64, layers=1)
    left = rows_left(model, data / "train.jsonl")
    found = saten_edge.trim(model, tmp_path / "out", data / "train.jsonl")
    assert found["table_rows"] == [left.before, left.after]
    layers = layers_of(model, left)
    assert layers == layers_of(tmp_path / "out")
    assert layers != layers_of(model)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "mpnet", "modernbert"])
def test_the_same_of_other_families(family: str, make_tiny: Callable[..., Path], data: Path, tmp_path: Path):
    model = make_tiny(family, "text-classification" if family == "roberta" else "feature-extraction")
    saten_edge.trim(model, tmp_path / "out", data / "train.jsonl")
    assert layers_of(model, rows_left(model, data / "train.jsonl")) == layers_of(tmp_path / "out") != layers_of(model)


@pytest.mark.slow  # compresses and exports
@pytest.mark.parametrize("candidate", [Candidate("saten", "int8", 0.4, "grouped", 16, trim=True), RIVALS[-2]])
def test_predicted_bytes_are_those_of_the_bundle(candidate: Candidate, make_bert, data: Path, tmp_path: Path):
    """Those of the same candidate that is not trimmed are others."""
    model = make_bert(width=256, layers=1)
    trimmed = layers_of(model, rows_left(model, data / "train.jsonl"))
    layers = dataclasses.replace(layers_of(model), trimmed=trimmed)
    made = tmp_path / "trimmed"
    saten_edge.trim(model, made, data / "train.jsonl")
    if candidate.compress:
        saten_edge.compress(made, tmp_path / "small", candidate.compress)
        made = tmp_path / "small"
    bundle = saten_edge.export(made, tmp_path / "bundle", ExportOptions(max_loss=math.inf, **candidate.export)).path
    stored = (bundle / "model.onnx.data").stat().st_size
    assert estimate(candidate, layers, "x86-64", 32).bytes == pytest.approx(stored, rel=0.03)
    whole = dataclasses.replace(candidate, trim=False)
    assert estimate(whole, layers, "x86-64", 32).bytes != pytest.approx(stored, rel=0.03)


def test_a_size_that_only_a_trimmed_one_can_have_is_not_refused():
    table = Layers({"words": ("embedding", 30_000, 384)}, 1000)
    trims = dataclasses.replace(table, trimmed=Layers({"words": ("embedding", 10_000, 384)}, 1000))
    goal = OptimizeOptions(max_mb=0.2)
    refuse_impossible(trims, goal)
    with pytest.raises(UsageError, match=r"--max-mb 0\.2: the smallest bundle that is tried takes about"):
        refuse_impossible(table, goal)
    with pytest.raises(UsageError, match="no vocabulary is trimmed here: --no-trim"):
        estimate(TRIMMED, dataclasses.replace(table, untrimmed="--no-trim"), "x86-64", 32)
    rivals = [
        Rival(each, size + 1000, 0.9, 0.0, Estimate(1000, 1.0)) for each, size in ((RIVALS[0], 10**6), (RIVALS[-1], 10))
    ]
    assert [beside(rivals, trim=trim) for trim in (False, True)] == [10**6, 10]
    refuse_impossible(trims, goal, rivals)
    with pytest.raises(UsageError, match=r"--max-mb 0\.2: .* 1 MB of it beside the matrices"):
        refuse_impossible(trims, goal, rivals[:1])


# --- where there is none -----------------------------------------------------------------------------------------


def test_most_of_the_first_four_are_trimmed_and_optuna_draws_others(tmp_path: Path):
    assert [each.trim for each in STARTS] == [True, True, False, True]
    assert STARTS[1] == Candidate("saten", "int8", 0.25, "grouped", 16, prefer="speed", trim=True)
    asked = first(Study(tmp_path / "journal", 0, trims=True, promising=5.0), 30)
    assert asked[:4] == list(STARTS)
    assert 0 < sum(each.trim for each in asked[4:]) < 26
    whole = first(Study(tmp_path / "other", 0, trims=False, promising=5.0), 30)
    assert not any(each.trim for each in whole)
    assert whole[:4] == [dataclasses.replace(each, trim=False) for each in STARTS]


def first(study: Study, count: int) -> list[Candidate]:
    return [each for each, _ in zip(study.ask(0), range(count), strict=False)]


def test_a_search_that_does_not_trim_has_no_such_candidate(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pretended_stages, "LAYERS", dataclasses.replace(LAYERS, trimmed=None, untrimmed="--no-trim"))
    stages = Stages()
    search = search_in(tmp_path, stages, monkeypatch)
    rivals = search.rivals()
    trials = search.run(rivals)
    assert not any(each.candidate.trim for each in (*rivals, *trials))
    assert stages.done["trim"] == 0


def test_a_model_that_a_stage_cannot_trim_goes_on_without(tmp_path: Path, monkeypatch):
    """The reason is that of each trimmed candidate."""
    stages = Stages(broken=lambda stage, options: stage == "trim")
    search = search_in(tmp_path, stages, monkeypatch)
    rivals = search.rivals()
    assert not any(rival.candidate.trim for rival in rivals)
    trials = search.run(rivals)
    looked = [trial for trial in trials if trial.level != LEVELS[0]]
    assert {trial.failed for trial in looked if trial.candidate.trim} == {True}
    assert {trial.failed for trial in looked if not trial.candidate.trim} == {False}


def test_what_cannot_be_trimmed_is_said_by_name(make_tiny: Callable[..., Path], data: Path, tmp_path: Path):
    model = make_tiny("bert", "text-classification")
    files = data / "train.jsonl", data / "judge.jsonl"

    def read(path: Path, judge: Path = files[1], options: OptimizeOptions = USUAL) -> Layers:
        return read_inputs(str(path), files[0], judge, options).layers

    assert read(model).trims
    assert not read(model).untrimmed
    asked = read(model, options=OptimizeOptions(trim=False))
    assert (asked.trimmed, asked.untrimmed) == (None, "--no-trim")
    write_lines(tmp_path / "texts.jsonl", [{"text": f"the number of {k}"} for k in range(12)])
    writes = read(make_tiny("llama", "text-generation"), tmp_path / "texts.jsonl")
    assert writes.trimmed is None
    assert "a perplexity is one of pieces" in writes.untrimmed
    saten_edge.trim(model, tmp_path / "again", files[0])
    assert read(tmp_path / "again").untrimmed.startswith("train.jsonl and every text need all ")
    tokenizer = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
    tokenizer["model"]["type"] = "WordLevel"
    kept = ("type", "vocab", "unk_token")
    tokenizer["model"] = {name: tokenizer["model"][name] for name in kept}
    (tmp_path / "again" / "tokenizer.json").write_text(json.dumps(tokenizer))
    odd = read(tmp_path / "again")
    assert odd.trimmed is None
    assert "its tokenizer is of the kind WordLevel; there are WordPiece, BPE, Unigram" in odd.untrimmed


@pytest.mark.parametrize("more", [(), ("--no-trim",)])
def test_the_plan_says_it(more: tuple[str, ...], run, tiny_bert: Path, data: Path, tmp_path: Path):
    files = ("--data", data / "train.jsonl", "--judge", data / "judge.jsonl")
    code, out, _ = run("optimize", tiny_bert, "-o", tmp_path / "out", *files, "--quiet", "--dry-run", *more)
    assert code == 0
    trims = not more
    assert ("trim the vocabulary to the words of --data" in out) is trims
    assert ("at 7 precisions, and trimmed at 2" in out) is trims
    assert ("some candidates know the words of --data alone, " in out) is trims
    assert ("no vocabulary is trimmed: --no-trim" in out) is not trims


def test_a_search_that_trimmed_does_not_go_on_without(tmp_path: Path):
    """Nor one of an earlier version, which knew no such option."""
    out, inputs = tmp_path / "out", {"model": "a"}
    claim(out, USUAL, inputs, [], resume=False, overwrite=False)
    claim(out, USUAL, inputs, [], resume=True, overwrite=False)
    with pytest.raises(UsageError, match=r"holds a search with another trim \(True\)"):
        claim(out, OptimizeOptions(trim=False), inputs, [], resume=True, overwrite=False)
    marker = json.loads((out / "optimize.json").read_text())
    assert marker["options"] == recorded("optimize", USUAL)
    del marker["options"]["trim"]
    (out / "optimize.json").write_text(json.dumps(marker))
    with pytest.raises(UsageError, match=r"holds a search with another trim \(None\)"):
        claim(out, USUAL, inputs, [], resume=True, overwrite=False)


def test_an_answer_that_is_trimmed_says_what_it_knows():
    def answer(candidate: Candidate) -> str:
        row = Row(candidate.label, candidate, 1, 1_000_000, 1.0, 0.9, 0.1, 0.9, 0.1)
        dense = [Row(each.label, each, None, 4_000_000, 4.0, 0.9, 0.0, 0.9, 0.0) for each in RIVALS]
        dense = [dataclasses.replace(each, bytes=2_000_000) if each.candidate.trim else each for each in dense]
        return sentence(row, [*reversed(dense), row], USUAL, "accuracy", [])

    known = " It knows the words of the training texts; other texts cost it more pieces."
    assert answer(TRIMMED).endswith(f"; 0.25 of dense-int8's bytes.{known}")
    assert answer(RIVALS[-1]).endswith(f"no compression that was tried is better.{known}")
    assert answer(SVD).endswith("; 0.25 of dense-int8's bytes.")
