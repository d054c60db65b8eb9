"""What one fine-tuning needs, read and checked; its working folder; what it leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from saten_edge.checkpoints.architectures import task_of
from saten_edge.checkpoints.checkpoint import add_stage
from saten_edge.checkpoints.compress import layer_errors
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.checkpoints.modules import saten_layers
from saten_edge.training.data import Examples, checked, read_examples
from saten_edge.training.distillation import Distillation
from saten_edge.training.judge import judge
from saten_edge.training.objectives import TRAININGS, Training, training_for
from saten_edge.training.rounding import check_precision, rounded
from saten_edge.training.run import finetune, last_checkpoint
from saten_edge.training.schedule import Progress, Schedule
from saten_runtime.bundle.recipe import Option, Stage, options_of, versions_here
from saten_runtime.errors import CheckpointError, UsageError
from saten_runtime.machine.lock import output_lock
from saten_runtime.records.files import read_json, write_json
from saten_runtime.vocabulary.files import CONFIG_FILE
from saten_runtime.vocabulary.tasks import (
    FEATURE_EXTRACTION,
    HUB_TASKS,
    IMAGE_CLASSIFICATION,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TEXT_REGRESSION,
    VALUES,
)

__all__ = ["Job", "prepare"]

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Job:
    """A model, what it learns from, and how. settings: all of that as JSON, to tell one training from
    another; stage: the same for the recipe.
    """

    student: LoadedModel
    teacher: LoadedModel | None
    training: Training
    examples: Examples
    judged_on: Examples | None
    schedule: Schedule
    distillation: Distillation
    settings: dict[str, Any]
    stage: Stage

    @property
    def writes(self) -> bool:
        """Whether this process, of those that train together, writes the result."""
        return bool(_processes().is_main_process)

    @contextlib.contextmanager
    def keeping(self, out: Path, *, resume: bool, overwrite: bool) -> Iterator[Path]:
        """The working folder beside `out`, which goes when the block ends well and stays when it is interrupted.

        Raises:
            UsageError: there is one of an interrupted training, and neither `resume` nor `overwrite`, or of another;
                or another run writes to `out`.
        """
        folder = out.with_name(f".{out.name}.training")
        with output_lock(out) if self.writes else contextlib.nullcontext():
            try:
                if self.writes:
                    self._claim(folder, resume=resume, overwrite=overwrite)
                _processes().wait_for_everyone()
                yield folder
            except BaseException:
                if self.writes and last_checkpoint(folder) is None:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            if self.writes:
                shutil.rmtree(folder, ignore_errors=True)

    def interrupted(self, folder: Path) -> str:
        """What to say when Ctrl-C ended the training."""
        kept = last_checkpoint(folder)
        if kept is None:
            return "interrupted before anything was saved"
        return f"interrupted; --resume goes on after step {kept.name.rpartition('-')[2]}, saved in {folder}"

    def run(self, folder: Path, *, resume: bool, report: Callable[[Progress], None]) -> dict[str, Any]:
        """Train the student in place; the content of `metrics.json`."""
        with rounded(self.student.model, self.schedule.precision):
            before = self._judged()
            trained = finetune(
                self.student,
                self.training,
                self.examples,
                self.schedule,
                teacher=self.teacher,
                distillation=self.distillation,
                folder=folder,
                resume=resume,
                report=report,
            )
            after = self._judged()
        outcome: dict[str, Option] = {"steps": len(trained.history), "ended": trained.ended}
        add_stage(self.student.model, dataclasses.replace(self.stage, outcome=outcome))
        return {
            "settings": self.settings,
            **outcome,
            "seconds": round(trained.seconds, 3),
            "before": before,
            "after": after,
            "layer_errors": self._layer_errors(),
            "history": [dataclasses.asdict(step) for step in trained.history],
        }

    def _judged(self) -> dict[str, Any] | None:
        if self.judged_on is None:
            return None
        return judge(self.training, self.student, self.teacher, self.judged_on, self.schedule.max_length)

    def _layer_errors(self) -> dict[str, float] | None:
        """Of every compressed layer against the teacher's, where the teacher is what was compressed."""
        layers = saten_layers(self.student.model)
        if self.teacher is None or not layers or not layers.keys() <= dict(self.teacher.model.named_modules()).keys():
            return None
        return layer_errors(self.student.model, self.teacher.model)

    def _claim(self, folder: Path, *, resume: bool, overwrite: bool) -> None:
        if last_checkpoint(folder) is not None and not resume and not overwrite:
            raise UsageError(f"{folder}: an interrupted training; pass --resume to go on, or --overwrite to start anew")
        settings = folder / SETTINGS_FILE
        if resume and settings.is_file():
            found = read_json(settings, CheckpointError)
            other = sorted(name for name in self.settings if found.get(name) != self.settings[name])
            if other:
                raise UsageError(
                    f"{folder}: the interrupted training had another {', '.join(other)}; "
                    "repeat its options, or pass --overwrite without --resume to start anew"
                )
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(settings, self.settings)


