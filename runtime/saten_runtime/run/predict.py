"""What a bundle of each task says about its items: the table `PREDICTORS` at the end, and the results as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError, UsageError
from saten_runtime.run.entities import entities
from saten_runtime.run.generation import Sampling
from saten_runtime.run.image import Picture, pixel_values
from saten_runtime.run.pooling import Step, pool
from saten_runtime.run.text import Encoder, Feeds, Ids, Spans, Text
from saten_runtime.vocabulary.tasks import (
    FEATURE_EXTRACTION,
    IMAGE_CLASSIFICATION,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TEXT_REGRESSION,
    TOKEN_CLASSIFICATION,
    Task,
)

__all__ = [
    "PREDICTORS",
    "Answer",
    "Classification",
    "Completion",
    "Outputs",
    "Predictor",
    "Running",
    "Word",
    "best_span",
    "embed_rows",
    "vectors_of",
]

FloatArray = npt.NDArray[np.float32]
Outputs = dict[str, npt.NDArray[Any]]
Record = dict[str, Any]

_LONGEST_ANSWER = 30  # tokens


class Running(Protocol):
    """A bundle in memory, as far as a prediction needs it: a `Runner`."""

    bundle: Bundle
    steps: Sequence[Step]

    @property
    def encoder(self) -> Encoder:
        """The tokenizer."""
        ...

    def run(self, feeds: Feeds) -> Outputs:
        """The raw outputs by name, for inputs by name."""
        ...

    def batched(
        self, rows: Sequence[Ids], batch_size: int, rows_of: Callable[[Outputs, Feeds], Iterable[Any]]
    ) -> list[Any]:
        """`rows_of(outputs, feeds)` of every batch, as one list in the order of `rows`."""
        ...

    def generate_ids(self, prompt: str, how: Sampling) -> Iterator[int]:
        """The tokens that continue a prompt."""
        ...


@dataclass(frozen=True)
class Predictor:
    """How a bundle of one task predicts, and its results as one JSON object per item.

    predict(runner, items, batch_size).
    """

    predict: Callable[[Running, Sequence[Any], int], Any]
    records: Callable[[Any, Bundle], list[Record]]


@dataclass(frozen=True)
class Classification:
    """labels: (n,) int64, index of the likeliest class; probabilities: (n, classes) float32, rows sum to 1."""

    labels: npt.NDArray[np.int64]
    probabilities: FloatArray


@dataclass(frozen=True)
class Word:
    """A word of a text: its index among the words, characters [start, end), and the likeliest class of its first token.

    Of a text that was given as words, start and end count within the word.
    """

    index: int
    start: int
    end: int
    label: int
    probability: float


@dataclass(frozen=True)
class Answer:
    """The likeliest part of the context: characters [start, end), and the logit of start plus end."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Completion:
    """What follows a prompt."""

    text: str
    ids: list[int]


def _embed(runner: Running, items: Sequence[Any], batch_size: int) -> FloatArray:
    """Vectors of texts, or of pictures where the bundle takes those."""
    if runner.bundle.manifest.image is not None:
        return _over_pictures(runner, items, batch_size, vectors_of(runner))
    return embed_rows(runner, _one_at_least(runner, items), batch_size)[: len(items)]


def embed_rows(runner: Running, rows: Sequence[Ids], batch_size: int) -> FloatArray:
    """Vectors of texts that are tokenized, at least one, (len(rows), width)."""
    return np.stack(runner.batched(rows, batch_size, vectors_of(runner)))


def vectors_of(runner: Running) -> Callable[[Outputs, Feeds], FloatArray]:
    """What makes one vector of each text or picture of a run."""
    manifest = runner.bundle.manifest

    def rows_of(outputs: Outputs, feeds: Feeds) -> FloatArray:
        hidden = outputs[manifest.outputs[0]]
        mask = feeds.get("attention_mask", np.ones(hidden.shape[:2], np.int64))
        return pool(hidden, mask, manifest.postprocess, runner.steps)

    return rows_of


def _classify(runner: Running, texts: Sequence[Text], batch_size: int) -> Classification:
    def rows_of(outputs: Outputs, _: Feeds) -> FloatArray:
        return np.asarray(_output(runner, outputs, "logits"), np.float32)

    logits = np.stack(runner.batched(_one_at_least(runner, texts), batch_size, rows_of))[: len(texts)]
    return Classification(logits.argmax(axis=1), _softmax(logits))


def _estimate(runner: Running, texts: Sequence[Text], batch_size: int) -> FloatArray:
    """(n,) float32: the one logit of each text, which is the number that was learned."""

    def rows_of(outputs: Outputs, _: Feeds) -> FloatArray:
        return np.asarray(_output(runner, outputs, "logits"), np.float32)

    return np.stack(runner.batched(_one_at_least(runner, texts), batch_size, rows_of))[: len(texts), 0]


def _one_at_least(runner: Running, texts: Sequence[Text]) -> list[Ids]:
    """No texts still run one of one token, which tells how wide a row is."""
    one = np.zeros(1, np.int64)
    return runner.encoder.encode(texts) or [Ids(one, one)]


def _see(runner: Running, pictures: Sequence[Picture], batch_size: int) -> Classification:
    def rows_of(outputs: Outputs, _: Feeds) -> FloatArray:
        return np.asarray(_output(runner, outputs, "logits"), np.float32)

    logits = _over_pictures(runner, pictures, batch_size, rows_of)
    return Classification(logits.argmax(axis=1) if len(pictures) else np.zeros(0, np.int64), _softmax(logits))


