"""Accuracy of bundles on a data file. What is measured stands in the table `MEASURES`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle import Bundle, open_bundles
from saten_runtime.data import Data, read_data
from saten_runtime.errors import DataError, UsageError
from saten_runtime.metrics import cosines, pearson, search_metrics, spearman
from saten_runtime.runner import Runner

__all__ = ["MEASURES", "EvalResult", "EvalRow", "Measure", "Metrics", "evaluate", "measure_of"]

Metrics = dict[str, float | None]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EvalRow:
    """One bundle: its metrics, and the seconds its predictions took."""

    bundle: str
    metrics: Metrics
    seconds: float


@dataclass(frozen=True)
class EvalResult:
    """data: {"file", "sha256", "count"}; task: name of the `Measure`."""

    schema_version: int
    task: str
    data: dict[str, Any]
    rows: list[EvalRow]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Measure:
    """What bundles of `bundle_task` are scored by on data of the kind `data`.

    predict(runner, data): an array whose first axis goes over the texts; score(prediction, data).
    vectors: the prediction is embeddings, which can be compared with a reference bundle's.
    """

    name: str
    data: str
    bundle_task: str
    predict: Callable[[Runner, Data], Array]
    score: Callable[[Array, Data], Metrics]
    vectors: bool


def evaluate(
    bundles: Sequence[Bundle | str | Path],
    data: Path,
    *,
    reference: Bundle | str | Path | None = None,
    threads: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> EvalResult:
    """Score every bundle on the file; with a reference, add "cosine": the mean cosine to its embeddings.

    Raises:
        DataError: the file cannot be read, or fits no measure of the bundles' task.
        BundleError, RuntimeMismatch, InvalidRun: a bundle cannot be loaded or run.
        UsageError: a reference where there are no embeddings to compare.
    """
    named = open_bundles(bundles)
    examples = read_data(data)
    measures = {name: measure_of(bundle, examples) for name, bundle in named.items()}
    measure = next(iter(measures.values()))
    if any(other is not measure for other in measures.values()):
        raise UsageError(f"{', '.join(named)}: are of different tasks; evaluate them apart")
    if reference is not None and not measure.vectors:
        raise UsageError(f"--reference: {measure.name} has no embeddings to compare")
    target = None if reference is None else _reference(reference, measure, examples, threads)
    rows = []
    for index, (name, bundle) in enumerate(named.items()):
        if progress is not None:
            progress(index, len(named), name)
        rows.append(_row(name, bundle, measure, examples, threads, target))
    described = {"file": data.name, "sha256": examples.sha256, "count": examples.count}
    return EvalResult(1, measure.name, described, rows)


def _predict(bundle: Bundle, measure: Measure, data: Data, threads: int) -> tuple[Array, float]:
    runner = Runner.load(bundle, threads=threads)
    start = time.perf_counter()
    return measure.predict(runner, data), time.perf_counter() - start


def _reference(reference: Bundle | str | Path, measure: Measure, data: Data, threads: int) -> Array:
    (bundle,) = open_bundles([reference]).values()
    if bundle.manifest.task != measure.bundle_task:
        raise UsageError(f"--reference: {bundle.name} is of the task {bundle.manifest.task}, not {measure.bundle_task}")
    return _predict(bundle, measure, data, threads)[0]


def _row(name: str, bundle: Bundle, measure: Measure, data: Data, threads: int, target: Array | None) -> EvalRow:
    prediction, seconds = _predict(bundle, measure, data, threads)
    metrics = measure.score(prediction, data)
    if target is not None:
        if target.shape != prediction.shape:
            raise UsageError(f"{name}: embeddings {prediction.shape[1]} wide, the reference's {target.shape[1]}")
        metrics["cosine"] = float(cosines(prediction, target).mean())
    return EvalRow(name, metrics, seconds)


def measure_of(bundle: Bundle, data: Data) -> Measure:
    """The row of `MEASURES` for a bundle's task and the kind of the data.

    Raises:
        DataError: there is none.
    """
    for measure in MEASURES:
        if (measure.data, measure.bundle_task) == (data.kind, bundle.manifest.task):
            return measure
    fitting = sorted({measure.data for measure in MEASURES if measure.bundle_task == bundle.manifest.task})
    raise DataError(
        f"{data.path}: holds {data.kind} data, the bundle {bundle.name} ({bundle.manifest.task}) is scored on "
        f"{', '.join(fitting) or 'none'}"
    )


def _halves(vectors: Array) -> tuple[Array, Array]:
    middle = len(vectors) // 2
    return vectors[:middle], vectors[middle:]


def _embed(*fields: str) -> Callable[[Runner, Data], Array]:
    """Embeddings of the first field's texts, then of the second's."""

    def predict(runner: Runner, data: Data) -> Array:
        return np.asarray(runner.predict([text for field in fields for text in data.columns[field]]))

    return predict


def _score_search(vectors: Array, _: Data) -> Metrics:
    return {**search_metrics(*_halves(vectors))}


def _score_similarity(vectors: Array, data: Data) -> Metrics:
    alike, labels = cosines(*_halves(vectors)), np.array(data.columns["label"])
    return {"pearson": pearson(alike, labels), "spearman": spearman(alike, labels)}


def _label_texts(runner: Runner, data: Data) -> Array:
    return np.asarray(runner.predict(data.columns["text"]).labels)


def _label_pairs(runner: Runner, data: Data) -> Array:
    return np.asarray(runner.predict(list(zip(data.columns["text_a"], data.columns["text_b"], strict=True))).labels)


def _score_labels(labels: Array, data: Data) -> Metrics:
    return {"accuracy": float((labels == np.array(data.columns["label"])).mean())}


MEASURES = (
    Measure("search", "search", "feature-extraction", _embed("query", "answer"), _score_search, vectors=True),
    Measure("similarity", "pairs", "feature-extraction", _embed("text_a", "text_b"), _score_similarity, vectors=True),
    Measure("classification", "texts", "text-classification", _label_texts, _score_labels, vectors=False),
    Measure("classification", "pairs", "text-classification", _label_pairs, _score_labels, vectors=False),
)
