"""Fine-tuning in this process: the loss falls, the masks stay, the same seed gives the same weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from saten_edge.checkpoints.compress import compress
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.checkpoints.modules import saten_layers
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import Unstructured
from saten_edge.training.data import Examples, _image_batch, collator, encode
from saten_edge.training.distillation import Distillation
from saten_edge.training.judge import judge
from saten_edge.training.objectives import TRAININGS
from saten_edge.training.run import Outcome, finetune
from saten_edge.training.schedule import Clock, Progress, Schedule, rate
from saten_edge.training.trainer import Objective
from saten_runtime.errors import DataError, SatenError, ShapeError, UsageError
from saten_runtime.run.image import read_picture

SCHEDULE = Schedule(steps=12, batch_size=16, max_length=24, learning_rate=1e-3)
EMBEDDING = TRAININGS["feature-extraction"]


@pytest.fixture(scope="module")
def teacher(tiny_bert: Path) -> LoadedModel:
    return load_model(tiny_bert)


@pytest.fixture
def student(tiny_saten: Path) -> LoadedModel:
    return load_model(tiny_saten)


def plain(texts: list[str]) -> Examples:
    return Examples("texts", [(text,) for text in texts])


def distil(student: LoadedModel, teacher: LoadedModel, texts: list[str], schedule: Schedule, **options: Any) -> Outcome:
    return finetune(student, EMBEDDING, plain(texts), schedule, teacher=teacher, **options)


def weights(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def loss_of(
    task: str, student: LoadedModel, teacher: LoadedModel | None, batch: dict[str, torch.Tensor], **options: Any
) -> float:
    objective = Objective(TRAININGS[task], student, teacher, Distillation(**options))
    with torch.no_grad():
        return float(objective(student.model, batch, lambda value: value))


def batch_of(student: LoadedModel, examples: Examples) -> dict[str, torch.Tensor]:
    return collator(student, examples)(encode(student, examples, examples.labels, 24))


@pytest.mark.parametrize("fixture", ["tiny_saten", "tiny_saten_unstructured"])
def test_the_loss_falls_also_on_texts_not_trained_on(fixture, request, teacher, texts):
    student = load_model(request.getfixturevalue(fixture))
    batches = [student.encode(texts[:80]), student.encode(texts[80:])]
    before = [loss_of("feature-extraction", student, teacher, batch) for batch in batches]
    distil(student, teacher, texts[:80], dataclasses.replace(SCHEDULE, steps=50))
    after = [loss_of("feature-extraction", student, teacher, batch) for batch in batches]
    assert after[0] < 0.9 * before[0]
    assert after[1] < before[1]


def test_without_a_learning_rate_it_does_not_fall(student, teacher, texts):
    """The twin of the above."""
    before = weights(student)
    distil(student, teacher, texts, dataclasses.replace(SCHEDULE, learning_rate=0.0, steps=3))
    assert same(before, weights(student))


def test_the_same_seed_gives_the_same_weights(tiny_saten, teacher, texts):
    trained = []
    for seed in (1, 1, 2):
        student = load_model(tiny_saten)
        distil(student, teacher, texts, dataclasses.replace(SCHEDULE, seed=seed, steps=4))
        trained.append(weights(student))
    assert same(trained[0], trained[1])
    assert not same(trained[0], trained[2])


@pytest.mark.parametrize("fixture", ["tiny_saten", "tiny_saten_unstructured"])
def test_masks_stay_and_all_else_of_a_layer_learns(fixture, request, teacher, texts):
    student = load_model(request.getfixturevalue(fixture))
    before = weights(student)
    distil(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=4))
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
    distil(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=2))
    assert same(before, weights(teacher))
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_what_the_trainer_changes_is_put_back(student, teacher, texts):
    before = student.model.config.to_dict()
    distil(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=1))
    assert student.model.config.to_dict() == before
    assert not student.model.training


def test_progress_counts_the_steps_to_the_end_and_nothing_is_printed(student, teacher, texts, capfd):
    told: list[Progress] = []
    outcome = distil(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=3), report=told.append)
    assert outcome.history == told
    assert [step.step for step in told] == [1, 2, 3]
    assert told[-1].done == 1
    assert outcome.ended == "steps"
    assert all(math.isfinite(step.loss) for step in told)
    assert capfd.readouterr() == ("", "")


def test_minutes_end_it_before_the_steps_do(student, teacher, texts):
    outcome = distil(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=10**6, minutes=0.01))
    assert 1 <= len(outcome.history) < 10**6
    assert outcome.history[-1].done == 1
    assert outcome.ended == "minutes"


def test_epochs_count_whole_batches(student, teacher, texts):
    outcome = distil(student, teacher, texts[:50], dataclasses.replace(SCHEDULE, epochs=1.5, steps=99))
    assert len(outcome.history) == 5  # 3 batches of 16 in 50 texts


def test_it_stops_early_and_keeps_the_best(student, teacher, texts):
    """A learning rate far too high makes the held-out loss rise from the first evaluation on."""
    schedule = dataclasses.replace(
        SCHEDULE, steps=60, learning_rate=3.0, warmup=0.0, hold_out=0.2, patience=2, evaluate_every=2
    )
    outcome = distil(student, teacher, texts, schedule)
    assert outcome.ended == "early stop"
    assert len(outcome.history) < 60


def test_too_few_texts_are_refused(student, teacher):
    with pytest.raises(DataError, match="3 examples to train on, expected at least one batch of 16"):
        distil(student, teacher, ["a", "b", "c"], SCHEDULE)


@pytest.mark.parametrize("options", [{"width": 32}, {"layers": 1}], ids=["width", "depth"])
def test_a_teacher_of_another_shape_is_refused(options, make_bert, student, texts):
    other = load_model(make_bert(**options))
    with pytest.raises(ShapeError, match=r"hidden states are 3 × \(.*64\), the teacher's .*--teacher must be"):
        distil(student, other, texts, SCHEDULE)


def test_what_no_task_distils_is_refused(student, teacher, texts):
    with pytest.raises(UsageError, match="--distill logits: feature-extraction distils hidden, embedding, or none"):
        distil(student, teacher, texts, SCHEDULE, distillation=Distillation(("logits",)))
    with pytest.raises(UsageError, match="learns from a teacher; pass --teacher"):
        finetune(student, EMBEDDING, plain(texts), SCHEDULE)


class TestLoss:
    def test_a_model_is_no_distance_from_itself(self, teacher, texts):
        loss = loss_of("feature-extraction", teacher, teacher, teacher.encode(texts[:4]))
        # the cosine of a unit vector with itself is 1 up to the rounding of its dot product
        assert abs(loss) <= 2 * 64 * torch.finfo(torch.float32).eps

    def test_padding_does_not_count(self, student, teacher, texts):
        """The same texts with more padding around them have the same loss, up to rounding of longer sums."""
        batch = student.encode(texts[:6])
        wider = {
            name: torch.nn.functional.pad(tensor, (0, 9), value=1 if name == "input_ids" else 0)
            for name, tensor in batch.items()
        }
        losses = [loss_of("feature-extraction", student, teacher, given) for given in (batch, wider)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        wider["attention_mask"] = torch.ones_like(wider["attention_mask"])
        assert loss_of("feature-extraction", student, teacher, wider) != pytest.approx(losses[0], rel=1e-2)

    def test_it_grows_with_the_distance(self, student, teacher, texts):
        batch = student.encode(texts[:6])
        near = loss_of("feature-extraction", student, teacher, batch)
        with torch.no_grad():
            for parameter in student.model.parameters():
                parameter.mul_(0.5)
        assert loss_of("feature-extraction", student, teacher, batch) > near

    def test_two_halves_average_to_the_whole(self, student, teacher, texts):
        """What several processes do: each divides by what all hold, and their losses are averaged."""
        batch = student.encode(texts[:8])
        halves = [{name: tensor[k::2] for name, tensor in batch.items()} for k in range(2)]
        objective = Objective(EMBEDDING, student, teacher, Distillation())
        sides = [objective.sides(student.model, half) for half in halves]
        for _, loss in objective.losses:
            fractions = [(top.detach(), bottom) for top, bottom in map(loss, sides)]
            total = sum(f[1] for f in fractions) / 2
            mean = sum(float((f[0] / total).mean()) for f in fractions) / 2
            whole = [part.detach() for part in loss(objective.sides(student.model, batch))]
            # sums of 8 × 24 × 64 terms in another order
            assert mean == pytest.approx(float((whole[0] / whole[1]).mean()), rel=1e-4)
            alone = sum(float((f[0] / f[1]).mean()) for f in fractions) / 2
            assert loss.__name__ != "hidden_distance" or alone != mean

    def test_kl_divergence_is_that_of_the_softened_distributions(self):
        from types import SimpleNamespace

        from saten_edge.training.losses import Sides, kl_divergence

        got, wanted = torch.tensor([[1.0, -1.0], [0.5, 0.0]]), torch.tensor([[0.0, 2.0], [0.5, 0.0]])
        total, count = kl_divergence(Sides({}, SimpleNamespace(logits=got), SimpleNamespace(logits=wanted), (), 2.0))
        p, q = (wanted / 2).softmax(1).double(), (got / 2).softmax(1).double()
        expected = 4 * float((p * (p / q).log()).sum())
        assert float(total) == pytest.approx(expected, rel=1e-5)
        assert float(count) == 2
        assert expected > 0.1


def test_a_photo_is_turned_as_on_the_device(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # Orientation: the camera was held upright
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)

    def processor(images: list[PIL.Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.stack([torch.from_numpy(np.array(image)) for image in images])}

    batch = _image_batch(processor, [{"image": tmp_path / "photo.png"}])
    np.testing.assert_array_equal(batch["pixel_values"][0].numpy(), read_picture(tmp_path / "photo.png"))
    assert batch["pixel_values"].shape[1:3] == (6, 9)


@pytest.fixture(scope="module")
def cases(make_tiny, texts, images, tmp_path_factory) -> dict[str, tuple[LoadedModel, Examples]]:
    """A dense model and examples it can learn, by task: the label is the first text's parity of words."""
    labels = [len(text.split()) % 2 for text in texts]
    pairs = [(a, b) for a, b in itertools.pairwise(texts)]
    bert = make_tiny("bert", "feature-extraction")
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    paths = [(folder / f"{number % len(images)}.png",) for number in range(16)]
    classes = [number % len(images) % 2 for number in range(16)]
    return {
        "feature-extraction": (load_model(bert), plain(texts)),
        "text-classification": (
            load_model(bert, "text-classification", num_labels=2),
            Examples("pairs", pairs, labels[1:]),
        ),
        "text-regression": (
            load_model(bert, "text-classification", num_labels=1),
            Examples("texts", [(text,) for text in texts], [label / 2 for label in labels]),
        ),
        "image-classification": (
            load_model(make_tiny("vit", "feature-extraction"), "image-classification", num_labels=2),
            Examples("images", paths, classes),
        ),
        "text-generation": (load_model(make_tiny("llama", "text-generation")), plain(texts)),
    }


