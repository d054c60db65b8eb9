"""How a model is trained for a task: the table `TRAININGS`, one row per task that can be trained.

A row says what is minimised and how the result is judged; the head and the labels are the task's own, in
`saten_runtime.vocabulary.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
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
    span_cross_entropy,
    span_divergence,
    squared_error,
)
from saten_edge.training.metrics import (
    answer_metrics,
    class_metrics,
    embedding_metrics,
    entity_metrics,
    language_metrics,
    top_metrics,
    value_metrics,
)
from saten_runtime.accuracy.metrics import answer_f1, entity_counts, exact_match
from saten_runtime.errors import UsageError
from saten_runtime.run.predict import best_span
from saten_runtime.vocabulary.tasks import (
    FEATURE_EXTRACTION,
    IMAGE_CLASSIFICATION,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TEXT_REGRESSION,
    TOKEN_CLASSIFICATION,
    Task,
)

__all__ = ["TRAININGS", "Training", "training_for"]

Loss = Callable[[Sides], Fraction]


@dataclass(frozen=True)
class Training:
    """label_loss: None where only a teacher can be learned from. distances: to a teacher, by name.

    distilled: those used by default. judged: what a batch adds to `metrics`. inputs: what examples look like:
    "plain" texts (any strings), or with labels: "text", "image", "words" or "question".
    """

    task: Task
    label_loss: Loss | None
    distances: Mapping[str, Loss]
    distilled: tuple[str, ...]
    judged: Callable[[Sides], tuple[Tensor, Tensor]]
    metrics: Callable[[Any, Any], dict[str, Any]]
    inputs: str = "text"

    @property
    def labelled(self) -> bool:
        """Whether examples can have labels."""
        return self.inputs != "plain"


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


def _entities(sides: Sides) -> tuple[Tensor, Tensor]:
    """For each example (entities found, predicted, wanted) and (words that are right, all), as the device counts."""
    entities, words = [], []
    for row, note in zip(sides.student.logits.argmax(-1).tolist(), sides.notes, strict=True):
        said = ["O"] * len(note.wanted)  # what was cut off, or is no token, was not found
        for token in range(len(note.spans.words) - 1, -1, -1):  # the first token of a word is the last to speak
            if note.spans.words[token] >= 0:
                said[note.spans.words[token]] = note.names[row[token]]
        entities.append(entity_counts(said, note.wanted))
        words.append((sum(one == other for one, other in zip(said, note.wanted, strict=True)), len(said)))
    return torch.tensor(entities), torch.tensor(words)


def _answers(sides: Sides) -> tuple[Tensor, Tensor]:
    """For each window (number of the example, score of its answer) and (exact match, F1), as the device answers."""
    places, scores = [], []
    logits = (side.float().cpu().numpy() for side in (sides.student.start_logits, sides.student.end_logits))
    for starts, ends, note in zip(*logits, sides.notes, strict=True):
        answer = best_span(note.context, note.spans, starts.astype(np.float32), ends.astype(np.float32))
        places.append((note.number, answer.score))
        scores.append((exact_match(answer.text, note.answers), answer_f1(answer.text, note.answers)))
    return torch.tensor(places, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64)


_OF_CLASSES: dict[str, Loss] = {"logits": kl_divergence, "hidden": hidden_distance}

_ROWS = (
    Training(
        FEATURE_EXTRACTION,
        label_loss=None,
        distances={"hidden": hidden_distance, "embedding": embedding_distance},
        distilled=("hidden", "embedding"),
        judged=embedding_distance,
        metrics=embedding_metrics,
        inputs="plain",
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
        inputs="image",
    ),
    Training(
        TOKEN_CLASSIFICATION,
        label_loss=cross_entropy,
        distances=_OF_CLASSES,
        distilled=("logits", "hidden"),
        judged=_entities,
        metrics=entity_metrics,
        inputs="words",
    ),
    Training(
        QUESTION_ANSWERING,
        label_loss=span_cross_entropy,
        distances={"logits": span_divergence, "hidden": hidden_distance},
        distilled=("logits", "hidden"),
        judged=_answers,
        metrics=answer_metrics,
        inputs="question",
    ),
    Training(
        TEXT_GENERATION,
        label_loss=next_token,
        distances=_OF_CLASSES,
        distilled=("logits", "hidden"),
        judged=next_token,
        metrics=language_metrics,
        inputs="plain",
    ),
)
TRAININGS: dict[str, Training] = {row.task.name: row for row in _ROWS}