def prepare(
    model: str | Path,
    data: str | Examples,
    task: str | None,
    split: str,
    teacher: str | Path | None,
    judged_on: str | None,
    judged_split: str,
    schedule: Schedule,
    distillation: Distillation | None,
) -> Job:
    """Read and check everything.

    Raises:
        SatenError: whatever does not fit; nothing has been written yet.
    """
    check_precision(schedule.precision)
    wanted = training_for(task) if task is not None else None
    examples = (
        data if isinstance(data, Examples) else read_examples(data, wanted.inputs if wanted else None, split=split)
    )
    family, known = _head(model)
    row = _settle(wanted or _guess(examples, family), examples, family, known)
    labelled, outputs = checked(row, examples, known if family == row.task.hub else None)
    student = load_model(model, row.task.hub, num_labels=outputs, seed=schedule.seed)
    if row.task.labels == VALUES and family != row.task.hub:
        _start_at_mean(student, labelled)
    master = load_model(teacher, row.task.hub) if teacher is not None else None
    if row.label_loss is None and not student.layer_parts():
        raise UsageError(f"{model}: has no compressed layer; run `saten-edge compress` first")
    judging = read_examples(judged_on, row.inputs, split=judged_split) if judged_on is not None else None
    if judging is not None:
        checked(row, judging, outputs)
    learning = distillation or Distillation()
    settled = schedule.settled(row.label_loss is not None)
    parts = learning.chosen(row, master is not None)
    inputs = {"model": options_of(**student.source), "data": labelled.described()}
    inputs |= {"teacher": options_of(**master.source)} if master is not None else {}
    options = options_of(settled, learning, task=row.task.name, split=split, parts=parts)
    stage = Stage("finetune", options, inputs, versions=versions_here())
    settings = {
        "model": student.source,
        "task": row.task.name,
        "data": labelled.source,
        "examples": len(labelled.inputs),
        "teacher": master.source if master is not None else None,
        "schedule": options_of(settled),
        "distillation": options_of(learning),
    }
    return Job(student, master, row, labelled, judging, settled, learning, settings, stage)


def _processes() -> PartialState:
    """Those that train together, as torchrun or accelerate started them."""
    return PartialState(cpu=not torch.cuda.is_available())


def _head(model: str | Path) -> tuple[str | None, int | None]:
    """The task a model has its head for, as the hub names it, and the number of outputs of a classifier."""
    folder = Path(model)
    if not (folder / CONFIG_FILE).is_file():
        return None, None
    config = read_json(folder / CONFIG_FILE, CheckpointError)
    found = task_of(list(config.get("architectures") or ()))
    return found, len(config.get("id2label") or range(2)) if HUB_TASKS[found].labels else None


def _guess(examples: Examples, family: str | None) -> Training:
    """By labels in the data, else by the model's head."""
    if examples.labels is not None:
        return TRAININGS[(IMAGE_CLASSIFICATION if examples.images else TEXT_CLASSIFICATION).name]
    return TRAININGS[(TEXT_GENERATION if family == TEXT_GENERATION.hub else FEATURE_EXTRACTION).name]


def _settle(training: Training, examples: Examples, family: str | None, known: int | None) -> Training:
    """A classification of texts is a regression where the labels are real, or the model's head has one output."""
    if training.task != TEXT_CLASSIFICATION:
        return training
    regression = known == 1 if family == training.task.hub else examples.classes(None) is None
    return TRAININGS[TEXT_REGRESSION.name] if regression else training


def _start_at_mean(student: LoadedModel, examples: Examples) -> None:
    """A new regression head says the mean label at first; many steps would otherwise go into that one number."""
    labels = examples.labels or []
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if name.endswith(".bias") and parameter.shape == (1,):
                parameter.fill_(sum(map(float, labels)) / len(labels))
