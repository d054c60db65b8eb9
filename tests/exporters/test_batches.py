"""A batch changes nothing: every family with every task gives an item the answer that it gets alone.

Items are of random lengths, in batches of 1 to 8. At fp32, where a row has no share in another's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from saten_edge.checkpoints.architectures import ARCHITECTURES
from saten_edge.checkpoints.models import LoadedModel
from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.generation import Decoder
from saten_runtime.run.runner import Runner
from saten_runtime.run.session import make_session

Export = Callable[[str, str, str, str], tuple[LoadedModel, Bundle]]

# Cells that the battery exports always, too, so that these tests add no export to a usual run.
QUICK = {("bert", "text-classification"), ("modernbert", "text-classification"), ("mistral", "text-classification")}
CELLS = [(family, task) for family, row in ARCHITECTURES.items() for task in row.tasks]
# A sum is rounded in another order where rows are padded to another length.
MARGIN = 8.0
WORDS = st.sampled_from(["the", "number", "of", "path", "Reads", "gar", "x9", "!", "[MASK]"])
TEXTS = st.lists(st.lists(WORDS, max_size=60).map(" ".join), min_size=1, max_size=12)
RAGGED = ["the", "number of path reads the number of path", "", "gar " * 60, "x9 !"]
PATIENT: dict[str, Any] = {"suppress_health_check": (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)}

# task → items made of texts, and numbers made of what was predicted for each item
ITEMS: dict[str, Callable[[list[str]], list[Any]]] = {
    "question-answering": lambda texts: [(f"which {text[:40]}", f"{text} the path") for text in texts],
    "image-classification": lambda texts: [picture(len(text)) for text in texts],
    "text-generation": lambda texts: [f"the {text[:40]}" for text in texts],
}
NUMBERS: dict[str, Callable[[Any], Sequence[Any]]] = {
    "feature-extraction": list,
    "text-classification": lambda found: list(found.probabilities),
    "image-classification": lambda found: list(found.probabilities),
    "token-classification": lambda found: [[word.probability for word in words] for words in found],
    "question-answering": lambda found: [[answer.score] for answer in found],
    "text-generation": lambda found: [completion.ids for completion in found],
}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20 + seed % 30, 33, 3), np.uint8)


def items_of(bundle: Bundle, texts: list[str]) -> list[Any]:
    task = "image-classification" if bundle.manifest.image is not None else bundle.task.hub
    return ITEMS.get(task, list)(texts)


def together_and_alone(runner: Runner, texts: list[str], batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    items, numbers = items_of(runner.bundle, texts), NUMBERS[runner.bundle.task.hub]
    together = numbers(runner.predict(items, batch_size=batch))
    return [
        (np.asarray(one), np.asarray(numbers(runner.predict([item]))[0]))
        for one, item in zip(together, items, strict=True)
    ]


def apart(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    return max(float(np.abs(one - alone).max(initial=0) / np.abs(alone).max(initial=1)) for one, alone in pairs)


@pytest.mark.parametrize(
    ("family", "task"), [pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow) for cell in CELLS]
)
def test_an_item_gets_in_a_batch_what_it_gets_alone(family: str, task: str, export_of: Export) -> None:
    form = "saten" if (family, task) in QUICK else "dense"
    runner = Runner.load(export_of(family, task, form, "fp32")[1])
    bound = MARGIN * runner.bundle.manifest.tolerance["relative"]

    @settings(max_examples=20, **PATIENT)
    @example(RAGGED, 3)
    @given(TEXTS, st.integers(1, 8))
    def holds(texts: list[str], batch: int) -> None:
        pairs = together_and_alone(runner, texts, batch)
        assert all(one.shape == alone.shape for one, alone in pairs)
        assert apart(pairs) <= bound

    holds()


@pytest.mark.parametrize(("family", "task"), sorted(QUICK))
def test_a_batch_whose_padding_is_read_would_be_seen(
    family: str, task: str, export_of: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner.load(export_of(family, task, "saten", "fp32")[1])
    real = runner.encoder.feeds
    monkeypatch.setattr(runner.encoder, "_pad_id", 9)
    monkeypatch.setattr(
        runner.encoder, "feeds", lambda rows: {**real(rows), "attention_mask": np.ones_like(real(rows)["input_ids"])}
    )
    assert apart(together_and_alone(runner, RAGGED, 8)) > 10 * MARGIN * runner.bundle.manifest.tolerance["relative"]


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name, row in ARCHITECTURES.items() if "text-generation" in row.tasks])
def test_prompts_of_one_length_share_a_batch(family: str, export_of: Export) -> None:
    bundle = export_of(family, "text-generation", "dense", "fp32")[1]
    bound, session = MARGIN * bundle.manifest.tolerance["relative"], make_session(bundle)
    rows = st.lists(st.integers(0, 1199), min_size=1, max_size=8)

    @settings(max_examples=20, **PATIENT)
    @given(rows, st.integers(1, 12))
    def holds(seeds: list[int], tokens: int) -> None:
        ids = np.stack([np.random.default_rng(seed).integers(0, 1200, tokens) for seed in seeds])
        together, alone = (
            Decoder(bundle, session).step(ids),
            [Decoder(bundle, session).step(row[None])[0] for row in ids],
        )
        assert apart(list(zip(together, alone, strict=True))) <= bound

    holds()


def test_every_task_has_its_numbers() -> None:
    assert set(NUMBERS) == {task for _, task in CELLS}
