"""How a model is trained for a task: the table `TRAININGS`, one row per task that can be trained.

A row says what is minimised and how the result is judged; the head and the labels are the task's own, in
`saten_runtime.vocabulary.tasks`.
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
from saten_runtime.vocabulary.tasks import (
    FEATURE_EXTRACTION,
    IMAGE_CLASSIFICATION,
    IMAGES,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TEXT_REGRESSION,
    Task,
)

__all__ = ["TRAININGS", "Training", "training_for"]

Loss = Callable[[Sides], Fraction]


@dataclass(frozen=True)
class Training:
    """label_loss: None where only a teacher can be learned from. distances: to a teacher, by name.

    distilled: those used by default. judged: what a batch adds to `metrics`.
    """

    task: Task
    label_loss: Loss | None
    distances: Mapping[str, Loss]
    distilled: tuple[str, ...]
    judged: Callable[[Sides], tuple[Tensor, Tensor]]
    metrics: Callable[[Any, Any], dict[str, Any]]

    @property
    def inputs(self) -> str:
        """What examples look like: "plain" texts (any strings), labelled "text" or labelled "image"."""
        if self.task.labels is None:
            return "plain"
        return "image" if self.task.takes == (IMAGES,) else "text"


def training_for(name: str) -> Training:
    """The row of the task called `name`.

    Raises:
        UsageError: no such task; the message lists those there are.
    """
    if name not in TRAININGS:
        raise UsageError(f"--task {name!r}: there are {', '.join(TRAININGS)}")
    return TRAININGS[name]


def _logits_and_labels(sides: Sides) -> tuple[Tensor, Tensor]:
    return sides.student.logits.float(), sides.batch["labels"]


_OF_CLASSES: dict[str, Loss] = {"logits": kl_divergence, "hidden": hidden_distance}

_ROWS = (
    Training(
        FEATURE_EXTRACTION,
        label_loss=None,
        distances={"hidden": hidden_distance, "embedding": embedding_distance},
        distilled=("hidden", "embedding"),
        judged=embedding_distance,
        metrics=embedding_metrics,
    ),
    Training(
        TEXT_CLASSIFICATION,
        label_loss=cross_entropy,
        distances=_OF_CLASSES,
        distilled=("logits", "hidden"),
        judged=_logits_and_labels,
        metrics=class_metrics,
    ),
    Training(
        TEXT_REGRESSION,
        label_loss=squared_error,
        distances={"logits": logits_error, "hidden": hidden_distance},
        distilled=("logits", "hidden"),
        judged=_logits_and_labels,
        metrics=value_metrics,
    ),
    Training(
        IMAGE_CLASSIFICATION,
        label_loss=cross_entropy,
        distances=_OF_CLASSES,
        distilled=("logits", "hidden"),
        judged=_logits_and_labels,
        metrics=top_metrics,
    ),
    Training(
        TEXT_GENERATION,
        label_loss=next_token,
        distances=_OF_CLASSES,
        distilled=("logits", "hidden"),
        judged=next_token,
        metrics=language_metrics,
    ),
)
TRAININGS: dict[str, Training] = {row.task.name: row for row in _ROWS}
