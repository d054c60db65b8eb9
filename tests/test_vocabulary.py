"""The table of tasks, against transformers, tiny models and the documented format: no column may change unseen.

Each check derives a column from elsewhere. It holds for the table's rows, and for no row in which that column is any
other than it is.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import InferenceClient
from transformers.pipelines import SUPPORTED_TASKS

import saten_edge
import saten_exporters
import saten_runtime
from saten_edge.checkpoints.architectures import ARCHITECTURES, Architecture
from saten_edge.training.objectives import TRAININGS
from saten_exporters.bundles.card import USES
from saten_exporters.tracing.samples import KINDS
from saten_runtime.accuracy.measures import MEASURES
from saten_runtime.bench.plan import Plan, Size
from saten_runtime.run.predict import PREDICTORS
from saten_runtime.vocabulary import files
from saten_runtime.vocabulary.tasks import (
    CLASSES,
    HUB_TASKS,
    IMAGES,
    ITEMS,
    PAIRS,
    PROMPTS,
    TASKS,
    TEXT_CLASSIFICATION,
    TEXT_REGRESSION,
    TEXTS,
    VALUES,
    Task,
    device_task,
)

FORMAT = Path(__file__).parents[1] / "docs" / "bundle.md"
TOKENS, ROWS = 7, 2  # neither is a number of labels
SOME_LABELS = 3
LABELS = {"text-regression": 1, "question-answering": 2}  # the two ends of a span
PRETRAINED = ("AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForMaskedImageModeling")
# What a model puts out beside what its task is for.
ASIDE = {"past_key_values", "pooler_output", "loss"}


# --- where the truth is ------------------------------------------------------------------------------------------


def rows_of_the_hub(hub: str) -> list[Architecture]:
    return [row for row in ARCHITECTURES.values() if hub in row.tasks]


def classes_of(auto: str, row: Architecture) -> list[type[Any]]:
    """transformers' classes that `auto` builds for a family, none where it has none."""
    mapping = getattr(transformers, auto)._model_mapping
    config = type(transformers.AutoConfig.for_model(row.model_type))
    found = mapping.get(config, ())
    return list(found) if isinstance(found, tuple) else [found]


@lru_cache
def model_of(name: str, sizes: tuple[tuple[str, Any], ...]) -> Any:
    """A tiny random model of a task, of the first family that has it."""
    torch.manual_seed(0)
    first = rows_of_the_hub(TASKS[name].hub)[-1 if name == "text-generation" else 0]
    kept = dict(sizes)[first.model_type]
    config = transformers.AutoConfig.for_model(first.model_type, num_labels=LABELS.get(name, SOME_LABELS), **dict(kept))
    return getattr(transformers, TASKS[name].auto).from_config(config).eval()


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    if model.main_input_name == "pixel_values":
        side = model.config.image_size
        return {"pixel_values": torch.linspace(-1, 1, ROWS * 3 * side * side).reshape(ROWS, 3, side, side)}
    return {"input_ids": torch.arange(4, 4 + ROWS * TOKENS).reshape(ROWS, TOKENS)}


@lru_cache
def outputs_of(model: Any) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(model(**inputs_of(model)))


# --- one check for each column ---------------------------------------------------------------------------------


def name_is_in_the_format(row: Task, model: Any) -> bool:
    """Bundles carry it, so the format's page lists it; only a regression is called otherwise than on the hub."""
    listed = re.findall(r"^\| ([a-z-]+) \|", FORMAT.read_text("utf-8").partition("## What each task")[2], re.MULTILINE)
    if model.config.num_labels == 1:
        return row.name in listed and not hasattr(InferenceClient, row.name.replace("-", "_"))
    return row.name in listed and row.name == row.hub


def hub_knows_the_task(row: Task, model: Any) -> bool:
    return hasattr(InferenceClient, row.hub.replace("-", "_")) and _is_built_by(row)


def auto_builds_the_task(row: Task, model: Any) -> bool:
    return _is_built_by(row)


def _is_built_by(row: Task) -> bool:
    """By transformers' own pipeline, or, where it has none any more, by the name."""
    if row.hub in SUPPORTED_TASKS:
        return row.auto in {each.__name__ for each in SUPPORTED_TASKS[row.hub]["pt"]}
    return row.auto == "AutoModelFor" + row.hub.title().replace("-", "")


def suffixes_are_those_of_transformers(row: Task, model: Any) -> bool:
    """Every class of a family we know ends with one of them, and each ends one class."""
    names = {each.__name__ for family in rows_of_the_hub(row.hub) for each in classes_of(type_of(model), family)}
    if model.base_model is model:  # what was trained to fill gaps has no task of its own, and loads as the base model
        families = [family for family in rows_of_the_hub(row.hub) if family.kind != "decoder"]
        names |= {each.__name__ for auto in PRETRAINED for family in families for each in classes_of(auto, family)}
    ended = [{name for name in names if name.endswith(suffix)} for suffix in row.suffixes]
    return all(ended) and set().union(*ended) == names


def type_of(model: Any) -> str:
    return next(row.auto for row in TASKS.values() if type(model) in classes_of(row.auto, _family(model)))


def _family(model: Any) -> Architecture:
    return ARCHITECTURES[model.config.model_type]


def takes_what_models_take(row: Task, model: Any) -> bool:
    """By the main inputs of all families; a prompt is what a model that generates takes, a pair has a span in it."""
    found = [_item(each) for family in rows_of_the_hub(row.hub) for each in classes_of(type_of(model), family)]
    return row.takes == tuple(item for item in ITEMS if item in found)


