"""Training with rounded weights computes what the exported bundle computes, and learns through the rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TrainerState

from saten_edge.checkpoints.models import load_model
from saten_edge.training.data import Examples
from saten_edge.training.judge import judge
from saten_edge.training.objectives import TRAININGS
from saten_edge.training.rounding import TakeTurns, precisions, round_activations, round_along, rounded
from saten_edge.training.run import finetune
from saten_edge.training.schedule import Schedule
from saten_exporters import export
from saten_exporters.forms import STORAGES
from saten_exporters.quantize import PRECISIONS
from saten_runtime import Runner
from saten_runtime.errors import UsageError

COARSE = [name for name, precision in PRECISIONS.items() if precision.bits < 32]
EMBEDDING = TRAININGS["feature-extraction"]
# Every layout of a residual, and every way to store a product.
CELLS = [
    ("tiny_bert", "int8"),
    ("tiny_saten", "int8"),
    ("tiny_saten", "int8-block"),
    ("tiny_saten", "int4"),
    ("tiny_saten", "int4-128"),
    ("tiny_saten", "int2"),
    ("tiny_saten_unstructured", "int4"),
    ("tiny_saten_n_of_m", "int8"),
    ("tiny_saten_n_of_m", "int4"),
]


def decoded(name: str, matrix: np.ndarray) -> np.ndarray:
    """What `pack_product` stored of a matrix (in, out), as numbers."""
    storage = STORAGES[name]
    codes, *scales = storage.pack_product(matrix)
    if not scales:
        return codes.astype(np.float32)
    if not storage.precision.block:
        return codes.astype(np.float32) * scales[0]
    bits = storage.precision.bits
    places = range(0, 8, bits)
    codes = np.stack([codes >> place & (2**bits - 1) for place in places], axis=-1).reshape(*codes.shape[:-1], -1)
    zero = 1 << (bits - 1)
    blocks = (codes.astype(np.float32) - zero) * scales[0].reshape(*codes.shape[:2], 1)
    return blocks.reshape(len(codes), -1)[:, : matrix.shape[0]].T


@pytest.mark.parametrize("name", COARSE)
def test_a_matrix_is_rounded_as_it_is_stored(name):
    matrix = np.random.default_rng(3).standard_normal((77, 40)).astype(np.float32)
    got = round_along(torch.from_numpy(matrix), 0, PRECISIONS[name].for_inputs(77)).numpy()
    # a value in the middle between two codes may go either way in float32, so up to one rounding error apart
    np.testing.assert_allclose(got, decoded(name, matrix), rtol=4 * np.finfo(np.float32).eps)
    assert np.abs(got - matrix).max() > 0
    assert not np.allclose(round_along(torch.from_numpy(matrix), 1, PRECISIONS["int8"]).numpy(), got, rtol=1e-6)


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_factor_of_a_train_without_ranks_is_what_it_was(name):
    for shape, dim in (((0, 64), 0), ((64, 0), 0), ((64, 0), 1)):
        how = PRECISIONS[name].for_inputs(shape[dim])
        assert round_along(torch.zeros(shape), dim, how).shape == shape


def test_activations_are_rounded_per_text_and_zero_stays_zero():
    x = torch.tensor([[[0.0, 1.0, -3.0]], [[0.0, 100.0, 50.0]]])
    got = round_activations(x)
    assert torch.equal(got[:, :, 0], x[:, :, 0])
    steps = torch.tensor([4 / 255, 100 / 255])
    assert bool(((got - x).abs().amax((1, 2)) <= steps / 2 + 1e-6).all())
    assert round_activations(torch.zeros(2, 3, 0)).shape == (2, 3, 0)  # of a train without ranks
    together = round_activations(x.reshape(1, 2, 3)).reshape(x.shape)
    assert not torch.allclose(together[0], got[0], atol=float(steps[0]) / 4)


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_the_gradient_passes_as_if_nothing_were_rounded(name):
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    round_along(weight, 0, PRECISIONS[name]).square().sum().backward()
    assert torch.allclose(weight.grad, 2 * round_along(weight, 0, PRECISIONS[name]).detach())


@pytest.mark.usefixtures("standard_operators")
@pytest.mark.parametrize(("folder", "name"), CELLS)
def test_the_model_computes_what_its_bundle_computes(folder, name, request, texts, tmp_path):
    loaded = load_model(request.getfixturevalue(folder))
    lowering = None if folder == "tiny_bert" else "low-rank"
    bundle = export(loaded, tmp_path / "bundle", precision=name, lowering=lowering, max_loss=float("inf"))
    wanted = Runner.load(bundle.path).predict(texts[:8], batch_size=1)

    def distance(precision: str) -> float:
        rows = []
        with torch.no_grad(), rounded(loaded.model, precision):
            for text in texts[:8]:
                batch = loaded.encode([text])
                rows.append(loaded.pool(loaded.model(**batch).last_hidden_state, batch["attention_mask"])[0].numpy())
        return float(np.linalg.norm(np.stack(rows) - wanted))

    # What is left is float32's own rounding, and codes that fall to the other side of a middle because of it.
    assert distance(name) < 0.25 * distance("fp32")


def test_what_is_judged_is_what_each_text_gives_alone(tiny_bert, tiny_saten, texts):
    """Padding would be rounded with a text; the twin is a padded batch."""
    loaded, teacher = load_model(tiny_saten), load_model(tiny_bert)

    def cosine(batches: list[list[str]]) -> float:
        found = []
        with torch.no_grad(), rounded(loaded.model, "int8"):
            for batch in batches:
                given = loaded.encode(batch, 24)
                pair = (loaded.model(**given), teacher.model(**given))
                pooled = [loaded.pool(one.last_hidden_state, given["attention_mask"]) for one in pair]
                found += torch.cosine_similarity(*pooled).tolist()
        return float(np.mean(found))

    with rounded(loaded.model, "int8"):
        judged = judge(EMBEDDING, loaded, teacher, Examples("texts", [(text,) for text in texts]), 24)["cosine"]
    alone, padded = cosine([[text] for text in texts]), cosine([texts])
    assert abs(judged - alone) < 0.1 * abs(judged - padded)


def test_the_model_is_as_before_when_the_block_ends(tiny_saten, texts):
    loaded = load_model(tiny_saten)
    batch = loaded.encode(texts[:4])
    with torch.no_grad():
        before = loaded.model(**batch).last_hidden_state
        with rounded(loaded.model, "int4"):
            within = loaded.model(**batch).last_hidden_state
        after = loaded.model(**batch).last_hidden_state
    assert torch.equal(before, after)
    assert not torch.allclose(before, within, atol=1e-3)


def test_a_model_trained_with_its_bits_loses_less_by_them(tiny_bert, tiny_saten, texts):
    examples = Examples("texts", [(text,) for text in texts])
    teacher = load_model(tiny_bert)

    def distance_after_training_as(precision: str) -> float:
        schedule = Schedule(steps=60, batch_size=16, max_length=24, learning_rate=1e-3, precision=precision)
        student = load_model(tiny_saten)
        finetune(student, EMBEDDING, examples, schedule, teacher=teacher)
        with rounded(student.model, "int4"):
            judged = judge(EMBEDDING, student, teacher, examples, 24)
        return 1 - judged["cosine"]

    assert distance_after_training_as("int4") < 0.9 * distance_after_training_as("fp32")


def test_precisions_take_turns_and_the_first_judges(tiny_saten, texts):
    loaded = load_model(tiny_saten)
    batch = loaded.encode(texts[:4])

    def computed(*names: str) -> torch.Tensor:
        with torch.no_grad(), rounded(loaded.model, *names):
            return loaded.model(**batch).last_hidden_state

    alone = {name: computed(name) for name in ("fp32", "int8", "int4")}
    with torch.no_grad(), rounded(loaded.model, "int4", "int8", "fp32") as turn:
        turns = TakeTurns(turn)
        for step, name in enumerate(["int4", "int8", "fp32", "int4"]):
            turns.on_step_begin(None, TrainerState(global_step=step), None)
            torch.testing.assert_close(loaded.model(**batch).last_hidden_state, alone[name])
            turns.on_step_end(None, TrainerState(global_step=step + 1), None)
            torch.testing.assert_close(loaded.model(**batch).last_hidden_state, alone["int4"])
    assert torch.equal(computed("fp32"), alone["fp32"])
    assert not torch.allclose(alone["int4"], alone["int8"], atol=1e-3)


def test_a_training_takes_them_in_turns(tiny_bert, tiny_saten, texts):
    """With steps too small to change the weights, the loss of each step is that of its precision."""
    teacher, examples = load_model(tiny_bert), Examples("texts", [(text,) for text in texts])

    def losses(precision: str) -> list[float]:
        schedule = Schedule(steps=3, batch_size=16, max_length=24, learning_rate=1e-9, bf16=False, precision=precision)
        return [
            step.loss
            for step in finetune(load_model(tiny_saten), EMBEDDING, examples, schedule, teacher=teacher).history
        ]

    coarse, fine = losses("int4"), losses("fp32")
    assert losses("int4,fp32") == pytest.approx([coarse[0], fine[1], coarse[2]], rel=1e-4)
    assert all(one > 1.05 * other for one, other in zip(coarse, fine, strict=True))


def test_a_precision_that_there_is_not_is_refused():
    assert precisions("int4") == ("int4",)
    assert precisions("int8,int4") == ("int8", "int4")
    for text in ("int3", "int4,int3"):
        with pytest.raises(UsageError, match="--precision int3: there are fp32"):
            precisions(text)
    with pytest.raises(UsageError, match="--precision : there are fp32"):
        precisions("")
