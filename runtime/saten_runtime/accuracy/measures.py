"""What is measured on which data: the table `MEASURES` at the end.

A measure turns every example into a few plain values, its columns; the metrics are a function of
those alone. So examples can be stored, read back, and drawn again for an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.accuracy.data import Data
from saten_runtime.accuracy.metrics import (
    accuracy,
    answer_f1,
    class_metrics,
    cosines,
    entity_counts,
    exact_match,
    f1_from_counts,
    pearson,
    ranks_of_own_answer,
    search_metrics,
    spearman,
)
from saten_runtime.accuracy.results import Metrics
from saten_runtime.errors import DataError
from saten_runtime.run.runner import Runner
from saten_runtime.vocabulary.tasks import (
    FEATURE_EXTRACTION,
    IMAGE_CLASSIFICATION,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TEXT_REGRESSION,
    TOKEN_CLASSIFICATION,
)

__all__ = ["MEASURES", "Columns", "Examined", "Measure"]

Array = npt.NDArray[Any]
Columns = dict[str, Array]  # each (n,): one value per example


@dataclass(frozen=True)
class Examined:
    """columns: by example; vectors: embeddings (n, k, width) of the k texts of each example, or None."""

    columns: Columns
    vectors: Array | None = None


@dataclass(frozen=True)
class Measure:
    """What bundles of `bundle_task` are scored by on data of the kind `data`.

    examine(runner, data); score(columns). right(columns): whether each example is right, (n,) bool,
    or None where that is no question of yes or no. said: the column whose equality is agreement.
    """

    name: str
    data: str
    bundle_task: str
    examine: Callable[[Runner, Data], Examined]
    score: Callable[[Columns], Metrics]
    right: Callable[[Columns], Array] | None = None
    said: str | None = None


def _embed(runner: Runner, data: Data, fields: tuple[str, str]) -> Array:
    """Embeddings of the two texts of each example, (n, 2, width)."""
    vectors = np.asarray(runner.predict([text for field in fields for text in data.columns[field]]))
    return np.stack(np.split(vectors, 2), axis=1)


def _search(runner: Runner, data: Data) -> Examined:
    vectors = _embed(runner, data, ("query", "answer"))
    return Examined({"rank": ranks_of_own_answer(vectors[:, 0], vectors[:, 1])}, vectors)


def _score_search(columns: Columns) -> Metrics:
    return {**search_metrics(columns["rank"])}


def _similarity(runner: Runner, data: Data) -> Examined:
    vectors = _embed(runner, data, ("text_a", "text_b"))
    alike = cosines(vectors[:, 0], vectors[:, 1])
    return Examined({"similarity": alike, "label": _numbers(data)}, vectors)


def _score_similarity(columns: Columns) -> Metrics:
    alike, labels = columns["similarity"], columns["label"]
    return {"pearson": pearson(alike, labels), "spearman": spearman(alike, labels)}


def _classes(runner: Runner, data: Data, items: list[Any]) -> Examined:
    result = runner.predict(items)
    wanted = _wanted(runner, data)
    return Examined({"label": wanted, "predicted": result.labels, "place": _places(result.probabilities, wanted)})


def _wanted(runner: Runner, data: Data) -> Array:
    """The classes (n,) int64 that the labels say, by their numbers or, where one is a word, by their names."""
    names = {name: float(number) for number, name in enumerate(runner.bundle.manifest.labels)}
    labels = [names.get(label, label) if isinstance(label, str) else label for label in data.columns["label"]]
    unknown = next((label for label in labels if isinstance(label, str)), None)
    if unknown is not None:
        raise DataError(f"{data.path}: a label is {unknown!r:.60}; the model knows {', '.join(list(names)[:10])}")
    numbers = np.array(labels, np.float64)
    if not (numbers == numbers.astype(np.int64)).all():
        raise DataError(f"{data.path}: a label is not a whole number; expected the index of a class")
    return np.asarray(numbers.astype(np.int64))


def _numbers(data: Data) -> Array:
    """The labels (n,) float64.

    Raises:
        DataError: one is a word.
    """
    word = next((label for label in data.columns["label"] if isinstance(label, str)), None)
    if word is not None:
        raise DataError(f"{data.path}: a label is {word!r:.60}, expected a finite number")
    return np.array(data.columns["label"], np.float64)


def _places(probabilities: Array, wanted: Array) -> Array:
    """Place, from 1 on, of the right class by probability, ties counted against it; a class not known is last."""
    classes = probabilities.shape[1]
    known = (wanted >= 0) & (wanted < classes)
    own = probabilities[np.arange(len(wanted)), np.where(known, wanted, 0)]
    places = np.where(known, (probabilities >= own[:, None]).sum(axis=1), classes + 1)
    return np.asarray(places, np.int64)


def _score_numbers(columns: Columns) -> Metrics:
    values, labels = columns["value"], columns["label"]
    return {
        "pearson": pearson(values, labels),
        "spearman": spearman(values, labels),
        "rmse": float(np.sqrt(np.mean((values - labels) ** 2))),
    }


def _texts_of(data: Data) -> list[Any]:
    """The texts of a data set, or its pairs."""
    if data.kind == "texts":
        return data.columns["text"]
    return list(zip(data.columns["text_a"], data.columns["text_b"], strict=True))


def _texts(runner: Runner, data: Data) -> Examined:
    return _classes(runner, data, _texts_of(data))


def _values(runner: Runner, data: Data) -> Examined:
    return Examined({"value": np.asarray(runner.predict(_texts_of(data)), np.float64), "label": _numbers(data)})


def _images(runner: Runner, data: Data) -> Examined:
    return _classes(runner, data, [data.path.parent / name for name in data.columns["image"]])


def _score_classes(columns: Columns) -> Metrics:
    return class_metrics(columns["predicted"], columns["label"])


def _score_images(columns: Columns) -> Metrics:
    return {"top_1": accuracy(columns["predicted"], columns["label"]), "top_5": float((columns["place"] <= 5).mean())}


def _right_class(columns: Columns) -> Array:
    return np.asarray(columns["predicted"] == columns["label"])


def _words(runner: Runner, data: Data) -> Examined:
    names = runner.bundle.manifest.labels
    if not names:
        raise DataError(f"{runner.bundle.path}: names no labels to compare with {data.path}; export it again")
    rows = []
    for words, wanted, found in zip(
        data.columns["words"], data.columns["labels"], runner.predict(data.columns["words"]), strict=True
    ):
        if len(words) != len(wanted):
            raise DataError(f"{data.path}: an example has {len(words)} words and {len(wanted)} labels")
        said = ["O"] * len(words)  # what was cut off, or is no token, was not found
        for word in found:
            said[word.index] = names[word.label]
        same = sum(one == other for one, other in zip(said, wanted, strict=True))
        rows.append((*entity_counts(said, wanted), same, len(words), " ".join(said)))
    columns = zip(("found", "predicted", "wanted", "same", "words", "said"), zip(*rows, strict=True), strict=True)
    return Examined({name: np.array(values) for name, values in columns})


def _score_words(columns: Columns) -> Metrics:
    counts = (int(columns[name].sum()) for name in ("found", "predicted", "wanted"))
    words = int(columns["words"].sum())
    return {"entity_f1": f1_from_counts(*counts), "accuracy": float(columns["same"].sum()) / words if words else None}


def _questions(runner: Runner, data: Data) -> Examined:
    pairs = list(zip(data.columns["question"], data.columns["context"], strict=True))
    said = [answer.text for answer in runner.predict(pairs)]
    scored = list(zip(said, data.columns["answers"], strict=True))
    return Examined(
        {
            "said": np.array(said),
            "exact_match": np.array([exact_match(*one) for one in scored]),
            "f1": np.array([answer_f1(*one) for one in scored]),
        }
    )


def _score_questions(columns: Columns) -> Metrics:
    return {name: float(columns[name].mean()) for name in ("exact_match", "f1")}


def _language(runner: Runner, data: Data) -> Examined:
    found = [runner.surprise(text) for text in data.columns["text"]]
    return Examined({"nats": np.array([nats for nats, _ in found]), "tokens": np.array([count for _, count in found])})


def _score_language(columns: Columns) -> Metrics:
    """Perplexity: e to the mean negative log-likelihood of a token."""
    tokens = int(columns["tokens"].sum())
    # e^700 is about the largest that a float holds.
    return {"perplexity": math.exp(min(float(columns["nats"].sum()) / tokens, 700.0)) if tokens else None}


MEASURES = (
    Measure(
        "search",
        "search",
        FEATURE_EXTRACTION.name,
        _search,
        _score_search,
        lambda columns: columns["rank"] == 1,
        "rank",
    ),
    Measure("similarity", "pairs", FEATURE_EXTRACTION.name, _similarity, _score_similarity),
    Measure("classification", "texts", TEXT_CLASSIFICATION.name, _texts, _score_classes, _right_class, "predicted"),
    Measure("classification", "pairs", TEXT_CLASSIFICATION.name, _texts, _score_classes, _right_class, "predicted"),
    Measure("regression", "texts", TEXT_REGRESSION.name, _values, _score_numbers),
    Measure("regression", "pairs", TEXT_REGRESSION.name, _values, _score_numbers),
    Measure("images", "images", IMAGE_CLASSIFICATION.name, _images, _score_images, _right_class, "predicted"),
    Measure("entities", "words", TOKEN_CLASSIFICATION.name, _words, _score_words, None, "said"),
    Measure(
        "answers",
        "questions",
        QUESTION_ANSWERING.name,
        _questions,
        _score_questions,
        lambda columns: columns["exact_match"] == 1,
        "said",
    ),
    Measure("language", "plain", TEXT_GENERATION.name, _language, _score_language),
)