def _item(kind: type[Any]) -> str:
    if kind.main_input_name == "pixel_values":
        return IMAGES
    if kind.can_generate():
        return PROMPTS
    return PAIRS if "start_positions" in inspect.signature(kind.forward).parameters else TEXTS


def outputs_are_the_models(row: Task, model: Any) -> bool:
    return sorted(row.outputs) == sorted(outputs_of(model).keys() - ASIDE)


def labels_are_what_the_loss_takes(row: Task, model: Any) -> bool:
    """A squared error of numbers, or a cross entropy of classes; none where no output is as wide as the labels."""
    logits = outputs_of(model).get("logits")
    if logits is None or logits.shape[-1] != model.config.num_labels:
        return row.labels is None
    if model.config.num_labels == 1:
        wanted = torch.tensor([0.5, -1.0])
        loss = model(**inputs_of(model), labels=wanted).loss
        return row.labels == VALUES and bool(torch.isclose(loss, ((logits.squeeze(-1) - wanted) ** 2).mean()))
    classes = torch.ones(logits.shape[:-1], dtype=torch.long)
    loss = model(**inputs_of(model), labels=classes).loss
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, -2), classes.flatten())
    return row.labels == CLASSES and bool(torch.isclose(loss, expected))


def pooled_is_what_has_no_head(row: Task, model: Any) -> bool:
    return row.pooled == (model.base_model is model)


def per_item_is_a_row_each(row: Task, model: Any) -> bool:
    first = next(value for name, value in outputs_of(model).items() if name not in ASIDE)
    return row.per_item == (first.shape == (ROWS, model.config.num_labels))


CHECKS: dict[str, Callable[[Task, Any], bool]] = {
    "name": name_is_in_the_format,
    "hub": hub_knows_the_task,
    "auto": auto_builds_the_task,
    "suffixes": suffixes_are_those_of_transformers,
    "takes": takes_what_models_take,
    "outputs": outputs_are_the_models,
    "labels": labels_are_what_the_loss_takes,
    "pooled": pooled_is_what_has_no_head,
    "per_item": per_item_is_a_row_each,
}


def mutants(column: str, value: Any) -> Iterator[Any]:
    """What the column says in other rows, and, of names, one less and one more."""
    yield from {getattr(row, column) for row in TASKS.values()} - {value}
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, tuple):
        yield from (value[:index] + value[index + 1 :] for index in range(len(value)))
        yield (*value, "nonsense")
    else:
        yield from ("nonsense", "")


CELLS = [(name, column) for name in TASKS for column in CHECKS]


@pytest.fixture(scope="module")
def tiny(tiny_sizes: dict[str, dict[str, Any]]) -> Callable[[str], Any]:
    sizes = tuple((kind, tuple(entries.items())) for kind, entries in tiny_sizes.items())
    return lambda name: model_of(name, sizes)


def test_every_column_has_a_check() -> None:
    assert list(CHECKS) == [field.name for field in dataclasses.fields(Task)]


@pytest.mark.parametrize(("name", "column"), CELLS)
def test_no_column_may_change(name: str, column: str, tiny: Callable[[str], Any]) -> None:
    row, check, model = TASKS[name], CHECKS[column], tiny(name)
    assert check(row, model)
    others = list(mutants(column, getattr(row, column)))
    assert others
    for value in others:
        assert not check(dataclasses.replace(row, **{column: value}), model), value


# --- tables of code by these rows -------------------------------------------------------------------------------


def test_every_task_has_its_code() -> None:
    assert set(PREDICTORS) == set(TASKS.values())
    assert {measure.bundle_task for measure in MEASURES} == set(TASKS)
    assert {training.task for training in TRAININGS.values()} <= set(TASKS.values())
    assert {task for row in ARCHITECTURES.values() for task in row.tasks} == set(HUB_TASKS)


def test_everything_that_is_read_has_its_code() -> None:
    assert set(KINDS) == set(USES) == {item for row in TASKS.values() for item in row.takes} == set(ITEMS)
    assert all(Plan().sizes(item) for item in ITEMS)


def test_one_label_makes_a_regression_of_texts_alone() -> None:
    assert device_task("text-classification", 1) is TEXT_REGRESSION
    assert device_task("text-classification", 2) is TEXT_CLASSIFICATION
    assert all(device_task(hub, 1) is row for hub, row in HUB_TASKS.items() if row is not TEXT_CLASSIFICATION)


def test_a_picture_is_timed_as_one_token() -> None:
    assert Plan(batches=(1, 2), tokens=(16, 32)).sizes(IMAGES) == [Size(1, 1), Size(2, 1)]


# --- names of files ----------------------------------------------------------------------------------------------


def repeated(source: str) -> set[str]:
    """Names of `vocabulary.files` that a module spells out itself."""
    names = {getattr(files, constant) for constant in files.__all__}
    found = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return names & {value for value in found if isinstance(value, str)}


def test_a_files_name_stands_once() -> None:
    folders = [Path(package.__path__[0]) for package in (saten_edge, saten_exporters, saten_runtime)]
    modules = [path for folder in folders for path in folder.rglob("*.py") if path != Path(files.__file__)]
    assert len(modules) > 200
    assert {str(path): names for path in modules if (names := repeated(path.read_text("utf-8")))} == {}
    assert repeated(f"folder / '{files.CONFIG_FILE}'") == {files.CONFIG_FILE}
