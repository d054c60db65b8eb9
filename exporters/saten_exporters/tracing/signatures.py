"""What a model of each task takes and gives: the table `TASKS`."""

from __future__ import annotations

from dataclasses import dataclass

from saten_exporters.exportable import Exportable
from saten_exporters.tracing.samples import CACHED, PIXELS, TOKENS, Kind
from saten_runtime.errors import ExportError, UsageError

__all__ = ["TASKS", "Task", "kind_of", "name_on_the_device", "name_on_the_hub", "task_of"]


@dataclass(frozen=True)
class Task:
    """outputs: what a graph must put out. kinds: of inputs, one per kind of model that has the task.

    classes: whether the config names the classes. pooled: whether the manifest says how a vector comes of the output.
    """

    outputs: tuple[str, ...]
    kinds: tuple[Kind, ...] = (TOKENS,)
    classes: bool = False
    pooled: bool = False


TASKS = {
    "feature-extraction": Task(("last_hidden_state",), kinds=(TOKENS, PIXELS), pooled=True),
    "text-classification": Task(("logits",), classes=True),
    "token-classification": Task(("logits",), classes=True),
    "question-answering": Task(("start_logits", "end_logits")),
    "image-classification": Task(("logits",), kinds=(PIXELS,), classes=True),
    "text-generation": Task(("logits",), kinds=(CACHED,)),
}


def task_of(source: Exportable, asked: str | None) -> Task:
    """The row of a model's task.

    Raises:
        UsageError: another task was asked for than the model was loaded for.
        ExportError: there is no such task, or the model has an option that no graph of the task expresses.
    """
    if asked not in (None, source.task):
        raise UsageError(f"{source.source['model']}: is loaded for {source.task}; load it for {asked} to export that")
    if source.task not in TASKS:
        raise ExportError(f"no task {source.task!r}; there are: {', '.join(TASKS)}")
    problem = getattr(source.model.config, "problem_type", None)
    if TASKS[source.task].classes and problem == "multi_label_classification":
        raise ExportError(
            f"{source.source['model']}: problem_type = {problem!r} cannot be expressed; "
            "a bundle says one class per item"
        )
    return TASKS[source.task]


def kind_of(source: Exportable) -> Kind:
    """The kind of the model's inputs."""
    kinds = TASKS[source.task].kinds
    return next(kind for kind in kinds if kind.pictures == (source.processor is not None))


# A classification by one label is a regression; the device knows it by a name of its own, and the hub does not.
CLASSIFICATION, REGRESSION = "text-classification", "text-regression"


def name_on_the_device(source: Exportable) -> str:
    """What a manifest calls the model's task."""
    return REGRESSION if source.task == CLASSIFICATION and source.model.config.num_labels == 1 else source.task


def name_on_the_hub(task: str) -> str:
    """What the hub and transformers.js call a manifest's task."""
    return CLASSIFICATION if task == REGRESSION else task
