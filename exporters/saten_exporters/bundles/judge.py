"""What a precision costs: a bundle against torch's float32 on real text, measured, shown, and refused where it is much.

Random ids are no judge of that. Trained models have a few channels, and first tokens, whose activations are a hundred
times as large as all others; only text drives them, and roundings that share a scale with them lose the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saten_exporters.bundles.passages import PASSAGES
from saten_exporters.bundles.verify import answered
from saten_exporters.exportable import Exportable
from saten_exporters.tracing.samples import Case
from saten_exporters.tracing.signatures import kind_of, task_of
from saten_runtime.accuracy.data import read_data
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import Judgement
from saten_runtime.errors import DataError, ParityError, UsageError
from saten_runtime.records.files import digest_of
from saten_runtime.run.parity import Arrays, compare_tokens, replay
from saten_runtime.run.pooling import pool, read_steps
from saten_runtime.run.session import make_session, ort_errors
from saten_runtime.vocabulary.tasks import PAIRS, VALUES

__all__ = ["Judge", "answers_of", "cases_of", "judge_of", "judged", "refuse_loss"]

BUILT_IN, SAMPLES = "built-in text", "random pictures"
# Text is read up to so many items, while torch's answers take no more than 256 MiB: 1,365 tokens of a vocabulary of
# 49,152, and every item of most other tasks.
MOST_ITEMS = 200
MOST_NUMBERS = 2**26

Item = tuple[str, ...]


@dataclass(frozen=True)
class Judge:
    """What a model is judged by. name: where it is from; items: texts or pairs of texts, none for samples."""

    name: str
    sha256: str
    items: Sequence[Item]


def judge_of(source: Exportable, file: Path | None) -> Judge:
    """What is in a data file as `saten-edge eval` reads it; without one the built-in text, or samples of pictures.

    Raises:
        DataError: the file cannot be read, or holds nothing that such a model takes.
        UsageError: a file for a model that takes pictures.
    """
    if kind_of(source).pictures:
        if file is not None:
            raise UsageError(
                f"--judge {file}: {source.source['model']} takes pictures and is judged by samples of them"
            )
        return Judge(SAMPLES, "", ())
    paired = task_of(source).takes == (PAIRS,)
    if file is not None:
        return _from_file(file, paired=paired)
    items = [_halves(text) if paired else (text,) for text in PASSAGES]
    return Judge(BUILT_IN, digest_of(list(PASSAGES)), items)


def _from_file(file: Path, *, paired: bool) -> Judge:
    data = read_data(file)
    items = ITEMS[data.kind](data.columns) if data.kind in ITEMS else []
    fitting = [item for item in items[:MOST_ITEMS] if len(item) == 2 or not paired]
    if not fitting:
        wanted = "pairs of texts" if paired else "texts"
        raise DataError(f"--judge {file}: holds {data.kind} data, expected {wanted}")
    return Judge(file.name, data.sha256, fitting)


def _halves(text: str) -> Item:
    """The first sentence, and the rest."""
    first, _, rest = text.partition(". ")
    return f"{first}.", rest


Columns = Mapping[str, Sequence[Any]]

# kind of data → the items in it
ITEMS: dict[str, Callable[[Columns], list[Item]]] = {
    "plain": lambda columns: [(text,) for text in columns["text"]],
    "texts": lambda columns: [(text,) for text in columns["text"]],
    "pairs": lambda columns: list(zip(columns["text_a"], columns["text_b"], strict=True)),
    "search": lambda columns: [
        (text,) for pair in zip(columns["query"], columns["answer"], strict=True) for text in pair
    ],
    "questions": lambda columns: list(zip(columns["question"], columns["context"], strict=True)),
    "words": lambda columns: [(" ".join(words),) for words in columns["words"]],
}


def answers_of(source: Exportable, judge: Judge, outputs: Sequence[str]) -> list[Arrays]:
    """The inputs of every item, each alone, and what torch computes of them; at least one item."""
    answers: list[Arrays] = []
    numbers = 0
    for case in cases_of(source, judge):
        if answers and numbers >= MOST_NUMBERS:
            break
        answers.append(answered(source, case, outputs))
        numbers += sum(answers[-1][name].size for name in outputs)
    return answers


def cases_of(source: Exportable, judge: Judge) -> Iterator[Case]:
    """The inputs of every item, each alone."""
    kind = kind_of(source)
    if kind.pictures:
        yield from kind.cases(source).values()
    else:
        yield from (kind.text(source, item) for item in judge.items)


def judged(bundle: Bundle, judge: Judge, answers: Sequence[Arrays]) -> Judgement:
    """How far the bundle's outputs are from the answers of torch."""
    session = make_session(bundle)
    rows = []
    for wanted in answers:
        with ort_errors(f"{bundle.name}: {judge.name}", ParityError):
            got = replay(bundle, session, wanted)
        rows.append(_compared(bundle, got, wanted))
    weights = np.array([row.weight for row in rows], np.float64)
    loss, agreement = (
        float(np.average([getattr(row, name) for row in rows], weights=weights)) for name in ("loss", "agreement")
    )
    tokens = sum(wanted["input_ids"].size for wanted in answers if "input_ids" in wanted)
    return Judgement(judge.name, judge.sha256, len(answers), tokens, _measure(bundle), loss, agreement)


