"""Distillation: the loss falls, the masks stay, the same seed gives the same weights."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from saten_edge.finetune import Progress, Schedule, distill, distillation_loss
from saten_edge.models import LoadedModel, load_model
from saten_edge.modules import saten_layers
from saten_runtime.errors import DataError, ShapeError

SCHEDULE = Schedule(steps=12, batch_size=16, max_length=24, learning_rate=1e-3)


@pytest.fixture(scope="module")
def teacher(tiny_bert: Path) -> LoadedModel:
    return load_model(tiny_bert)


@pytest.fixture
def student(tiny_saten: Path) -> LoadedModel:
    return load_model(tiny_saten)


def weights(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("fixture", ["tiny_saten", "tiny_saten_unstructured"])
def test_the_loss_falls_also_on_texts_not_trained_on(fixture, request, teacher, texts):
    student = load_model(request.getfixturevalue(fixture))
    batches = [student.encode(texts[:80]), student.encode(texts[80:])]
    before = [distillation_loss(student, teacher, batch).item() for batch in batches]
    distill(student, teacher, texts[:80], dataclasses.replace(SCHEDULE, steps=50))
    after = [distillation_loss(student, teacher, batch).item() for batch in batches]
    assert after[0] < 0.9 * before[0]
    assert after[1] < before[1]


def test_without_a_learning_rate_it_does_not_fall(student, teacher, texts):
    """The twin of the above."""
    before = weights(student)
    distill(student, teacher, texts, dataclasses.replace(SCHEDULE, learning_rate=0.0, steps=3))
    assert same(before, weights(student))


def test_the_same_seed_gives_the_same_weights(tiny_saten, teacher, texts):
    trained = []
    for seed in (1, 1, 2):
        student = load_model(tiny_saten)
        distill(student, teacher, texts, dataclasses.replace(SCHEDULE, seed=seed, steps=4))
        trained.append(weights(student))
    assert same(trained[0], trained[1])
    assert not same(trained[0], trained[2])


@pytest.mark.parametrize("fixture", ["tiny_saten", "tiny_saten_unstructured"])
def test_masks_stay_and_all_else_of_a_layer_learns(fixture, request, teacher, texts):
    student = load_model(request.getfixturevalue(fixture))
    before = weights(student)
    distill(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=4))
    after = weights(student)
    assert list(before) == list(after)
    for name, layer in saten_layers(student.model).items():
        for index in layer.residual.index_names:
            key = f"{name}.residual.{index}"
            assert torch.equal(before[key], after[key]), key
        for key in (*(f"{name}.cores.{k}" for k in range(len(layer.cores))), f"{name}.residual.values"):
            assert before[key].numel() == 0 or not torch.equal(before[key], after[key]), key


def test_the_teacher_stays_as_it_was(student, teacher, texts):
    before = weights(teacher)
    distill(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=2))
    assert same(before, weights(teacher))
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_progress_counts_the_steps_to_the_end(student, teacher, texts):
    told: list[Progress] = []
    history = distill(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=3), told.append)
    assert history == told
    assert [step.step for step in told] == [1, 2, 3]
    assert told[-1].done == 1
    assert all(math.isfinite(step.loss) for step in told)


def test_minutes_end_it_before_the_steps_do(student, teacher, texts):
    history = distill(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=10**6, minutes=0.002))
    assert 1 <= len(history) < 10**6
    assert history[-1].done == 1


def test_too_few_texts_are_refused(student, teacher):
    with pytest.raises(DataError, match="3 texts to train on, expected at least one batch of 16"):
        distill(student, teacher, ["a", "b", "c"], SCHEDULE)


@pytest.mark.parametrize("options", [{"width": 32}, {"layers": 1}], ids=["width", "depth"])
def test_a_teacher_of_another_shape_is_refused(options, make_bert, student, texts):
    other = load_model(make_bert(**options))
    with pytest.raises(ShapeError, match=r"hidden states are 3 × \(.*64\), the teacher's .*--teacher must be"):
        distill(student, other, texts, SCHEDULE)


class TestLoss:
    def test_a_model_is_no_distance_from_itself(self, teacher, texts):
        loss = distillation_loss(teacher, teacher, teacher.encode(texts[:4])).item()
        # the cosine of a unit vector with itself is 1 up to the rounding of its dot product
        assert abs(loss) <= 2 * 64 * torch.finfo(torch.float32).eps

    def test_padding_does_not_count(self, student, teacher, texts):
        """The same texts with more padding around them have the same loss, up to rounding of longer sums."""
        batch = student.encode(texts[:6])
        wider = {
            name: torch.nn.functional.pad(tensor, (0, 9), value=1 if name == "input_ids" else 0)
            for name, tensor in batch.items()
        }
        losses = [distillation_loss(student, teacher, given).item() for given in (batch, wider)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        wider["attention_mask"] = torch.ones_like(wider["attention_mask"])
        assert distillation_loss(student, teacher, wider).item() != pytest.approx(losses[0], rel=1e-2)

    def test_it_grows_with_the_distance(self, student, teacher, texts):
        batch = student.encode(texts[:6])
        near = distillation_loss(student, teacher, batch).item()
        with torch.no_grad():
            for parameter in student.model.parameters():
                parameter.mul_(0.5)
        assert distillation_loss(student, teacher, batch).item() > near
