"""What a model's generation_config.json makes of the logits of a next token, as transformers' generate does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle.manifest import Choice

__all__ = ["ruled", "warped"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Place:
    """Where in a text the next token stands: all ids before it, how many of them were given, and the ids that stop."""

    ids: Sequence[int]
    given: int
    stop_ids: Sequence[int]


def ruled(logits: Array, ids: Sequence[int], given: int, stop_ids: Sequence[int], choice: Choice) -> Array:
    """Logits (vocabulary,) of the token after `ids`, of which `given` are the prompt; -∞ where it must not be.

    Where nothing at all would be left, transformers takes the id 0, and so does this.
    """
    place = _Place(ids, given, stop_ids)
    for rule in _RULES:
        logits = rule(logits, place, choice)
    return logits


def warped(logits: Array, choice: Choice) -> npt.NDArray[np.float64]:
    """Logits (vocabulary,) at the temperature, -∞ for tokens that are not among those to draw from."""
    scores: npt.NDArray[np.float64] = logits.astype(np.float64) / choice.temperature
    if choice.top_k:
        smallest = np.partition(scores, -min(choice.top_k, len(scores)))[-min(choice.top_k, len(scores))]
        scores = np.where(scores < smallest, -np.inf, scores)
    if choice.top_p < 1:
        order = np.argsort(-scores, kind="stable")
        before = np.cumsum(_softmax(scores[order])) - _softmax(scores[order])
        # A token belongs to the nucleus while what comes before it has not reached top_p.
        scores[order[before >= choice.top_p]] = -np.inf
    if choice.min_p:
        chances = _softmax(scores)
        scores = np.where(chances < choice.min_p * chances.max(), -np.inf, scores)
    return scores


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())


def _repetition(logits: Array, place: _Place, choice: Choice) -> Array:
    """Keskar et al., "CTRL", 2019, section 4.1, for logits of either sign."""
    seen, penalty = _within(place.ids, logits), choice.repetition_penalty
    if penalty == 1 or not len(seen):
        return logits
    logits = logits.copy()
    logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
    return logits


def _ngrams(logits: Array, place: _Place, choice: Choice) -> Array:
    """No n tokens one after the other that were there before."""
    ids, size = place.ids, choice.no_repeat_ngram_size
    if not 0 < size <= len(ids):
        return logits
    end = list(ids[len(ids) + 1 - size :])
    windows = (ids[start : start + size] for start in range(len(ids) - size + 1))
    return _without(logits, [window[-1] for window in windows if list(window[:-1]) == end])


def _bad_words(logits: Array, place: _Place, choice: Choice) -> Array:
    """No token that would complete a bad word; one that stops is none."""
    words = [word for word in choice.bad_words_ids if word and word not in [[stop] for stop in place.stop_ids]]
    ends = [word[-1] for word in words if len(word) == 1 or list(place.ids[1 - len(word) :]) == word[:-1]]
    return _without(logits, ends)


def _shortest(logits: Array, place: _Place, choice: Choice) -> Array:
    """No end before there are enough tokens."""
    made = len(place.ids) - place.given
    early = len(place.ids) < choice.min_length or made < choice.min_new_tokens
    return _without(logits, place.stop_ids) if early else logits


def _suppressed(logits: Array, place: _Place, choice: Choice) -> Array:
    first = choice.begin_suppress_tokens if len(place.ids) == place.given else []
    return _without(logits, [*choice.suppress_tokens, *first])


_RULES: tuple[Callable[[Array, _Place, Choice], Array], ...] = (
    _repetition,
    _ngrams,
    _bad_words,
    _shortest,
    _suppressed,
)
"""In transformers' order."""


def _within(ids: Sequence[int], logits: Array) -> npt.NDArray[np.int64]:
    """The ids that the logits have, each once."""
    found: npt.NDArray[np.int64] = np.unique(np.asarray(ids, np.int64))
    return found[(found >= 0) & (found < len(logits))]


def _without(logits: Array, ids: Sequence[int]) -> Array:
    banned = _within(ids, logits)
    if not len(banned):
        return logits
    logits = logits.copy()
    logits[banned] = -np.inf
    return logits
