"""Runner: a bundle in memory, from texts to plain arrays.

What a task does with the outputs of the graph stands in the table `TASKS` at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle import Bundle, Postprocess
from saten_runtime.errors import BundleError, InvalidRun, UsageError
from saten_runtime.session import make_session, ort_errors
from saten_runtime.text import Encoder, Feeds, Text

__all__ = ["TASKS", "Classification", "Outputs", "Runner", "Task", "pool"]

FloatArray = npt.NDArray[np.float32]
Outputs = dict[str, npt.NDArray[Any]]


class Runner:
    """One session and its tokenizer. `predict` and `run` may be called from several threads."""

    def __init__(self, bundle: Bundle, session: Any, encoder: Encoder) -> None:
        self.bundle = bundle
        self.task = _task(bundle)
        self._session = session
        self._encoder = encoder

    @classmethod
    def load(cls, bundle: Bundle | str | Path, *, threads: int = 1, memory: str = "fast") -> Runner:
        """Read, check and start a bundle; `memory` is a name in `session.MEMORY_MODES`.

        Raises:
            BundleError: missing, damaged, of a newer schema, or of a task not in `TASKS`.
            RuntimeMismatch: this ONNX Runtime cannot run its graph.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        _task(opened)
        return cls(opened, make_session(opened, threads=threads, memory=memory), Encoder(opened))

    def predict(self, texts: Sequence[Text], *, batch_size: int = 32) -> Any:
        """What the bundle's task says about each text, in the order given.

        "feature-extraction": (n, width) float32, pooled as the manifest says.
        "text-classification": a `Classification`.
        A pair (a, b) is read as one input of two segments.

        Raises:
            InvalidRun: the graph put out NaN or infinity.
        """
        if isinstance(texts, str):
            raise UsageError("predict takes a list of texts, found one string")
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: must be at least 1")
        return self.task.predict(self, texts, batch_size)

    def run(self, feeds: Feeds) -> Outputs:
        """The raw outputs by name, for inputs by name.

        Raises:
            UsageError: feeds that do not fit the graph.
            InvalidRun: an output holds NaN or infinity.
        """
        names = self.bundle.manifest.outputs
        with ort_errors(f"{self.bundle.name}: run", UsageError):
            outputs = dict(zip(names, self._session.run(names, feeds), strict=True))
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise InvalidRun(f"{self.bundle.path}: output {name!r} holds NaN or infinity; export the model again")
        return outputs

    def batched(
        self, texts: Sequence[Text], batch_size: int, rows_of: Callable[[Outputs, Feeds], Iterable[Any]]
    ) -> list[Any]:
        """`rows_of(outputs, feeds)` of every batch, as one list in the order of `texts`.

        Texts of like length share a batch, so that little of it is padding. An empty list still
        runs one text, which tells the caller the width of a row: the list returned then has one
        entry too many.
        """
        rows = self._encoder.encode(texts or [""])
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        results: list[Any] = [None] * len(rows)
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            feeds = self._encoder.feeds([rows[index] for index in members])
            for index, result in zip(members, rows_of(self.run(feeds), feeds), strict=True):
                results[index] = result
        return results


@dataclass(frozen=True)
class Classification:
    """labels: (n,) int64, index of the likeliest class; probabilities: (n, classes) float32, rows sum to 1."""

    labels: npt.NDArray[np.int64]
    probabilities: FloatArray


@dataclass(frozen=True)
class Task:
    """How a bundle of one task predicts, and the result as one JSON object per text."""

    predict: Callable[[Runner, Sequence[Text], int], Any]
    records: Callable[[Any], list[dict[str, Any]]]


def pool(hidden: npt.NDArray[Any], mask: npt.NDArray[np.int64], how: Postprocess) -> FloatArray:
    """One vector per text, (batch, width) float32.

    hidden: (batch, tokens, width), or (batch, width) when `how.pooling` is "none"; mask: (batch, tokens).

    Raises:
        BundleError: a pooling this version does not know, or an output of other axes.
    """
    axes = {"mean": 3, "cls": 3, "none": 2}
    if axes.get(how.pooling) != hidden.ndim:
        raise BundleError(f"pooling {how.pooling!r} of an output with {hidden.ndim} axes; there are {axes} (axes)")
    vectors = hidden.astype(np.float32)
    if how.pooling == "cls":
        vectors = vectors[:, 0]
    if how.pooling == "mean":
        weights = mask[:, :, None].astype(np.float32)
        vectors = (vectors * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
    if how.normalize:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.asarray(vectors, np.float32)


def _embed(runner: Runner, texts: Sequence[Text], batch_size: int) -> FloatArray:
    manifest = runner.bundle.manifest

    def rows_of(outputs: Outputs, feeds: Feeds) -> FloatArray:
        mask = feeds.get("attention_mask")
        if mask is None:
            mask = np.ones(feeds["input_ids"].shape, np.int64)
        return pool(outputs[manifest.outputs[0]], mask, manifest.postprocess)

    return np.stack(runner.batched(texts, batch_size, rows_of))[: len(texts)]


def _classify(runner: Runner, texts: Sequence[Text], batch_size: int) -> Classification:
    def rows_of(outputs: Outputs, _: Feeds) -> FloatArray:
        if "logits" not in outputs:
            raise BundleError(f"{runner.bundle.path}: has no output 'logits'; found {', '.join(outputs)}")
        return np.asarray(outputs["logits"], np.float32)

    logits = np.stack(runner.batched(texts, batch_size, rows_of))[: len(texts)]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Classification(logits.argmax(axis=1), powers / powers.sum(axis=1, keepdims=True))


def _embedding_records(vectors: FloatArray) -> list[dict[str, Any]]:
    return [{"embedding": vector.tolist()} for vector in vectors]


def _classification_records(result: Classification) -> list[dict[str, Any]]:
    rows = zip(result.labels.tolist(), result.probabilities.tolist(), strict=True)
    return [{"label": label, "probabilities": probabilities} for label, probabilities in rows]


TASKS = {
    "feature-extraction": Task(_embed, _embedding_records),
    "text-classification": Task(_classify, _classification_records),
}


def _task(bundle: Bundle) -> Task:
    try:
        return TASKS[bundle.manifest.task]
    except KeyError:
        raise BundleError(
            f"{bundle.path}: task {bundle.manifest.task!r}; this saten-runtime runs {', '.join(TASKS)}"
        ) from None
