"""Inputs that travel to the page as token ids, and the scores of the outputs that come back.

A bundle is asked its validation cases first, then the texts of a data file in the batches
`saten_runtime` itself would run: a `Runner` over a session that only writes down what it is fed
finds the questions, and a `Runner` over a session that repeats what the page answered scores them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_edge.phone.schema import MOST_OUTPUT_BYTES
from saten_runtime.accuracy.data import Data, read_data
from saten_runtime.accuracy.evaluate import measure_of
from saten_runtime.accuracy.measures import Examined, Measure
from saten_runtime.accuracy.metrics import cosines
from saten_runtime.accuracy.results import Metrics
from saten_runtime.bundle.folder import VALIDATION_FOLDER, Bundle
from saten_runtime.errors import DataError, UsageError
from saten_runtime.run.parity import Comparison, compare_case, read_cases, usual_sizes
from saten_runtime.run.runner import Runner
from saten_runtime.run.text import Feeds

__all__ = ["Exam", "Question", "first_examples", "make_exam", "validation_sha256"]

PAGE_POOLINGS = ("mean", "cls", "none")  # those of static/tensors.js

Array = npt.NDArray[Any]
Outputs = dict[str, Array]


@dataclass(frozen=True)
class Question:
    """feeds: the inputs of the graph; outputs: shape of each output that is wanted.

    pooling: what the page does to an output (batch, tokens, width) before it answers: "mean", "cls"
    (see `saten_runtime.run.predict.pool`) or "none". Never normalized: that is done where it is scored.
    """

    feeds: Feeds
    outputs: dict[str, tuple[int, ...]]
    pooling: str = "none"

    def to_json(self) -> dict[str, Any]:
        """For the page: each input flat, row after row."""
        shape = next(iter(self.feeds.values())).shape
        feeds = {name: array.ravel().tolist() for name, array in self.feeds.items()}
        return {"shape": shape, "feeds": feeds, "outputs": list(self.outputs), "pooling": self.pooling}


@dataclass(frozen=True)
class Exam:
    """The questions of one bundle, `cases` first.

    cases: by name, inputs and torch's outputs; measure, data: None when there is no data file.
    """

    bundle: Bundle
    cases: dict[str, Outputs]
    questions: list[Question]
    measure: Measure | None
    data: Data | None

    def compare(self, answers: Sequence[Outputs]) -> list[Comparison]:
        """How far the answers to the validation cases are from torch's outputs.

        answers[k]: to question k; those of all cases at least.
        """
        manifest, task = self.bundle.manifest, self.bundle.task
        bound, usual = manifest.tolerance.get("relative"), usual_sizes(task, self.cases, manifest.outputs)
        compared: list[Comparison] = []
        for (case, arrays), answer in zip(self.cases.items(), answers, strict=False):
            rows = compare_case(task, case, answer, arrays, usual, bound=bound)
            compared += [dataclasses.replace(row, optimized=True) for row in rows]
        return compared

    def examine(self, answers: Sequence[Outputs]) -> Examined:
        """What the answers to all questions say about each example, as `Measure.examine` gives it.

        Raises:
            InvalidRun: an answer holds NaN or infinity.
        """
        if self.measure is None or self.data is None:
            raise UsageError(f"{self.bundle.name}: there is no data file to predict on")
        return self.measure.examine(_runner(self.bundle, _Replay(answers[len(self.cases) :])), self.data)

    def score(self, examined: Examined, reference: Examined | None) -> Metrics:
        """Metrics of what was said; with what a reference said, also the mean cosine to its embeddings."""
        if self.measure is None:
            raise UsageError(f"{self.bundle.name}: there is no data file to score on")
        metrics = self.measure.score(examined.columns)
        if reference is not None and reference.vectors is not None and examined.vectors is not None:
            width = examined.vectors.shape[-1]
            pairs = (vectors.reshape(-1, width) for vectors in (examined.vectors, reference.vectors))
            metrics["cosine"] = float(cosines(*pairs).mean())
        return metrics


def first_examples(path: Path, count: int) -> Data:
    """The first `count` examples of a data file, or all where it has fewer; `sha256` is of the whole file.

    Raises:
        DataError: as `read_data`.
    """
    data = read_data(path)
    return dataclasses.replace(data, columns={field: values[:count] for field, values in data.columns.items()})


def make_exam(bundle: Bundle, data: Data | None) -> Exam:
    """What to ask a bundle.

    Raises:
        BundleError: it carries no validation cases.
        DataError: the data are of a kind that its task is not scored on, or an answer would be too long.
    """
    read = read_cases(bundle)
    width = int(next(iter(read.values()))[_answering(bundle)].shape[-1])
    cases = {name: arrays for name, arrays in read.items() if _fits(_wanted(bundle, arrays))}
    questions = [Question(_inputs(bundle, arrays), _wanted(bundle, arrays)) for arrays in cases.values()]
    if data is None:
        return Exam(bundle, cases, questions, None, None)
    measure = measure_of(bundle, data)
    asked = _Recorder(width)
    pooling = bundle.manifest.postprocess.pooling
    if pooling not in PAGE_POOLINGS:
        raise DataError(f"{bundle.name}: its pooling is {pooling!r}; a page does {', '.join(PAGE_POOLINGS)}")
    measure.examine(_runner(bundle, asked), data)
    for feeds in asked.feeds:
        rows = len(next(iter(feeds.values())))
        question = Question(feeds, {_answering(bundle): (rows, width)}, pooling)
        if not _fits(question.outputs):
            raise DataError(f"{bundle.name}: one batch puts out {rows} × {width} numbers, more than one post may hold")
        questions.append(question)
    return Exam(bundle, cases, questions, measure, data)


def validation_sha256(exams: Mapping[str, Exam]) -> str:
    """One hash over the validation files of all bundles."""
    lines = [
        f"{name} {file} {entry.sha256}\n"
        for name, exam in sorted(exams.items())
        for file, entry in sorted(exam.bundle.manifest.files.items())
        if file.startswith(f"{VALIDATION_FOLDER}/")
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class _Recorder:
    """A session that writes down what it is fed, and answers rows of zeros as wide as the graph's."""

    def __init__(self, width: int) -> None:
        self.feeds: list[Feeds] = []
        self._width = width

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        self.feeds.append(feeds)
        return [np.zeros((len(next(iter(feeds.values()))), self._width), np.float32) for _ in names]


