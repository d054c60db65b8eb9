"""Labels of words and places of answers come to the right tokens, and padding changes no loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.training.data import Examples, collator, encode
from saten_edge.training.losses import IGNORED, Sides, cross_entropy, span_cross_entropy, span_divergence
from saten_edge.training.metrics import answer_metrics
from saten_edge.training.spans import answers_in
from saten_runtime.errors import DataError, UsageError

CONTEXT = "ban den fin gol"
ANSWER = ("fin", CONTEXT.index("fin"))


@pytest.fixture(scope="module")
def tagger(make_tiny: Callable[..., Path]) -> LoadedModel:
    return load_model(make_tiny("bert", "token-classification", num_labels=3))


@pytest.fixture(scope="module")
def answerer(make_tiny: Callable[..., Path]) -> LoadedModel:
    return load_model(make_tiny("bert", "question-answering"))


def test_the_first_token_of_a_word_has_its_label(tagger: LoadedModel) -> None:
    examples = Examples("words", [(["ban", "xqxq", "den"],)], [[0, 1, 2]])
    (row,) = encode(tagger, examples, examples.labels, None)
    tokens = tagger.tokenizer.convert_ids_to_tokens(row["input_ids"])
    pieces = tagger.tokenizer.tokenize("xqxq")
    assert len(pieces) > 1
    assert tokens == ["[CLS]", "ban", *pieces, "den", "[SEP]"]
    assert row["labels"] == [IGNORED, 0, 1, *[IGNORED] * (len(pieces) - 1), 2, IGNORED]


def test_the_answer_is_the_tokens_that_hold_it_in_every_window(answerer: LoadedModel) -> None:
    context = " ".join(["ban"] * 200) + " " + CONTEXT
    start = len(context) - len(CONTEXT) + ANSWER[1]
    examples = Examples("questions", [("den gol", context), ("den gol", CONTEXT)], [[("fin", start)], [ANSWER]])
    rows = encode(answerer, examples, examples.labels, None, noted=True)
    assert len(rows) > 3
    for row in rows:
        first, last = row["labels"]
        said = answerer.tokenizer.convert_ids_to_tokens(row["input_ids"])[first : last + 1]
        holds = "fin" in answerer.tokenizer.convert_ids_to_tokens(row["input_ids"])
        assert said == (["fin"] if holds else ["[CLS]"])
    assert [row["labels"] != (0, 0) for row in rows] == [False] * (len(rows) - 2) + [True, True]


def test_a_question_that_leaves_no_room_is_refused(answerer: LoadedModel) -> None:
    examples = Examples("questions", [("ban " * 90, CONTEXT)], [[ANSWER]])
    with pytest.raises(UsageError, match="at most leave room for its context"):
        encode(answerer, examples, examples.labels, None)


@pytest.mark.parametrize(
    "value", [["fin"], {"text": ["fin"], "answer_start": [ANSWER[1]]}, "fin"], ids=["texts", "SQuAD", "CSV"]
)
def test_answers_are_found(value: Any) -> None:
    assert answers_in("here", CONTEXT, value) == [ANSWER]


@pytest.mark.parametrize("value", [["gone"], {"text": ["fin"], "answer_start": [ANSWER[1] + 1]}, [], 3])
def test_others_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="here: "):
        answers_in("here", CONTEXT, value)


def outputs(rows: int, width: int, seed: int) -> SimpleNamespace:
    drawn = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        start_logits=torch.randn(rows, width, generator=drawn), end_logits=torch.randn(rows, width, generator=drawn)
    )


def padded(side: SimpleNamespace) -> SimpleNamespace:
    """With more columns of large logits, which padding may well have."""
    return SimpleNamespace(**{name: pad(logits, (0, 5), value=50.0) for name, logits in vars(side).items()})


@pytest.mark.parametrize("loss", [span_cross_entropy, span_divergence])
def test_padding_changes_no_loss_of_answers(loss: Callable[[Sides], Any]) -> None:
    student, teacher = outputs(3, 7, 1), outputs(3, 7, 2)
    labels, mask = torch.tensor([[1, 2], [0, 0], [4, 6]]), torch.ones(3, 7, dtype=torch.long)
    plain, _ = loss(Sides({"labels": labels, "attention_mask": mask}, student, teacher, temperature=2.0))
    assert plain.shape == (2,)
    wider, wide = pad(mask, (0, 5)), (padded(student), padded(teacher))
    same, _ = loss(Sides({"labels": labels, "attention_mask": wider}, *wide, temperature=2.0))
    torch.testing.assert_close(plain, same)
    unlike = (wide[0], outputs(3, 12, 2))
    other, _ = loss(Sides({"labels": labels, "attention_mask": torch.ones_like(wider)}, *unlike, temperature=2.0))
    assert not torch.allclose(plain, other)


def test_the_loss_of_answers_is_what_transformers_computes(answerer: LoadedModel) -> None:
    examples = Examples("questions", [("den gol", CONTEXT)] * 2, [[ANSWER], [("gol", CONTEXT.index("gol"))]])
    batch = collator(answerer, examples)(encode(answerer, examples, examples.labels, None))
    labels = batch["labels"]
    with torch.no_grad():
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        wanted = answerer.model(**inputs, start_positions=labels[:, 0], end_positions=labels[:, 1])
    numerator, denominator = span_cross_entropy(Sides(batch, wanted))
    torch.testing.assert_close((numerator / denominator).mean(), wanted.loss)
    swapped = span_cross_entropy(Sides({**batch, "labels": labels.flip(1) - 1}, wanted))[0]
    assert not torch.allclose(numerator, swapped)


def test_the_loss_of_words_is_what_transformers_computes(tagger: LoadedModel) -> None:
    examples = Examples("words", [(["ban", "xqxq"],), (["den"] * 9,)], [[0, 1], [2] * 9])
    batch = collator(tagger, examples)(encode(tagger, examples, examples.labels, None))
    with torch.no_grad():
        wanted = tagger.model(**batch)
    numerator, denominator = cross_entropy(Sides(batch, wanted))
    torch.testing.assert_close(numerator / denominator, wanted.loss)
    assert float(denominator) == 11
    assert not torch.allclose(numerator / batch["labels"].numel(), wanted.loss)


def test_an_answer_is_that_of_the_surest_window() -> None:
    places = np.array([[0, 1.0], [1, 5.0], [0, 3.0], [1, 4.0]])
    scores = np.array([[0.0, 0.1], [1.0, 1.0], [1.0, 0.5], [0.0, 0.0]])
    assert answer_metrics(places, scores) == {"exact_match": 1.0, "f1": 0.75}
    assert answer_metrics(places[::-1], scores[::-1]) == {"exact_match": 1.0, "f1": 0.75}
    assert answer_metrics(places * [[1, -1]], scores)["exact_match"] == 0.0
