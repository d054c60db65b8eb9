"""The rules of generation against transformers' own processors of logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from saten_runtime.bundle.manifest import Choice
from saten_runtime.errors import InvalidRun
from saten_runtime.run.generation import Sampling, choose
from saten_runtime.run.rules import ruled, warped

VOCABULARY, GIVEN, STOPS = 12, 3, [5, 7]
# Settings alone, and together in transformers' order.
RULES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition": {"repetition_penalty": 1.7},
    "repetition is wanted": {"repetition_penalty": 0.6},
    "no token twice": {"no_repeat_ngram_size": 1},
    "no pair twice": {"no_repeat_ngram_size": 2},
    "no three twice": {"no_repeat_ngram_size": 3},
    "bad words": {"bad_words_ids": [[1], [2, 3], [4, 4, 6], [5]]},
    "suppressed": {"suppress_tokens": [0, 7, 11]},
    "suppressed at first": {"begin_suppress_tokens": [2, 5]},
    "long": {"min_length": 9},
    "much": {"min_new_tokens": 4},
    "all": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[1, 2], [3]],
        "min_length": 6,
        "min_new_tokens": 2,
        "suppress_tokens": [8],
        "begin_suppress_tokens": [9],
    },
}
DRAWS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top k": {"top_k": 4},
    "a large k": {"top_k": 50},
    "top p": {"top_p": 0.7},
    "min p": {"min_p": 0.2},
    "together": {"temperature": 1.6, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
}


def processors(settings: dict[str, Any]) -> Any:
    """What transformers' generate makes of the settings, in its order."""
    transformers = pytest.importorskip("transformers")
    stops = {"eos_token_id": STOPS}
    made = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": transformers.NoRepeatNGramLogitsProcessor,
        "bad_words_ids": lambda value: transformers.NoBadWordsLogitsProcessor(value, **stops),
        "min_length": lambda value: transformers.MinLengthLogitsProcessor(value, **stops),
        "min_new_tokens": lambda value: transformers.MinNewTokensLengthLogitsProcessor(GIVEN, value, **stops),
        "suppress_tokens": transformers.SuppressTokensLogitsProcessor,
        "begin_suppress_tokens": lambda value: transformers.SuppressTokensAtBeginLogitsProcessor(value, GIVEN),
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    assert list(settings) == [name for name in made if name in settings]
    return transformers.LogitsProcessorList(made[name](value) for name, value in settings.items())


def cases() -> list[tuple[list[int], np.ndarray]]:
    """Ids of little variety, so that they repeat, and logits of either sign."""
    random = np.random.default_rng(3)
    lengths = [GIVEN, *random.integers(GIVEN, 14, 40)]
    return [(random.integers(0, 7, n).tolist(), random.standard_normal(VOCABULARY).astype(np.float32)) for n in lengths]


def expected(settings: dict[str, Any], ids: list[int], logits: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    scores = processors(settings)(torch.tensor([ids]), torch.tensor(logits)[None])
    return np.asarray(scores[0].numpy())


@pytest.mark.parametrize("name", RULES)
def test_rules_are_those_of_transformers(name: str) -> None:
    changed = 0
    for ids, logits in cases():
        got = ruled(logits, ids, GIVEN, STOPS, Choice(**RULES[name]))
        np.testing.assert_array_equal(got, expected(RULES[name], ids, logits))
        changed += not np.array_equal(got, logits)
    assert (changed > 0) == (name != "nothing")


@pytest.mark.parametrize("name", [name for name in RULES if name != "nothing"])
def test_the_check_of_rules_catches_one_that_is_dropped(name: str) -> None:
    assert any(
        not np.array_equal(ruled(logits, ids, GIVEN, STOPS, Choice()), expected(RULES[name], ids, logits))
        for ids, logits in cases()
    )


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_from_is_what_transformers_draws_from(name: str) -> None:
    torch = pytest.importorskip("torch")
    for _, logits in cases():
        wanted = torch.tensor(expected(DRAWS[name], [0], logits)).double()
        got = torch.tensor(warped(logits, Choice(**DRAWS[name])))
        # Both are softmaxes of the same float32 logits, transformers' divided by the temperature in float32.
        assert torch.allclose(got.softmax(-1), wanted.softmax(-1), rtol=1e-5, atol=0)
    if name != "a large k":
        assert not torch.allclose(torch.tensor(logits).double().softmax(-1), wanted.softmax(-1), rtol=1e-2, atol=0)


def test_ids_that_the_logits_do_not_have_change_nothing() -> None:
    logits = np.arange(4, dtype=np.float32)
    choice = Choice(suppress_tokens=[4, 2**62], bad_words_ids=[[9], []], repetition_penalty=2.0)
    np.testing.assert_array_equal(ruled(logits, [7, 9], 2, [-1, 99], choice), logits)


def test_what_is_said_goes_before_what_the_model_wants() -> None:
    wants = Choice(do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.1)
    assert Sampling().following(wants) == wants
    assert Sampling(temperature=0.0).following(wants).do_sample is False
    said = Sampling(temperature=2.0, top_p=1.0, top_k=0, min_p=0.1).following(wants)
    assert said == Choice(do_sample=True, temperature=2.0, min_p=0.1, repetition_penalty=1.1)
    assert Sampling(temperature=2.0).following(Choice()).do_sample is True
    assert Sampling().following(Choice()).do_sample is False


def test_rules_that_leave_no_token_are_no_draw() -> None:
    nothing, chance = np.full(3, -np.inf, np.float32), np.random.default_rng(0)
    with pytest.raises(InvalidRun, match="leave no token"):
        choose(nothing, Choice(do_sample=True), chance)
    assert choose(nothing, Choice(), chance) == 0  # as transformers' greedy search
