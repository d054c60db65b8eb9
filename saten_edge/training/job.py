"""What one fine-tuning needs, read and checked; its working folder; what it leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from saten_edge.checkpoints.checkpoint import add_stage
from saten_edge.checkpoints.compress import layer_errors
from saten_edge.checkpoints.models import LoadedModel, load_model, task_in
from saten_edge.checkpoints.modules import saten_layers
from saten_edge.checkpoints.resolve import resolve_model
from saten_edge.training.data import Examples, checked, count_cut, cut_length
from saten_edge.training.distillation import Distillation
from saten_edge.training.judge import judge
from saten_edge.training.objectives import TRAININGS, Training, training_for
from saten_edge.training.rounding import precisions, rounded
from saten_edge.training.rows import Rows
from saten_edge.training.run import finetune, last_checkpoint
from saten_edge.training.schedule import Progress, Schedule
from saten_runtime.bundle.recipe import Option, Stage, options_of, versions_here
from saten_runtime.errors import CheckpointError, DataError, UsageError
from saten_runtime.machine.lock import output_lock
from saten_runtime.records.files import read_json, write_json
from saten_runtime.vocabulary.files import CONFIG_FILE
from saten_runtime.vocabulary.tasks import (
    FEATURE_EXTRACTION,
    HUB_TASKS,
    TEXT_CLASSIFICATION,
    TEXT_REGRESSION,
    VALUES,
)

__all__ = ["Job", "prepare"]

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Job:
    """A model, what it learns from, and how. settings: all of that as JSON, to tell one training from
    another; stage: the same for the recipe. cut: examples that are longer than the schedule says.
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
    cut: int = 0

    @property
    def described(self) -> str:
        """What is done, in a phrase."""
        cut = f", {self.cut} of them cut to {self.schedule.max_length} tokens" if self.cut else ""
        unlabelled = self.training.labelled and self.examples.labels is None
        how = f"{self.training.task.name}{', from the teacher alone,' if unlabelled else ''}"
        return f"for {how} on {len(self.examples.inputs)} examples{cut}"

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
            "cut": {"examples": self.cut, "tokens": self.schedule.max_length},
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
        with rounded(self.student.model, precisions(self.schedule.precision)[0]):
            return judge(self.training, self.student, self.teacher, self.judged_on, self.schedule.max_length)

    def _layer_errors(self) -> dict[str, float] | None:
        """Of every compressed layer against the teacher's, where the teacher is what was compressed."""
        layers = saten_layers(self.student.model)
        if self.teacher is None or not layers or saten_layers(self.teacher.model):
            return None
        if not layers.keys() <= dict(self.teacher.model.named_modules()).keys():
            return None
        return layer_errors(self.student.model, self.teacher.model) or None

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
    columns: Mapping[str, str] | None = None,
) -> Job:
    """Read and check everything.

    Raises:
        SatenError: whatever does not fit; nothing has been written yet.
    """
    precisions(schedule.precision)  # refuses one there is not before anything is read
    wanted = training_for(task) if task is not None else None
    found = data if isinstance(data, Examples) else Rows.read(data, split=split, columns=columns)
    head, taught = head_of(model), None if teacher is None else head_of(teacher)
    row = wanted or _training(model, head, taught, found)
    examples = _examples(found, row)
    fitting = head if head.task == row.task.hub else Head(row.task.hub, *(_known(taught, row)))
    examples, names = _numbered(examples, fitting)
    row = _settle(row, examples, fitting, new=head.task != row.task.hub)
    labelled, outputs = checked(row, examples, fitting.labels, taught=teacher is not None)
    # Before the models are fetched and loaded, which takes longest.
    judged = None if judged_on is None else _examples(Rows.read(judged_on, split=judged_split, columns=columns), row)
    master = _teacher(teacher, row) if teacher is not None else None
    student = load_model(model, row.task.hub, num_labels=outputs, seed=schedule.seed)
    if names and head.task != row.task.hub:
        _name_labels(student, names)
    if row.task.labels == VALUES and head.task != row.task.hub and labelled.labels is not None:
        _start_at_mean(student, labelled)
    if (student.processor is not None) != labelled.images:
        what = "images; expected a column image" if student.processor is not None else "texts, not images"
        raise DataError(f"{labelled.source}: {model} takes {what}")
    judging = None
    if judged is not None:
        judging = judged.numbered(student.model.config.label2id)
        checked(row, judging, outputs)
    learning = distillation or Distillation()
    if row.labelled and labelled.labels is None:
        learning = dataclasses.replace(learning, label_weight=0.0)  # all is the teacher's
    settled = schedule.settled(row.label_loss is not None and labelled.labels is not None)
    if not labelled.images:
        settled = dataclasses.replace(settled, max_length=cut_length(student, schedule.max_length))
    return _job(student, master, row, labelled, judging, settled, learning, split)


