"""Recipes as files: what is written is read back, and what cannot be is refused by name, with its line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from saten_edge.decomposition.recipe import Recipe as Decomposition
from saten_edge.options import CompressOptions, ExportOptions, FinetuneOptions, OptimizeOptions, TrimOptions
from saten_edge.recipes import given_by, merged, other_inputs, read_recipe, recorded, stages_in, write_recipe
from saten_edge.recipes.schema import STAGES
from saten_edge.training.distillation import Distillation
from saten_edge.training.schedule import Schedule
from saten_runtime.bundle.recipe import Recipe, Stage
from saten_runtime.errors import UsageError

CHANGED = {
    "optimize": OptimizeOptions(max_mb=3.5, trials=4),
    "trim": TrimOptions(vocabulary=9000),
    "compress": CompressOptions(0.3, "2:4", recipe=Decomposition(order=3, share=0.25)),
    "finetune": FinetuneOptions(schedule=Schedule(steps=7, learning_rate=1e-5), distillation=Distillation(("logits",))),
    "export": ExportOptions("int8", rows=1),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


# --- what is read ------------------------------------------------------------------------------------------------


def test_every_stage_is_tried_here():
    assert set(CHANGED) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_options_come_back_from_what_is_recorded(stage: str):
    kind, _ = STAGES[stage]
    for options in (kind(), CHANGED[stage]):
        assert given_by(stage, json.loads(json.dumps(recorded(stage, options)))) == options
    assert recorded(stage, kind()) != recorded(stage, CHANGED[stage])


def test_a_recipe_comes_back_from_its_file(tmp_path: Path):
    stages = [Stage(name, recorded(name, each), {"data": {"sha256": "a" * 64}}) for name, each in CHANGED.items()]
    write_recipe(tmp_path / "recipe.yaml", Recipe(tuple(stages)))
    file = read_recipe(tmp_path / "recipe.yaml")
    assert file.recipe == Recipe(tuple(stages))
    assert {stage.stage: file.options(stage) for stage in file.recipe.stages} == CHANGED


@pytest.mark.parametrize(
    "sha256", ["82e8a4" + "0" * 58, "1e" + "7" * 62, "1" * 64, "0x1f", "1_000", "null", "yes", "7:30"]
)
def test_text_that_looks_like_something_else_stays_text(sha256: str, tmp_path: Path):
    inputs = {"data": {"sha256": sha256}}
    recipe = Recipe((Stage("compress", {}, inputs), Stage("finetune", {}, inputs)))  # the same object twice
    write_recipe(tmp_path / "recipe.yaml", recipe)
    assert read_recipe(tmp_path / "recipe.yaml").recipe == recipe


def test_what_is_not_said_is_the_default(tmp_path: Path):
    file = read_recipe(written(tmp_path, "- stage: compress\n  options: {budget: 0.3, exclude: ['*a*']}\n"))
    options = file.options(file.stage("compress"))
    assert (options.budget, options.selection.exclude, options.group) == (0.3, ("*a*",), CompressOptions().group)


def test_numbers_are_numbers_as_in_yaml_1_2(tmp_path: Path):
    file = read_recipe(written(tmp_path, "- {stage: finetune, options: {learning_rate: 1e-4, minutes: null}}"))
    schedule = file.options(file.stage("finetune")).schedule
    assert (schedule.learning_rate, schedule.minutes) == (1e-4, math.inf)


@pytest.mark.slow  # makes a checkpoint and a bundle
def test_the_record_of_a_checkpoint_and_a_bundle_is_a_recipe(tiny_saten: Path, tiny_bundle, tmp_path: Path):
    for folder, stages in ((tiny_saten, ["compress"]), (tiny_bundle("saten-int8"), ["compress", "export"])):
        found = stages_in(folder)
        assert [stage.stage for stage in found] == stages
        write_recipe(tmp_path / "recipe.yaml", Recipe(found))
        assert read_recipe(tmp_path / "recipe.yaml").recipe.stages == found


# --- the command line beside it ----------------------------------------------------------------------------------


def test_the_command_line_adds_and_may_not_contradict(tmp_path: Path):
    file = read_recipe(written(tmp_path, "- stage: compress\n  options:\n    budget: 0.3\n    group: 16\n"))
    both = merged(file, "compress", CompressOptions(0.3, pattern="none"))
    assert (both.budget, both.group, both.pattern) == (0.3, 16, "none")
    with pytest.raises(UsageError, match=r"recipe.yaml:3: budget is 0.3, and --budget 0.4 contradicts it"):
        merged(file, "compress", CompressOptions(0.4))


def test_an_option_that_contradicts_is_spelled_as_it_was_typed(tmp_path: Path):
    file = read_recipe(written(tmp_path, "- stage: optimize\n  options:\n    trim: true\n"))
    with pytest.raises(UsageError, match=r"trim is True, and --no-trim contradicts it"):
        merged(file, "optimize", OptimizeOptions(trim=False))
    file = read_recipe(written(tmp_path, "- stage: finetune\n  options:\n    bf16: true\n"))
    with pytest.raises(UsageError, match=r"bf16 is True, and --fp32 contradicts it"):
        merged(file, "finetune", FinetuneOptions(schedule=Schedule(bf16=False)))


def test_other_inputs_are_named():
    wanted = Stage("compress", inputs={"model": {"sha256": "a" * 64}, "calibration": {"sha256": "b" * 64}})
    other = Stage("compress", inputs={"model": {"sha256": "a" * 64}, "calibration": {"sha256": "c" * 64}})
    assert other_inputs(wanted, wanted) == []
    assert other_inputs(wanted, other) == [f"calibration: sha256 {'c' * 12}, the recipe has {'b' * 12}"]


def test_a_stage_follows_its_recipe(run, tiny_bert: Path, tmp_path: Path):
    path = written(
        tmp_path,
        f"- stage: compress\n  options: {{budget: 0.6, group: 8, rounds: 1}}\n"
        f"  inputs: {{model: {{sha256: {'d' * 64}}}}}\n",
    )
    code, _, shown = run("compress", tiny_bert, "-o", tmp_path / "out", "--recipe", path, "--quiet")
    assert code == 0
    (stage,) = stages_in(tmp_path / "out")
    assert (stage.options["budget"], stage.options["group"]) == (0.6, 8)
    assert "compress read another model: sha256" in shown
    code, _, shown = run("compress", tiny_bert, "-o", tmp_path / "other", "--recipe", path, "--group", 16)
    assert code == 2
    assert "recipe.yaml:2: group is 8, and --group 16 contradicts it" in shown


# --- what is refused ---------------------------------------------------------------------------------------------

HOSTILE = {
    "unknown option": (
        "- stage: compress\n  options:\n    bugdet: 0.3\n",
        ":3: compress: there is no 'bugdet'; did you mean budget",
    ),
    "unknown stage": ("- stage: compress\n- stage: fly\n", ":2: no stage 'fly' can be run"),
    "unknown key": ("- stage: compress\n  option: {}\n", ":2: there is no 'option'"),
    "twice": ("- stage: compress\n  options:\n    budget: 0.3\n    budget: 0.4\n", ":4: budget is said twice"),
    "type": ("- stage: compress\n  options: {\n    budget: yes}\n", ":3: compress: budget is True"),
    "text for a number": ("- stage: export\n  options:\n    rows: '8'\n", ":3: export: rows is '8'"),
    "range": ("- stage: finetune\n  options:\n    steps: 0\n", ":3: finetune: --steps 0"),
    "contradiction": (
        "- stage: compress\n  options:\n    density: 0.1\n    share: 0.5\n",
        ": compress: --share and --density or --eps both say",
    ),
    "alias": ("- &a {stage: compress}\n- *a\n", ":2: an alias"),
    "object": (
        "- stage: !!python/object/apply:os.system [true]\n",
        ":1: something has the type .*os.system",
    ),
    "tagged": ("- stage: compress\n  options:\n    pattern: !!binary aGk=\n", ":3: 'aGk=' has the type"),
    "date": ("- stage: compress\n  options:\n    pattern: 2026-01-01\n", ":3: '2026-01-01' has the type"),
    "deep": ("[" * 40 + "]" * 40, ":1: nested deeper"),
    "no list": ("stage: compress\n", ":1: expected a list of stages"),
    "empty": ("", ":1: expected a list of stages"),
    "no yaml": ("- stage: [\n", "not YAML"),
    "key of numbers": ("- {1: 2}\n", ":1: a key that is no word"),
    "long name": (f"- stage: compress\n  inputs: {{{'x' * 80}: {{}}}}\n", "is no name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_recipe_is_refused_by_name_and_line(name: str, tmp_path: Path):
    text, message = HOSTILE[name]
    with pytest.raises(UsageError, match=message) as refusal:
        read_recipe(written(tmp_path, text))
    assert str(refusal.value).startswith(str(tmp_path / "recipe.yaml"))
    assert "\n" not in str(refusal.value)


def test_a_file_of_megabytes_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="bytes, a recipe at most"):
        read_recipe(written(tmp_path, "#" * (1 << 20) + "\n- stage: compress"))


def test_a_stage_has_to_be_there_once(tmp_path: Path):
    file = read_recipe(written(tmp_path, "- stage: export\n- stage: export\n"))
    with pytest.raises(UsageError, match="has 2 stages 'export', expected one"):
        file.stage("export")
    with pytest.raises(UsageError, match="has 0 stages 'compress'"):
        file.stage("compress")