# Tasks whose labels are words or places in a text have tests of their own: test_spans.py, and e2e/test_token_labels.py.
OF_TEXTS = TRAININGS.keys() - {"token-classification", "question-answering"}


class TestTasks:
    @pytest.mark.parametrize("name", sorted(OF_TEXTS))
    def test_it_learns(self, name, cases):
        """The training loss falls, and what judges gets better or stays: it is the training data here."""
        student, examples = cases[name]
        master = load_model(student.folder) if name == "feature-extraction" else None
        if master:  # something to learn: the weights are away from the teacher's
            torch.manual_seed(0)
            with torch.no_grad():
                for parameter in student.model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        first = judge(TRAININGS[name], student, master, examples, 24)
        schedule = dataclasses.replace(SCHEDULE, steps=40, batch_size=8, bf16=False)
        outcome = finetune(student, TRAININGS[name], examples, schedule, teacher=master)
        losses = [step.loss for step in outcome.history]
        assert sum(losses[-8:]) < sum(losses[:8])
        last = judge(TRAININGS[name], student, master, examples, 24)
        assert last.keys() == first.keys()
        assert last != first
        assert last["examples"] == len(examples.inputs)

    @pytest.mark.parametrize("name", sorted(OF_TEXTS - {"feature-extraction"}))
    def test_a_teacher_of_itself_is_no_distance(self, name, cases):
        """Also that every distance of the task can be computed, and that it sees a change."""
        student, examples = cases[name]
        few = Examples("few", examples.inputs[:6], examples.labels[:6] if examples.labels else None)
        batch = batch_of(student, few)
        for part in TRAININGS[name].distances:
            near = loss_of(name, student, student, batch, parts=(part,), label_weight=0.0)
            assert abs(near) <= 1e-6
            other = load_model(
                student.folder,
                TRAININGS[name].task.hub,
                seed=5,
                num_labels=student.model.config.num_labels if few.labels else None,
            )
            with torch.no_grad():
                for parameter in other.model.parameters():
                    parameter.mul_(0.9)
            assert loss_of(name, other, student, batch, parts=(part,), label_weight=0.0) > 1e-5


