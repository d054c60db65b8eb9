"""Every option of every stage stands in the recipe of what it made."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saten_edge.checkpoints.checkpoint import recipe_of
from saten_edge.checkpoints.compress import compress
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.checkpoints.selection import Selection
from saten_edge.checkpoints.stored import Stored
from saten_edge.decomposition.allocation import Measured
from saten_edge.decomposition.recipe import Recipe
from saten_edge.texts import write_lines
from saten_edge.training.distillation import Distillation
from saten_edge.training.job import prepare
from saten_edge.training.schedule import Schedule
from saten_exporters.choice.settings import ExportSettings
from saten_runtime.bundle.explain import explain, explain_table
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.recipe import Option, Stage
from saten_runtime.records.files import digest_of

LAYER, TABLE = "encoder.layer.0.intermediate.dense", "embeddings.position_embeddings"
COMPRESSING: dict[str, Any] = {"budget": 0.5, "pattern": "grouped", "group": 8, "allocation": "uniform"}

# option → another value than the one it has in these tests
OTHER_RECIPE = {
    "order": 3,
    "rounds": 2,
    "share": 0.5,
    "density": 0.1,
    "eps": 0.9,
    "train": "tt-svd",
    "shapes": "search",
    "solver": "alternate",
    "prefer": "speed",
    "target": "arm64",
}
OTHER_SELECTION = {"smallest": 5000, "include": ("*.intermediate.dense",), "exclude": ("*.output.*",)}
OTHER_COMPRESSING = {
    "budget": 0.6,
    "tables": 0.3,
    "pattern": "unstructured",
    "group": 16,
    "allocation": "sensitivity",
}
OTHER_SCHEDULE = {
    "steps": 3,
    "epochs": 2.0,
    "minutes": 1.0,
    "batch_size": 4,
    "max_length": 8,
    "learning_rate": 1e-3,
    "warmup": 0.1,
    "seed": 1,
    "bf16": True,
    "reselect_until": 2,
    "hold_out": 0.1,
    "patience": 1,
    "evaluate_every": 7,
    "save_every": 9,
    "precision": "int8",
}
OTHER_DISTILLATION = {"parts": ("hidden",), "temperature": 3.0, "label_weight": 0.5}
OTHER_EXPORT = {
    "precision": "int8",
    "target": "arm64",
    "rows": 1,
    "lowering": "low-rank",
    "prices": Path("pi5.json"),
    "emulated": True,
}


# What an option is refused without.
WITH: dict[str, dict[str, Any]] = {"target": {"prefer": "speed"}}


def names(options: type) -> list[str]:
    return [field.name for field in dataclasses.fields(options)]


@pytest.fixture(scope="module")
def bert(tiny_bert: Path) -> LoadedModel:
    return load_model(tiny_bert)


def compressed(bert: LoadedModel, **changes: Any) -> Stage:
    """What compressing one layer says of itself, with some options changed."""
    loaded = copy.deepcopy(bert)
    told = {**COMPRESSING, "recipe": Recipe(rounds=1), "selection": Selection(include=(LAYER,)), **changes}
    compress(loaded, told.pop("budget"), **told)
    (stage,) = recipe_of(loaded.model).stages
    return stage


@pytest.mark.parametrize("name", names(Recipe))
def test_options_of_a_decomposition(name: str, bert: LoadedModel) -> None:
    other = dataclasses.replace(Recipe(rounds=1), **{name: OTHER_RECIPE[name]}, **WITH.get(name, {}))
    before, after = compressed(bert), compressed(bert, recipe=other)
    assert after.options[name] == OTHER_RECIPE[name] != before.options[name]


@pytest.mark.parametrize("name", names(Selection))
def test_options_of_a_selection(name: str, bert: LoadedModel) -> None:
    other = dataclasses.replace(Selection(include=(LAYER,)), **{name: OTHER_SELECTION[name]})
    before, after = compressed(bert), compressed(bert, selection=other)
    assert after.options[name] != before.options[name]


@pytest.mark.parametrize(
    "name",
    sorted(
        inspect.signature(compress).parameters.keys()
        # `stored` is two options; an engine changes no byte
        - {"loaded", "recipe", "measured", "selection", "stored", "progress", "kept", "engine"}
    ),
)
def test_options_of_compress(name: str, bert: LoadedModel) -> None:
    texts = {"sha256": "0" * 64, "texts": 3, "tokens": 128}
    moments = {LAYER: torch.eye(64, dtype=torch.float64), TABLE: torch.ones(96, dtype=torch.float64)}
    measured = Measured(moments, {LAYER: 1.0, TABLE: 1.0}, texts)
    usual = {"measured": measured, "selection": Selection(include=(LAYER, TABLE))}
    before, after = compressed(bert, **usual), compressed(bert, **usual, **{name: OTHER_COMPRESSING[name]})
    assert after.options[name] == OTHER_COMPRESSING[name] != before.options[name]
    assert after.inputs["calibration"] == measured.texts
    assert after.inputs["model"]["sha256"] == bert.source["sha256"]


def test_options_of_what_is_counted(bert: LoadedModel) -> None:
    usual = {"selection": Selection(include=(LAYER, TABLE))}
    before = compressed(bert, **usual)
    after = compressed(bert, **usual, stored=Stored("int8", asked={"bits": 3.0}))
    said = [{name: stage.options.get(name) for name in ("precision", "bits")} for stage in (before, after)]
    assert said == [dict.fromkeys(said[0]), {"precision": "int8", "bits": 3.0}]
    assert before.options["budget"]
    assert after.options["budget"] is None


@pytest.fixture(scope="module")
def data(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    write_lines(path, [{"text": text, "label": len(text.split()) % 2} for text in texts])
    return path


def prepared(bert: Path, data: Path, **changes: dict[str, Any]) -> Stage:
    schedule, distillation = Schedule(**changes.get("schedule", {})), Distillation(**changes.get("distillation", {}))
    return prepare(bert, str(data), "feature-extraction", "train", bert, None, "", schedule, distillation).stage


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        *(("schedule", name, OTHER_SCHEDULE[name]) for name in names(Schedule)),
        *(("distillation", name, OTHER_DISTILLATION[name]) for name in names(Distillation)),
    ],
)
def test_options_of_a_training(group: str, name: str, value: Any, tiny_saten: Path, data: Path) -> None:
    before, after = prepared(tiny_saten, data), prepared(tiny_saten, data, **{group: {name: value}})
    assert after.options[name] == (list(value) if isinstance(value, tuple) else value) != before.options[name]


def test_data_of_a_training(tiny_saten: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text().replace("1}", "0}", 1) + json.dumps({"text": "more", "label": 1}) + "\n")
    before, same, after = (prepared(tiny_saten, each).inputs for each in (data, data, other))
    assert before == same
    assert before["data"]["sha256"] != after["data"]["sha256"]
    assert before["teacher"]["sha256"] == before["model"]["sha256"]
    assert (before["data"]["name"], before["data"]["examples"]) == ("train.jsonl", 96)


@pytest.mark.parametrize("name", names(ExportSettings))
def test_options_of_an_export(name: str) -> None:
    before, after = ExportSettings(), ExportSettings(**{name: OTHER_EXPORT[name]})
    value = OTHER_EXPORT[name].name if name == "prices" else OTHER_EXPORT[name]
    assert after.recorded()[name] == value != before.recorded()[name]


def test_a_file_of_lowerings_is_recorded_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text('{"encoder.*": "dense"}')
    assert ExportSettings(lowering=path).recorded()["lowering"] == {"encoder.*": "dense"}


def options(command: dict[str, Any]) -> list[str]:
    return [word for name, value in command.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_a_bundle_says_how_it_was_made(
    tiny_bert: Path, texts: list[str], tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    lines = tmp_path / "texts.jsonl"
    write_lines(lines, [{"text": text} for text in texts])
    student, trained, bundle = (tmp_path / name for name in ("student", "trained", "bundle"))
    told: dict[str, dict[str, Any]] = {
        "compress": {"budget": 0.4, "group": 16, "order": 3, "rounds": 1, "share": 0.7, "smallest": 5000},
        "finetune": {"steps": 2, "batch_size": 4, "max_length": 8, "seed": 7, "learning_rate": 0.002},
        "export": {"precision": "int8", "target": "arm64", "rows": 16, "lowering": "low-rank"},
    }
    more = {"calibration": lines, "texts": 40}
    assert run("compress", tiny_bert, "-o", student, *options({**told["compress"], **more}), "-q")[0] == 0
    more = {"data": lines, "teacher": tiny_bert, "task": "feature-extraction"}
    assert run("finetune", student, "-o", trained, *options({**told["finetune"], **more}), "-q")[0] == 0
    assert run("export", trained, "-o", bundle, *options(told["export"]), "-q")[0] == 0

    opened = Bundle.open(bundle)
    recipe = opened.manifest.recipe
    assert recipe is not None
    assert [stage.stage for stage in recipe.stages] == list(told)
    for stage in recipe.stages:
        found: dict[str, Option] = {name: stage.options[name] for name in told[stage.stage]}
        assert found == told[stage.stage]
        assert {"saten-edge", "torch", "transformers", "onnxruntime"} <= stage.versions.keys()
    first, second, third = recipe.stages
    assert first.options["allocation"] == "sensitivity"
    assert first.inputs["calibration"] == {"sha256": digest_of(texts[:40]), "texts": 40, "tokens": 128}
    assert second.outcome == {"steps": 2, "ended": "steps"}
    assert second.inputs["teacher"]["sha256"] == first.inputs["model"]["sha256"]
    assert third.inputs["prices"]["name"] == "rates.json"

    card, shown = (bundle / "README.md").read_text(), explain_table(explain(opened))
    for words in (
        "recipe: compress allocation=sensitivity, budget=0.4",
        "order=3",
        "seed=7",
        "outcome: ended=steps, steps=2",
        "precision=int8",
    ):
        assert words in card
        assert words in shown
    assert str(tmp_path) not in card


def test_an_older_checkpoint_says_that_it_does_not_know(tiny_saten: Path, copy_of_saten: Path) -> None:
    assert [stage.stage for stage in load_model(tiny_saten).recipe.stages] == ["compress"]
    path = copy_of_saten / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]["recipe"], config["quantization_config"]["files"]["config.json"]
    path.write_text(json.dumps(config))
    assert [stage.stage for stage in load_model(copy_of_saten).recipe.stages] == ["not-recorded"]


@pytest.fixture
def copy_of_saten(tiny_saten: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_saten, tmp_path / "saten"))


def test_a_dense_model_has_no_stages(bert: LoadedModel) -> None:
    assert bert.recipe.stages == ()