def _over_pictures(
    runner: Running, pictures: Sequence[Picture], batch_size: int, rows_of: Callable[[Outputs, Feeds], FloatArray]
) -> FloatArray:
    """`rows_of` every batch, one row per picture."""
    (name,) = runner.bundle.manifest.inputs
    parts = [np.zeros((0, len(runner.bundle.manifest.labels)), np.float32)] if not len(pictures) else []
    for start in range(0, len(pictures), batch_size):
        feeds = {name: pixel_values(pictures[start : start + batch_size], runner.bundle.image)}
        parts.append(rows_of(runner.run(feeds), feeds))
    return np.concatenate(parts)


def _tag(runner: Running, texts: Sequence[str | list[str]], batch_size: int) -> list[list[Word]]:
    rows = [windows[0] for windows in runner.encoder.windows(texts)]

    def rows_of(outputs: Outputs, _: Feeds) -> Iterable[FloatArray]:
        return _softmax(np.asarray(_output(runner, outputs, "logits"), np.float32))

    found = runner.batched(rows, batch_size, rows_of)
    return [_words(row, probabilities) for row, probabilities in zip(rows, found, strict=True)]


def _words(row: Spans, probabilities: FloatArray) -> list[Word]:
    """A word for each index in `row.words`; probabilities: (tokens or more, classes)."""
    result = []
    for word in range(row.words.max(initial=-1) + 1):
        tokens = np.flatnonzero(row.words == word)
        if not len(tokens):
            continue
        first = probabilities[tokens[0]]
        start, end = int(row.offsets[tokens[0], 0]), int(row.offsets[tokens[-1], 1])
        result.append(Word(word, start, end, int(first.argmax()), float(first.max())))
    return result


def _answer(runner: Running, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[Answer]:
    windows = runner.encoder.windows(pairs)
    for number, ((_, context), one) in enumerate(zip(pairs, windows, strict=True), 1):
        if not any((row.parts == 1).any() for row in one):
            raise UsageError(f"pair {number}: its context {context!r:.40} has no token to answer with; leave it out")
    rows = [row for one in windows for row in one]

    def rows_of(outputs: Outputs, _: Feeds) -> Iterable[tuple[FloatArray, FloatArray]]:
        starts, ends = (_output(runner, outputs, f"{side}_logits") for side in ("start", "end"))
        return zip(np.asarray(starts, np.float32), np.asarray(ends, np.float32), strict=True)

    found = iter(runner.batched(rows, batch_size, rows_of))
    answers = []
    for (_, context), one in zip(pairs, windows, strict=True):
        candidates = [best_span(context, row, *logits) for row, logits in zip(one, found, strict=False)]
        answers.append(max(candidates, key=lambda answer: answer.score))
    return answers


def best_span(context: str, row: Spans, starts: FloatArray, ends: FloatArray) -> Answer:
    """The span of context tokens with the largest start + end logit, at most `_LONGEST_ANSWER` tokens long."""
    places = np.flatnonzero(row.parts == 1)
    if not len(places):
        return Answer("", 0, 0, float("-inf"))
    scores = starts[places][:, None] + ends[places][None, :]
    length = np.arange(len(places))[None, :] - np.arange(len(places))[:, None]
    scores = np.where((length >= 0) & (length < _LONGEST_ANSWER), scores, -np.inf)
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    start, end = int(row.offsets[places[first], 0]), int(row.offsets[places[last], 1])
    return Answer(context[start:end], start, end, float(scores[first, last]))


def _complete(runner: Running, prompts: Sequence[str], _: int) -> list[Completion]:
    ids = [list(runner.generate_ids(prompt, Sampling())) for prompt in prompts]
    return [Completion(runner.encoder.decode(one), one) for one in ids]


def _output(runner: Running, outputs: Outputs, name: str) -> npt.NDArray[Any]:
    if name not in outputs:
        raise BundleError(f"{runner.bundle.path}: has no output {name!r}; found {', '.join(outputs)}")
    return outputs[name]


def _softmax(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def _embedding_records(vectors: FloatArray, _: Bundle) -> list[Record]:
    return [{"embedding": vector.tolist()} for vector in vectors]


def _estimate_records(values: FloatArray, _: Bundle) -> list[Record]:
    return [{"value": value} for value in values.tolist()]


def _classification_records(result: Classification, bundle: Bundle) -> list[Record]:
    rows = zip(result.labels.tolist(), result.probabilities.tolist(), strict=True)
    return [{"label": label, **_name(bundle, label), "probabilities": probabilities} for label, probabilities in rows]


def _tag_records(result: list[list[Word]], bundle: Bundle) -> list[Record]:
    return [
        {
            "words": [{**asdict(word), **_name(bundle, word.label)} for word in words],
            "entities": [
                {"type": kind, "start": words[first].start, "end": words[last].end}
                for kind, first, last in entities([_label(bundle, word.label) for word in words])
            ],
        }
        for words in result
    ]


def _plain_records(result: list[Any], _: Bundle) -> list[Record]:
    return [asdict(one) for one in result]


def _label(bundle: Bundle, index: int) -> str:
    labels = bundle.manifest.labels
    return labels[index] if index < len(labels) else str(index)


def _name(bundle: Bundle, index: int) -> Record:
    return {"name": _label(bundle, index)} if bundle.manifest.labels else {}


PREDICTORS: dict[Task, Predictor] = {
    FEATURE_EXTRACTION: Predictor(_embed, _embedding_records),
    TEXT_CLASSIFICATION: Predictor(_classify, _classification_records),
    TEXT_REGRESSION: Predictor(_estimate, _estimate_records),
    TOKEN_CLASSIFICATION: Predictor(_tag, _tag_records),
    QUESTION_ANSWERING: Predictor(_answer, _plain_records),
    IMAGE_CLASSIFICATION: Predictor(_see, _classification_records),
    TEXT_GENERATION: Predictor(_complete, _plain_records),
}
