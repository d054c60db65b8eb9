"""Which row of the vocabulary a model is, and which kind of inputs it takes."""

from __future__ import annotations

from saten_exporters.exportable import Exportable
from saten_exporters.tracing.samples import KINDS, Kind
from saten_runtime.errors import ExportError
from saten_runtime.vocabulary.tasks import CLASSES, HUB_TASKS, IMAGES, Task, device_task

__all__ = ["kind_of", "name_on_the_device", "task_of"]


def task_of(source: Exportable) -> Task:
    """The row of a model's task, as the hub knows it.

    Raises:
        ExportError: there is no such task, or the model has an option that no graph of the task expresses.
    """
    if source.task not in HUB_TASKS:
        raise ExportError(f"no task {source.task!r}; there are: {', '.join(HUB_TASKS)}")
    task, problem = HUB_TASKS[source.task], getattr(source.model.config, "problem_type", None)
    if task.labels == CLASSES and problem == "multi_label_classification":
        raise ExportError(
            f"{source.source['model']}: problem_type = {problem!r} cannot be expressed; "
            "a bundle says one class per item"
        )
    return task


def kind_of(source: Exportable) -> Kind:
    """The kind of the model's inputs."""
    takes = HUB_TASKS[source.task].takes
    return KINDS[takes[0] if source.processor is None else IMAGES]


def name_on_the_device(source: Exportable) -> str:
    """What a manifest calls the model's task."""
    return device_task(source.task, source.model.config.num_labels).name
