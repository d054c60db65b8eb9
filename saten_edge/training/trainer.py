"""transformers' Trainer with our losses, our batches and our learning rate, and silent.

What is new is `compute_loss`, which learns from labels and from a teacher; the rest takes things away from Trainer
or replaces what a table of ours decides.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from saten_edge.checkpoints.models import LoadedModel
from saten_edge.processor import fast_attention, multiplies_bf16
from saten_edge.training.data import Batches
from saten_edge.training.distillation import Distillation
from saten_edge.training.heads import output_layer, outputs
from saten_edge.training.losses import Fraction, Sides
from saten_edge.training.objectives import Loss, Training
from saten_edge.training.pooling import pooling_of
from saten_edge.training.schedule import Clock, Progress, Schedule, rate
from saten_runtime.records.files import system_errors
from saten_runtime.vocabulary.tasks import TEXT_GENERATION

__all__ = [
    "Interrupt",
    "Objective",
    "SatenTrainer",
    "interruptible",
    "training_arguments",
]

# Seconds after Ctrl-C in which a step may end and be saved; then the training is left as it was saved last.
GRACE_SECONDS = 1.2


class Objective:
    """The weighted sum of the losses of a batch."""

    def __init__(
        self, training: Training, student: LoadedModel, teacher: LoadedModel | None, distillation: Distillation
    ) -> None:
        parts = distillation.chosen(training, teacher is not None)
        weighted: list[tuple[float, Loss]] = [(1.0, training.distances[part]) for part in parts]
        if training.label_loss is not None and distillation.label_weight:
            weighted.append((distillation.label_weight, training.label_loss))
        self.losses, self.teacher, self.temperature = weighted, teacher if parts else None, distillation.temperature
        self.hidden = bool({"hidden", "embedding"} & set(parts))
        self.pools = (pooling_of(student), pooling_of(teacher)) if teacher is not None else ()
        self.models = (student.model, *([self.teacher.model] if self.teacher is not None else []))
        self.chunked = training.task == TEXT_GENERATION
        # a head that no loss looks at
        self.leaves_unused = training.label_loss is not None and not (distillation.label_weight or "logits" in parts)

    def __call__(self, model: Any, batch: Mapping[str, Tensor], average: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss of `model`, the student or what wraps it.

        average: the mean over all processes that train together.
        """
        sides = self.sides(model, batch)
        with torch.autocast(_device(batch).type, enabled=False):
            terms = [weight * _quotient(loss(sides), average) for weight, loss in self.losses]
            return torch.stack(terms).sum()

    def sides(self, model: Any, batch: Mapping[str, Tensor]) -> Sides:
        """Both models' outputs on a batch."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        wanted, how = None, {"hidden": self.hidden, "chunked": self.chunked}
        if self.teacher is not None:
            with torch.no_grad():
                wanted = outputs(self.teacher.model, inputs, **how)
        got = outputs(model, inputs, **how)
        heads = tuple(output_layer(each, _device(batch)) for each in self.models) if self.chunked else ()
        return Sides(batch, got, wanted, self.pools, self.temperature, heads)


class SatenTrainer(Trainer):  # type: ignore[misc]
    """Trains a student by an `Objective`.

    batches: of the training; held_out: those that early stopping listens to, or None. report: called after each step.
    """

    def __init__(
        self,
        student: LoadedModel,
        objective: Objective,
        batches: Batches,
        held_out: Batches | None,
        schedule: Schedule,
        arguments: TrainingArguments,
        callbacks: list[TrainerCallback],
        *,
        report: Callable[[Progress], None],
    ) -> None:
        self._objective, self._batches, self._held_out, self._schedule = objective, batches, held_out, schedule
        self.report, self.done = report, 0.0
        self._bf16 = multiplies_bf16(gpu=torch.cuda.is_available()) if schedule.bf16 is None else schedule.bf16
        super().__init__(
            model=student.model,
            args=arguments,
            train_dataset=batches.dataset,
            eval_dataset=held_out.dataset if held_out is not None else None,
            callbacks=[_Steps(self), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False
        self.clock = Clock(arguments.max_steps, schedule.minutes, self._agreed)

    lr_scheduler: Any

    @property
    def ended(self) -> str:
        """What ended the training: "steps", "minutes" or "early stop"."""
        if self.state.global_step >= self.state.max_steps:
            return "steps"
        return "minutes" if self.done >= 1 else "early stop"

    @property
    def history(self) -> list[Progress]:
        """Every step so far, those before a resumption included."""
        logs = [entry for entry in self.state.log_history if "loss" in entry]
        return [Progress(entry["step"], entry["loss"], entry["done"]) for entry in logs]

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The objective on one batch."""
        if self._objective.teacher is not None:
            model.eval()  # a teacher gives a target for every activation; dropout would only blur it
        with fast_attention(inputs, bf16=self._bf16 and _device(inputs).type == "cpu"):
            return self._objective(model, inputs, self._mean)

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The objective on a held-out batch, with labels or without."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> torch.autocast:
        """bfloat16 products where the schedule has them; accelerate would also change `model.forward` for good."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._bf16)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The learning rate by what is done, in steps or in minutes."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self._rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> Batches:
        """Our batches, which know the processes they are for."""
        return self._batches

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Batches | None:
        """The held-out batches."""
        return self._held_out

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nobody asks; counting walks over all parameters in every step."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep what is done and the seconds beside every loss, so that a resumption finds them."""
        super().log({**logs, "done": self.done, "seconds": self.clock.seconds}, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Weights and config only: Trainer would pickle its arguments beside them."""
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's, with what safetensors and torch could not write as `OSError`."""
        folder = self.args.output_dir
        with system_errors(Path(folder)):
            try:
                super()._save_checkpoint(model, trial)
            except RuntimeError as cause:  # torch's archives say where they stopped, not why
                raise OSError(errno.EIO, "a checkpoint cannot be written, is the disk full?", folder) from cause

    def _rate(self, step: int) -> float:
        self.done = self.clock.done(step) if step else 0.0
        return rate(self.done, self._schedule.warmup)

    def _mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "mean") if self.args.world_size > 1 else value

    def _agreed(self, seconds: float) -> float:
        return float(self._mean(torch.tensor(seconds, dtype=torch.float64, device=self.args.device)))


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Ends the training when its time is over, tells of each step, and takes up the clock of a resumed training."""

    def __init__(self, trainer: SatenTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, at the seconds that were counted before."""
        self._trainer.clock.resume(state.log_history[-1]["seconds"] if state.log_history else 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop where steps or minutes are over."""
        if self._trainer.done >= 1:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
        """Tell of a step."""
        if "loss" in logs:
            self._trainer.report(Progress(state.global_step, logs["loss"], logs["done"]))


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C: the step that runs ends, is saved, and the training stops."""

    def __init__(self) -> None:
        self.pressed = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop, once pressed."""
        if self.pressed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            control.should_save = control.should_training_stop = True


@contextlib.contextmanager
def interruptible(interrupt: Interrupt, processes: int) -> Iterator[None]:
    """Ctrl-C waits for the end of a step, for `GRACE_SECONDS` at most; pressed again, it waits no longer.

    Several processes could not agree on the step: they end at once, and what was saved last remains.
    """
    if processes > 1 or threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return

    def press(number: int, frame: FrameType | None) -> None:
        if interrupt.pressed:
            raise KeyboardInterrupt
        interrupt.pressed = True
        _alarm(GRACE_SECONDS)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGALRM") if hasattr(signal, name)]
    before = [(number, signal.signal(number, press)) for number in numbers]
    try:
        yield
    finally:
        _alarm(0)
        for number, handler in before:
            signal.signal(number, handler)


def _alarm(seconds: float) -> None:
    """Be interrupted after so long, 0 for never; Windows has no such clock, there a second Ctrl-C does it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def training_arguments(folder: Path, schedule: Schedule, *, save: bool, unused: bool) -> TrainingArguments:
    """Trainer's arguments for a schedule in steps: quiet, and without what we do ourselves.

    folder: for its checkpoints. unused: whether parameters of the student may get no gradient.
    """
    listens = schedule.patience > 0
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        seed=schedule.seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if listens else "no",
        eval_steps=schedule.evaluate_every,
        prediction_loss_only=True,
        save_strategy="steps" if save or listens else "no",
        save_steps=schedule.evaluate_every if listens else schedule.save_every,
        save_total_limit=1,
        load_best_model_at_end=listens,
        metric_for_best_model="eval_loss" if listens else None,
        greater_is_better=False if listens else None,
        restore_callback_states_from_checkpoint=listens,
        average_tokens_across_devices=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=unused,
        ddp_broadcast_buffers=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )


def _quotient(fraction: Fraction, average: Callable[[Tensor], Tensor]) -> Tensor:
    numerator, denominator = fraction
    return (numerator / average(denominator)).mean()


def _device(batch: Mapping[str, Tensor]) -> torch.device:
    return next(iter(batch.values())).device
