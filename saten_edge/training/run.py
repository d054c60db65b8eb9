"""One fine-tuning, from examples to a trained model."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from saten_edge.checkpoints.models import LoadedModel, silent_transformers
from saten_edge.training.data import Batches, Examples, checked, collator, encode, split_off
from saten_edge.training.distillation import Distillation
from saten_edge.training.masks import Reselect
from saten_edge.training.objectives import Training
from saten_edge.training.rounding import TakeTurns, precisions, rounded
from saten_edge.training.schedule import Progress, Schedule
from saten_edge.training.trainer import Interrupt, Objective, SatenTrainer, interruptible, training_arguments
from saten_runtime.errors import DataError

__all__ = ["Outcome", "finetune", "last_checkpoint"]


@dataclass(frozen=True)
class Outcome:
    """history: every step. seconds: of training. ended: "steps", "minutes" or "early stop"."""

    history: list[Progress]
    seconds: float
    ended: str


def finetune(
    student: LoadedModel,
    training: Training,
    examples: Examples,
    schedule: Schedule,
    *,
    teacher: LoadedModel | None = None,
    distillation: Distillation | None = None,
    folder: Path | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Train `student` in place.

    folder: where checkpoints of the training are kept; without one nothing is. resume: go on from the last of them.

    Raises:
        DataError: labels that do not fit, or fewer examples than one batch.
        ShapeError: student and teacher differ in width, depth or labels.
        UsageError: nothing to learn from.
        KeyboardInterrupt: after Ctrl-C; the last checkpoint holds what was trained.
    """
    labelled, _ = checked(training, examples, student.model.config.num_labels, taught=teacher is not None)
    objective = Objective(training, student, teacher, distillation or Distillation())
    rows = encode(student, labelled, labelled.labels, schedule.max_length)
    trained_on, held_out = split_off(rows, schedule.kept_aside, schedule.seed)
    interrupt = Interrupt()
    with contextlib.ExitStack() as stack:
        turn = stack.enter_context(_restored(student, schedule))
        working = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments = training_arguments(working, schedule, save=folder is not None, unused=objective.leaves_unused)

        def batches(rows: list[dict[str, Any]], size: int) -> Batches:
            share = {"process": arguments.process_index, "processes": arguments.world_size}
            return Batches(rows, collator(student, labelled), size, seed=schedule.seed, **share)

        feed = batches(trained_on, schedule.batch_size)
        if not len(feed):
            raise DataError(
                f"{examples.source}: {len(trained_on)} examples to train on, expected at least one batch of "
                f"{schedule.batch_size * arguments.world_size}; lower --batch-size"
            )
        arguments.max_steps = schedule.total_steps(len(feed))
        trainer = SatenTrainer(
            student,
            objective,
            feed,
            batches(held_out, min(schedule.batch_size, len(held_out))) if schedule.patience else None,
            schedule,
            arguments,
            [interrupt, TakeTurns(turn), *_callbacks(schedule)],
            report=report,
        )
        if teacher is not None:
            teacher.model.to(arguments.device)
        stack.enter_context(interruptible(interrupt, arguments.world_size))
        trainer.train(resume_from_checkpoint=_checkpoint(folder) if resume and folder else None)
    if interrupt.pressed:
        raise KeyboardInterrupt
    return Outcome(trainer.history, trainer.clock.seconds, trainer.ended)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in the folder of a training, if there is one."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next((path for path in reversed(found) if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    """Whether Trainer came to write its last file whole."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _checkpoint(folder: Path) -> str | None:
    found = last_checkpoint(folder)
    return None if found is None else str(found)


def _callbacks(schedule: Schedule) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = []
    if schedule.patience:
        callbacks.append(EarlyStoppingCallback(schedule.patience))
    if schedule.reselect_until:
        callbacks.append(Reselect(schedule.reselect_until))
    return callbacks


@contextlib.contextmanager
def _restored(student: LoadedModel, schedule: Schedule) -> Iterator[Callable[[int], None]]:
    """Rounds as the schedule says, silences Trainer and transformers, and puts back what they change of a model.

    Yields what `rounded` does.
    """
    config, cached = student.model.config, getattr(student.model.config, "use_cache", None)
    try:
        with silent_transformers(), rounded(student.model, *precisions(schedule.precision)) as turn:
            yield turn
    finally:
        if cached is None:
            config.__dict__.pop("use_cache", None)
        else:
            config.use_cache = cached
        student.model.eval()