@dataclass(frozen=True)
class _Row:
    """One item: its loss and agreement, and how much they weigh in the mean."""

    loss: float
    agreement: float
    weight: float


def _measure(bundle: Bundle) -> str:
    """What the loss is: see `Judgement`."""
    task = bundle.task
    return "cosine" if task.pooled else "error" if task.labels == VALUES else "kl"


def _compared(bundle: Bundle, got: Arrays, wanted: Arrays) -> _Row:
    return _COMPARED[_measure(bundle)](bundle, got, wanted)


def _distributions(bundle: Bundle, got: Arrays, wanted: Arrays) -> _Row:
    """By the probabilities along the last axis of every output: of tokens, of classes, of where an answer begins."""
    names = bundle.task.outputs
    pairs = [compare_tokens(got[name], wanted[name], None) for name in names]
    same, kl = np.mean(pairs, axis=0)
    return _Row(float(kl), float(same), wanted[names[0]].size / wanted[names[0]].shape[-1])


def _vectors(bundle: Bundle, got: Arrays, wanted: Arrays) -> _Row:
    """By the vectors that the device makes of an item's tokens."""
    name, how = bundle.task.outputs[0], bundle.manifest.postprocess
    mask, steps = wanted.get("attention_mask", np.ones(wanted[name].shape[:2], np.int64)), read_steps(bundle)
    x, y = (pool(each[name], mask, how, steps).astype(np.float64) for each in (got, wanted))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosine = float(((x * y).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)).mean())
    return _Row(1 - cosine, cosine, len(x))


def _numbers(bundle: Bundle, got: Arrays, wanted: Arrays) -> _Row:
    """By the squared error in units of the squared number."""
    name = bundle.task.outputs[0]
    x, y = got[name].astype(np.float64), wanted[name].astype(np.float64)
    size = float((y * y).sum())
    error = float(((x - y) ** 2).sum()) / max(size, float(np.finfo(np.float32).tiny))
    return _Row(error, 1 - error, size)


# measure → the comparison of one item
_COMPARED: dict[str, Callable[[Bundle, Arrays, Arrays], _Row]] = {
    "kl": _distributions,
    "cosine": _vectors,
    "error": _numbers,
}


def refuse_loss(name: str, precision: str, found: Judgement, largest: float) -> None:
    """Refuse a bundle whose loss is larger than is allowed, or no number.

    Raises:
        ParityError: it is; the message has the numbers.
    """
    if np.isfinite(found.loss) and found.loss <= largest:
        return
    raise ParityError(
        f"{name}: {precision} costs {found.text()}, more than --max-loss {largest:g}; choose another --precision "
        "(int8-block costs least below fp16), judge by text of your own with --judge FILE, or take it as it is with "
        "--max-loss inf"
    )
