"""Fine-tune a compressed model towards the dense one it was made from.

The student learns the teacher's pooled embedding and its hidden states after every block (as in Jiao et al.,
"TinyBERT", EMNLP 2020), on plain texts without labels. Masks stay fixed; cores, residual values and
what stayed dense are trained.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saten_edge.models import LoadedModel
from saten_runtime.errors import DataError, ShapeError

__all__ = ["Progress", "Schedule", "distill", "distillation_loss"]


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train.

    steps: optimizer steps; minutes: wall-clock limit, whichever ends first (the learning rate then falls
    to zero at that end). warmup: share of the training in which the learning rate rises. bf16: products in
    bfloat16, weights and sums in float32; None where this processor multiplies bfloat16 in hardware.
    """

    steps: int = 400
    minutes: float = math.inf
    batch_size: int = 32
    max_length: int = 64
    learning_rate: float = 5e-4
    warmup: float = 0.05
    seed: int = 0
    bf16: bool | None = None


@dataclass(frozen=True)
class Progress:
    """One optimizer step: its number from 1, its loss, and the share of the training that is done."""

    step: int
    loss: float
    done: float


def distill(
    student: LoadedModel,
    teacher: LoadedModel,
    texts: list[str],
    schedule: Schedule,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Progress]:
    """Train `student` in place; returns one `Progress` per step.

    Raises:
        DataError: fewer texts than one batch.
        ShapeError: student and teacher differ in width or depth.
    """
    if len(texts) < schedule.batch_size:
        raise DataError(f"{len(texts)} texts to train on, expected at least one batch of {schedule.batch_size}")
    torch.manual_seed(schedule.seed)
    parameters = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=0.0)
    batches = _batches(texts, schedule)
    bf16 = _multiplies_bf16() if schedule.bf16 is None else schedule.bf16
    started, history, done = time.monotonic(), list[Progress](), 0.0
    student.model.eval()  # distillation has a target for every activation; dropout would only blur it
    while done < 1:
        optimizer.param_groups[0]["lr"] = schedule.learning_rate * _rate(done, schedule.warmup)
        batch = student.encode(next(batches), schedule.max_length)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = distillation_loss(student, teacher, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        elapsed = (time.monotonic() - started) / 60
        done = min(1.0, max((len(history) + 1) / schedule.steps, elapsed / schedule.minutes))
        history.append(Progress(len(history) + 1, loss.item(), done))
        report(history[-1])
    return history


def distillation_loss(student: LoadedModel, teacher: LoadedModel, batch: dict[str, Tensor]) -> Tensor:
    """Relative error of the hidden states, averaged over layers, plus the cosine distance of the embeddings.

    Raises:
        ShapeError: the two models differ in width or depth.
    """
    mask = batch["attention_mask"]
    with torch.no_grad():
        wanted = teacher.model(**batch, output_hidden_states=True)
    got = student.model(**batch, output_hidden_states=True)
    if [state.shape for state in got.hidden_states] != [state.shape for state in wanted.hidden_states]:
        raise ShapeError(
            f"the student's hidden states are {len(got.hidden_states)} × {tuple(got.hidden_states[0].shape)}, the "
            f"teacher's {len(wanted.hidden_states)} × {tuple(wanted.hidden_states[0].shape)}; "
            "--teacher must be the model that was compressed"
        )
    kept = mask.bool()
    pairs = zip(got.hidden_states, wanted.hidden_states, strict=True)
    hidden = torch.stack([_relative_error(a[kept].float(), b[kept].float()) for a, b in pairs]).mean()
    pooled = (
        student.pool(got.last_hidden_state.float(), mask),
        teacher.pool(wanted.last_hidden_state.float(), mask),
    )
    return hidden + (1 - torch.nn.functional.cosine_similarity(*pooled)).mean()


def _relative_error(got: Tensor, wanted: Tensor) -> Tensor:
    return (got - wanted).square().sum() / wanted.square().sum()


def _multiplies_bf16() -> bool:
    """Whether this processor has bfloat16 products; emulating them is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "neon_bf16"))


def _rate(done: float, warmup: float) -> float:
    """The learning rate's factor: a linear rise, then half a cosine."""
    if done < warmup:
        return (done + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _batches(texts: list[str], schedule: Schedule) -> Iterator[list[str]]:
    """Batches without end, shuffled each epoch; texts of like length together, so that little is padding."""
    order = random.Random(schedule.seed)  # noqa: S311 - shuffling, not a secret
    size = schedule.batch_size
    while True:
        shuffled = order.sample(texts, len(texts))
        for start in range(0, len(shuffled) - size + 1, size * 16):
            pool = sorted(shuffled[start : start + size * 16], key=len)
            chunks = [pool[k : k + size] for k in range(0, len(pool) - size + 1, size)]
            yield from order.sample(chunks, len(chunks))
