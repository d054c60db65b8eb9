"""How long and how hard to train, and how much of that is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from saten_runtime.options import check_ranges, option

__all__ = ["Clock", "Progress", "Schedule", "rate"]


# Peaks of the learning rate. Towards a teacher alone, a compressed model has a target for every activation and bears a
# high one. With labels a lower one leaves less loss, compressed or dense: of MiniLM on SST-2, after 120 steps of 64
# texts, 0.62 at 7e-5, 0.65 at 1.5e-4, 0.68 at 3e-4.
DISTILLATION_RATE = 5e-4
LABEL_RATE = 1e-4


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train.

    steps: optimizer steps; epochs: passes over the data, instead of steps; minutes: wall-clock limit, whichever
    ends first (the learning rate then falls to zero at that end). batch_size: examples per step and process.
    max_length: tokens per text; None is what the model reads, up to 512. learning_rate: its peak; None is `LABEL_RATE`
    or, without labels, `DISTILLATION_RATE`.
    warmup: share of the training in which it rises.
    bf16: products in bfloat16, weights and sums in float32; None where this processor multiplies bfloat16 in hardware.
    reselect_until: the step after which masks are fixed, 0 for masks that always are.
    hold_out: share of the training data kept aside where there is patience; patience: evaluations on it without
    a better loss before the training ends, 0 to never stop early. evaluate_every, save_every: steps between.
    precision: of the bundle to come; the model trains and is judged with its weights rounded as that will store them.

    Raises:
        UsageError: a number out of its range.
    """

    steps: int = option(400, "Optimizer steps at most", low=1)
    epochs: float | None = option(None, "Passes over the data, instead of --steps", low=0.001)
    minutes: float = option(math.inf, "Minutes at most", low=0.01)
    batch_size: int = option(32, "Examples per step and process", low=1)
    max_length: int | None = option(
        None, "Tokens per text at most; by default as many as the model reads, up to 512", low=2
    )
    learning_rate: float | None = option(
        None, "Peak of the learning rate; by default 1e-4 with labels and 5e-4 without", low=0
    )
    warmup: float = option(0.05, "Share of the training in which the learning rate rises", low=0, high=0.9)
    seed: int = option(0, "Seed of a new head and of the order of the examples")
    bf16: bool | None = option(
        None, "Precision of products; by default bf16 where the processor has it", "--bf16/--fp32"
    )
    reselect_until: int = option(0, "Step until which masks may move; 0 keeps them fixed", low=0)
    hold_out: float = option(0.05, "Share of the examples kept aside for --early-stop", low=0, high=0.5)
    patience: int = option(
        0, "Evaluations without a better loss before the training ends; 0 never ends it early", "--early-stop", low=0
    )
    evaluate_every: int = option(50, "Steps between evaluations", low=1)
    save_every: int = option(200, "Steps between the checkpoints that --resume needs", low=1)
    precision: str = option(
        "fp32", "Precision of the bundle to come, or several that take turns; weights are rounded as it will store them"
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def kept_aside(self) -> float:
        """The share of the examples that are not trained on: none where nothing is stopped early."""
        return self.hold_out if self.patience else 0.0

    def settled(self, labelled: bool) -> Schedule:
        """With the learning rate for a training with labels or without, where none is given."""
        default = LABEL_RATE if labelled else DISTILLATION_RATE
        return self if self.learning_rate is not None else replace(self, learning_rate=default)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps at most, with this many in a pass over the data."""
        return self.steps if self.epochs is None else max(1, math.ceil(self.epochs * steps_per_epoch))


@dataclass(frozen=True)
class Progress:
    """One optimizer step: its number from 1, its loss, and the share of the training that is done."""

    step: int
    loss: float
    done: float


class Clock:
    """The share of a training that is done, by its steps or its minutes, whichever is further."""

    def __init__(self, steps: int, minutes: float, agree: Callable[[float], float]) -> None:
        """agree: makes the seconds the same in all processes that train together."""
        self._steps, self._minutes, self._agree = steps, minutes, agree
        self.resume(0.0)

    def resume(self, seconds: float) -> None:
        """Count on from `seconds` of training done before."""
        self._started = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resumption included."""
        return time.monotonic() - self._started

    def done(self, step: int) -> float:
        """0 … 1 after `step` steps."""
        by_time = 0.0 if math.isinf(self._minutes) else self._agree(self.seconds) / (60 * self._minutes)
        return min(1.0, max(step / self._steps, by_time))


def rate(done: float, warmup: float) -> float:
    """The learning rate's factor when `done` of the training is: a linear rise, then half a cosine."""
    if done < warmup:
        return (done + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