def _job(
    student: LoadedModel,
    master: LoadedModel | None,
    row: Training,
    labelled: Examples,
    judging: Examples | None,
    settled: Schedule,
    learning: Distillation,
    split: str,
) -> Job:
    """The job, with what the recipe and the working folder say of it."""
    parts = learning.chosen(row, master is not None)
    data = labelled.described()  # which reads every picture
    inputs = {"model": options_of(**student.source), "data": data}
    inputs |= {"teacher": options_of(**master.source)} if master is not None else {}
    options = options_of(settled, learning, task=row.task.name, split=split, parts=parts)
    stage = Stage("finetune", options, inputs, versions=versions_here())
    settings = {
        "model": student.source,
        "task": row.task.name,
        "data": dict(data),
        "teacher": master.source if master is not None else None,
        "schedule": options_of(settled),
        "distillation": options_of(learning),
    }
    cut = 0 if settled.max_length is None else count_cut(student, labelled, settled.max_length)
    return Job(student, master, row, labelled, judging, settled, learning, settings, stage, cut)


def _processes() -> PartialState:
    """Those that train together, as torchrun or accelerate started them."""
    return PartialState(cpu=not torch.cuda.is_available())


@dataclass(frozen=True)
class Head:
    """What a model is for, as the hub names it; of a classifier the number of its outputs and their names."""

    task: str
    labels: int | None = None
    names: Mapping[str, int] = field(default_factory=dict)


def head_of(model: str | Path) -> Head:
    """The head of a model, from its files.

    Raises:
        CheckpointError: there is no such model, or its config is none.
    """
    folder = resolve_model(str(model))
    task = task_in(folder)
    if HUB_TASKS[task].labels is None:
        return Head(task)
    config = read_json(folder / CONFIG_FILE, CheckpointError)
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        return Head(task, len(names), {str(name): int(number) for number, name in names.items()})
    except (AttributeError, ValueError):
        raise CheckpointError(f"{folder / CONFIG_FILE}: id2label does not name labels by their numbers") from None


def _training(model: str | Path, head: Head, taught: Head | None, data: Rows | Examples) -> Training:
    """What a model is trained for: what its head is for; without one what its teacher's is for; else by labels."""
    decides = head if head.task != FEATURE_EXTRACTION.hub or taught is None else taught
    if decides.task == FEATURE_EXTRACTION.hub and taught is None and data.labelled:
        return TRAININGS[data.task.name]
    name = HUB_TASKS[decides.task].name
    if name not in TRAININGS:
        raise UsageError(f"{model}: is for {name}, which cannot be trained; there are {', '.join(TRAININGS)}")
    return TRAININGS[name]


def _examples(data: Rows | Examples, training: Training) -> Examples:
    if isinstance(data, Examples):
        return data
    plain_images = training.inputs == "plain" and data.kind == "image"
    return data.examples("image" if plain_images else training.inputs)


def _known(taught: Head | None, training: Training) -> tuple[int | None, Mapping[str, int]]:
    """Outputs and names of the labels of a teacher of the same task."""
    same = taught is not None and taught.task == training.task.hub
    return (taught.labels, taught.names) if taught is not None and same else (None, {})


def _numbered(examples: Examples, head: Head) -> tuple[Examples, dict[str, int]]:
    """Labels that are words as numbers: the head's, or in the order of the alphabet for a new one."""
    names = dict(head.names) or {name: number for number, name in enumerate(examples.names)}
    return examples.numbered(names), names if examples.names or head.names else {}


def _settle(training: Training, examples: Examples, head: Head, *, new: bool) -> Training:
    """A classification of texts is a regression where the labels are real, or the model's head has one output."""
    if training.task != TEXT_CLASSIFICATION:
        return training
    real = new and examples.labels is not None and examples.classes(head.labels) is None
    return TRAININGS[TEXT_REGRESSION.name] if head.labels == 1 or real else training


def _teacher(name: str | Path, training: Training) -> LoadedModel:
    head = head_of(name)
    if training.labelled and head.task != training.task.hub:
        raise UsageError(
            f"--teacher {name}: is for {head.task}, expected a model for {training.task.hub}; "
            "fine-tune it on the labels first, leave it out, or name another --task"
        )
    return load_model(name, training.task.hub)


def _name_labels(student: LoadedModel, names: Mapping[str, int]) -> None:
    config = student.model.config
    config.id2label, config.label2id = {number: name for name, number in names.items()}, dict(names)


def _start_at_mean(student: LoadedModel, examples: Examples) -> None:
    """A new regression head says the mean label at first; many steps would otherwise go into that one number."""
    labels = examples.labels or []
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if name.endswith(".bias") and parameter.shape == (1,):
                parameter.fill_(sum(map(float, labels)) / len(labels))