class TestSchedule:
    def test_the_rate_rises_and_falls(self):
        rates = [rate(done / 100, 0.1) for done in range(101)]
        assert max(rates) == pytest.approx(1.0, abs=0.02)
        assert rates[:10] == sorted(rates[:10])
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert rates[-1] == 0

    def test_steps_or_minutes_whichever_is_further(self):
        assert Clock(10, math.inf, float).done(5) == 0.5
        late = Clock(10, 1.0, float)
        late.resume(54.0)
        assert late.done(5) == pytest.approx(0.9, abs=0.01)
        assert late.done(10) == 1

    def test_labels_are_learned_more_slowly_than_a_teacher_alone(self):
        with_labels, without = (Schedule().settled(value).learning_rate for value in (True, False))
        assert with_labels < without
        assert Schedule(learning_rate=0.25).settled(True).learning_rate == 0.25


class TestReselection:
    @pytest.mark.parametrize("fixture", ["tiny_saten", "tiny_saten_unstructured"])
    def test_masks_move_and_bytes_do_not_grow(self, fixture, request, monkeypatch, teacher, texts):
        monkeypatch.setattr("saten_edge.training.masks.EVERY", 2)
        student = load_model(request.getfixturevalue(fixture))
        before = weights(student)
        distil(student, teacher, texts, dataclasses.replace(SCHEDULE, steps=5, reselect_until=4))
        after = weights(student)
        assert {name: (t.shape, t.dtype) for name, t in before.items()} == {
            name: (t.shape, t.dtype) for name, t in after.items()
        }
        moved = []
        for name, layer in saten_layers(student.model).items():
            layer.residual.check(name)
            moved += [
                not torch.equal(before[f"{name}.residual.{index}"], after[f"{name}.residual.{index}"])
                for index in layer.residual.index_names
                if layer.residual.values.numel()
            ]
        assert any(moved)

    def test_the_smallest_give_way_to_the_largest_gradients(self, tiny_saten_unstructured):
        """Against a brute force over all entries of one matrix."""
        from saten_edge.decomposition.residual import scatter
        from saten_edge.training.masks import exchange

        student = load_model(tiny_saten_unstructured)
        name, layer = next(
            (n, m)
            for n, m in saten_layers(student.model).items()
            if isinstance(m.residual.pattern, Unstructured) and m.residual.values.numel() > 50
        )
        part = layer.residual
        where = part.pattern.positions(part.index_tensors(), part.shape)
        values, count = part.values.detach().clone(), part.values.numel()
        gradient = torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
        moment = torch.arange(count, dtype=torch.float32) + 1
        old = scatter(moment, where, part.shape).reshape(-1)
        exchange(name, layer, gradient, 0.25, [moment])
        keep = where[values.abs().topk(round(0.75 * count)).indices]
        rest = gradient.reshape(-1).square().clone()
        rest[keep] = -1
        expected = torch.cat([keep, rest.topk(count - len(keep)).indices]).sort().values
        moved = part.pattern.positions(part.index_tensors(), part.shape)
        assert torch.equal(moved.sort().values, expected)
        stayed = torch.isin(moved, keep)
        assert torch.equal(part.dense().reshape(-1)[keep].sort().values, values[torch.isin(where, keep)].sort().values)
        assert torch.equal(moment, torch.where(stayed, old[moved], 0))
        assert not part.values[~stayed].any()

    @pytest.mark.parametrize("pattern", ["grouped", "unstructured", "2:4", "4:8"])
    def test_every_pattern_moves_within_its_own_shapes(self, tiny_bert, pattern):
        from saten_edge.training.masks import exchange

        student = load_model(tiny_bert)
        compress(student, 0.5, pattern=pattern, group=8, recipe=Recipe(rounds=1, share=0.5))
        layers = {name: layer for name, layer in saten_layers(student.model).items() if layer.residual.values.numel()}
        assert layers
        for name, layer in layers.items():
            part = layer.residual
            before = part.pattern.positions(part.index_tensors(), part.shape).reshape(-1)
            shapes = {key: tensor.shape for key, tensor in part.index_tensors().items()}
            gradient = torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
            exchange(name, layer, gradient, 0.3, [])
            after = part.pattern.positions(part.index_tensors(), part.shape).reshape(-1)
            assert {key: tensor.shape for key, tensor in part.index_tensors().items()} == shapes
            # a share of each row or block, so few entries round it to more or less
            assert 0.1 <= (~torch.isin(after, before)).float().mean() <= 0.4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "has no labels"),
        ([0, 1, -1], "example 3 has label -1; expected 0 … 1"),
        ([1, 1, 1], "labels reach 1 but none is 0|all labels are 1"),
        ([0, 0, 0], "all labels are 0; expected two classes at least"),
        ([0, 2, 0], "labels reach 2 but none is 1"),
        ([0, "good", 1], "example 2 has label 'good'; expected a number"),
        ([0, math.nan, 1], "example 2 has label nan"),
        ([0, True, 1], "example 2 has label True"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        Examples("data.jsonl", [("a",), ("b",), ("c",)], labels).classes(None)


def test_labels_beyond_the_models_head_are_refused():
    examples = Examples("data.jsonl", [("a",), ("b",), ("c",)], [0, 1, 2])
    assert examples.classes(3) == 3
    with pytest.raises(SatenError, match="example 3 has label 2; expected 0 … 1"):
        examples.classes(2)
