"""Losses over a vocabulary, in chunks, are those of the whole logits, and the whole logits are never there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.training import heads
from saten_edge.training.distillation import Distillation
from saten_edge.training.losses import Sides, kl_divergence, next_token
from saten_edge.training.objectives import TRAININGS
from saten_edge.training.trainer import Objective

DECODERS = ("llama", "qwen2", "gpt2")
LEARNING = Distillation(label_weight=0.5)


class Largest(TorchDispatchMode):
    """Remembers the most values that a tensor had."""

    values = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, torch.Tensor):
                self.values = max(self.values, each.numel())
        return made


@pytest.fixture(params=DECODERS)
def models(request, make_tiny) -> tuple[LoadedModel, LoadedModel]:
    """Teacher and student, which differs a little from it."""
    folder = make_tiny(request.param, "text-generation")
    teacher, student = load_model(folder), load_model(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return teacher, student


def whole_logits(objective: Objective, student: LoadedModel, teacher: LoadedModel, batch: dict) -> Sides:
    with torch.no_grad():
        wanted = teacher.model(**batch, output_hidden_states=True)
    return Sides(batch, student.model(**batch, output_hidden_states=True), wanted, (), objective.temperature)


def gradients(student: LoadedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    student.model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in student.model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("loss", [next_token, kl_divergence])
def test_a_loss_in_chunks_is_that_of_the_whole(loss, models, texts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "ROWS", 5)
    teacher, student = models
    batch = student.encode(texts[:5], 24)
    objective = Objective(TRAININGS["text-generation"], student, teacher, LEARNING)
    got, wanted = (
        loss(sides)
        for sides in (objective.sides(student.model, batch), whole_logits(objective, student, teacher, batch))
    )
    assert got[0].item() == pytest.approx(wanted[0].item(), rel=1e-5)
    assert got[1] == wanted[1] > 20
    # float32 sums of a few hundred terms, in another order
    for ours, theirs in zip(gradients(student, got[0]), gradients(student, wanted[0]), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()) + 1e-7)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    changed = objective.sides(student.model, batch)
    changed.student.hidden_states = [1.1 * states for states in changed.student.hidden_states]
    assert loss(changed)[0].item() != pytest.approx(wanted[0].item(), rel=1e-3)


def test_the_logits_of_a_batch_are_never_there(make_tiny, texts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "ROWS", 4)
    folder = make_tiny("llama", "text-generation")
    teacher, student = load_model(folder), load_model(folder)
    batch = student.encode(texts[:24], 24)
    objective = Objective(TRAININGS["text-generation"], student, teacher, LEARNING)
    all_logits = batch["input_ids"].numel() * student.model.config.vocab_size
    with Largest() as seen:
        objective(student.model, batch, lambda value: value).backward()
    assert seen.values < all_logits / 2
    with Largest() as seen:
        next_token(whole_logits(objective, student, teacher, batch))[0].backward()
    assert seen.values >= all_logits
