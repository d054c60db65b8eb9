"""Which row of the vocabulary a model is, and which kind of inputs it takes."""

from __future__ import annotations

from saten_exporters.exportable import Exportable
from saten_exporters.tracing.samples import KINDS, Kind
from saten_runtime.errors import ExportError
from saten_runtime.vocabulary.tasks import CLASSES, HUB_TASKS, IMAGES, VALUES, Task, device_task

__all__ = ["kind_of", "name_on_the_device", "task_of"]


def task_of(source: Exportable) -> Task:
    """The row of a model's task, as the hub knows it.

    Raises:
        ExportError: there is no such task, or the model has an option that no graph of the task expresses.
    """
    if source.task not in HUB_TASKS:
        raise ExportError(f"no task {source.task!r}; there are: {', '.join(HUB_TASKS)}")
    task = HUB_TASKS[source.task]
    if task.labels == CLASSES:
        _refuse_labels(source)
    return task


def kind_of(source: Exportable) -> Kind:
    """The kind of the model's inputs."""
    takes = HUB_TASKS[source.task].takes
    return KINDS[takes[0] if source.processor is None else IMAGES]


def name_on_the_device(source: Exportable) -> str:
    """What a manifest calls the model's task."""
    return device_task(source.task, source.model.config.num_labels).name


def _refuse_labels(source: Exportable) -> None:
    """Refuse a classifier that says neither one class of several nor, of a text, one number."""
    config = source.model.config
    labels, problem = int(config.num_labels), getattr(config, "problem_type", None)
    valued = device_task(source.task, labels).labels == VALUES
    one = "a bundle says one class per item, or of a text one number"
    if problem == "multi_label_classification" or (problem == "regression" and not valued):
        what = f"problem_type = {problem!r} with {labels} label{'s' * (labels != 1)}"
        raise ExportError(f"{source.source['model']}: {what} cannot be expressed; {one}")
    if labels < 2 and not valued:
        raise ExportError(
            f"{source.source['model']}: num_labels = {labels} cannot be expressed for {source.task}; {one}"
        )