class _Replay:
    """A session that repeats answers in their order."""

    def __init__(self, answers: Sequence[Outputs]) -> None:
        self._answers: Iterator[Outputs] = iter(answers)

    def run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        answer = next(self._answers)
        return [answer[name] for name in names]


def _runner(bundle: Bundle, session: Any) -> Runner:
    """A runner whose graph puts out one pooled row per text."""
    manifest = bundle.manifest
    pooled = dataclasses.replace(
        manifest,
        outputs=[_answering(bundle)],
        postprocess=dataclasses.replace(manifest.postprocess, pooling="none"),
    )
    return Runner(dataclasses.replace(bundle, manifest=pooled), session)


def _answering(bundle: Bundle) -> str:
    """The output that predictions are made of."""
    outputs = bundle.manifest.outputs
    return "logits" if "logits" in outputs else outputs[0]


def _inputs(bundle: Bundle, arrays: Outputs) -> Feeds:
    return {name: arrays[name].astype(np.int64) for name in bundle.manifest.inputs}


def _wanted(bundle: Bundle, arrays: Outputs) -> dict[str, tuple[int, ...]]:
    return {name: arrays[name].shape for name in bundle.manifest.outputs}


def _fits(outputs: Mapping[str, tuple[int, ...]]) -> bool:
    return sum(4 * int(np.prod(shape)) for shape in outputs.values()) <= MOST_OUTPUT_BYTES
