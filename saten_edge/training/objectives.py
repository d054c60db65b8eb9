"""What a model can be trained for: one row per task.

A row says which head a model gets, what its examples look like, what is minimised and how the result is judged.
To add a task, add a row to `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from saten_edge.training.losses import (
    Fraction,
    Sides,
    cross_entropy,
    embedding_distance,
    hidden_distance,
    kl_divergence,
    logits_error,
    next_token,
    squared_error,
)
from saten_edge.training.metrics import class_metrics, embedding_metrics, language_metrics, top_metrics, value_metrics
from saten_runtime.errors import UsageError

__all__ = ["NO_DISTILLATION", "TASKS", "Distillation", "Task", "task_named"]

NO_DISTILLATION = "none"

Loss = Callable[[Sides], Fraction]


@dataclass(frozen=True)
class Task:
    """head: the task's name on the hub, for `load_model`. inputs: "plain" texts (any strings), labelled "text" or
    labelled "image". labels: "classes", "values" or none. label_loss: None where only a teacher can be learned from.
    distances: to a teacher, by name. distilled: those used by default. judged: what a batch adds to `metrics`.
    """

    name: str
    head: str
    inputs: str
    labels: str | None
    label_loss: Loss | None
    distances: Mapping[str, Loss]
    distilled: tuple[str, ...]
    judged: Callable[[Sides], tuple[Tensor, Tensor]]
    metrics: Callable[[Any, Any], dict[str, Any]]


@dataclass(frozen=True)
class Distillation:
    """How a teacher is learned from.

    parts: names in `Task.distances`, or None for the task's own choice. temperature: that logits are divided by.
    label_weight: of the loss on labels, beside a weight of 1 for each part.
    """

    parts: tuple[str, ...] | None = None
    temperature: float = 2.0
    label_weight: float = 1.0

    def chosen(self, task: Task, taught: bool) -> tuple[str, ...]:
        """The parts that are used, none without a teacher.

        Raises:
            UsageError: a part that the task has not, or nothing left to learn from.
        """
        parts = task.distilled if self.parts is None else self.parts
        unknown = sorted(set(parts) - set(task.distances))
        if unknown:
            raise UsageError(
                f"--distill {','.join(unknown)}: {task.name} distils {', '.join(task.distances)}, or {NO_DISTILLATION}"
            )
        if taught and not parts and not (task.label_loss and self.label_weight):
            raise UsageError(f"--distill {NO_DISTILLATION}: there is nothing else to learn from; leave it out")
        if not taught and task.label_loss is None:
            raise UsageError(f"{task.name} learns from a teacher; pass --teacher with the model that was compressed")
        if not taught and self.parts:
            raise UsageError(f"--distill {','.join(parts)} needs a --teacher")
        return parts if taught else ()


def task_named(name: str) -> Task:
    """The row called `name`.

    Raises:
        UsageError: no such task; the message lists those there are.
    """
    if name not in TASKS:
        raise UsageError(f"--task {name!r}: there are {', '.join(TASKS)}")
    return TASKS[name]


def _logits_and_labels(sides: Sides) -> tuple[Tensor, Tensor]:
    return sides.student.logits.float(), sides.batch["labels"]


_OF_CLASSES: dict[str, Loss] = {"logits": kl_divergence, "hidden": hidden_distance}

_ROWS = (
    Task(
        name="feature-extraction",
        head="feature-extraction",
        inputs="plain",
        labels=None,
        label_loss=None,
        distances={"hidden": hidden_distance, "embedding": embedding_distance},
        distilled=("hidden", "embedding"),
        judged=embedding_distance,
        metrics=embedding_metrics,
    ),
    Task(
        name="text-classification",
        head="text-classification",
        inputs="text",
        labels="classes",
        label_loss=cross_entropy,
        distances=_OF_CLASSES,
        distilled=("logits", "hidden"),
        judged=_logits_and_labels,
        metrics=class_metrics,
    ),
    Task(
        name="text-regression",
        head="text-classification",
        inputs="text",
        labels="values",
        label_loss=squared_error,
        distances={"logits": logits_error, "hidden": hidden_distance},
        distilled=("logits", "hidden"),
        judged=_logits_and_labels,
        metrics=value_metrics,
    ),
    Task(
        name="image-classification",
        head="image-classification",
        inputs="image",
        labels="classes",
        label_loss=cross_entropy,
        distances=_OF_CLASSES,
        distilled=("logits", "hidden"),
        judged=_logits_and_labels,
        metrics=top_metrics,
    ),
    Task(
        name="text-generation",
        head="text-generation",
        inputs="plain",
        labels=None,
        label_loss=next_token,
        distances=_OF_CLASSES,
        distilled=("logits", "hidden"),
        judged=next_token,
        metrics=language_metrics,
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}
