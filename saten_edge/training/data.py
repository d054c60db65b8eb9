"""Examples out of local files or `datasets`, encoded once, and put into batches with little padding."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from saten_edge.checkpoints.models import LoadedModel
from saten_edge.images import open_image
from saten_edge.training.losses import IGNORED
from saten_edge.training.objectives import Training
from saten_edge.training.spans import ENCODERS, NOTE, count_long
from saten_runtime.bundle.recipe import Option, options_of
from saten_runtime.errors import DataError, UsageError
from saten_runtime.vocabulary.tasks import (
    IMAGE_CLASSIFICATION,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    VALUES,
    Task,
)

__all__ = [
    "Batches",
    "Examples",
    "checked",
    "collator",
    "count_cut",
    "cut_length",
    "encode",
    "split_off",
]

# Batches are cut from this many batches' worth of examples, sorted by length.
POOLED_BATCHES = 16
# The first and the last token of an answer: the outputs of a head for question-answering.
ENDS = 2
# Where nothing else is said, texts are cut to what the model reads, and to this many tokens.
MOST_TOKENS = 512


@dataclass(frozen=True)
class Examples:
    """inputs: (text,), (text, text), (words,) or (image,) each, an image being its path or itself.

    labels: as many, or none: classes or numbers; of words, one for each word; of questions, the answers, each with
    its first character.
    """

    source: str
    inputs: list[tuple[Any, ...]]
    labels: list[Any] | None = None

    @property
    def images(self) -> bool:
        """Whether the inputs are images."""
        return self.inputs != [] and not isinstance(self.inputs[0][0], str | list)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    @property
    def task(self) -> Task:
        """What a new head would learn from the labels."""
        if self.images:
            return IMAGE_CLASSIFICATION
        words = self.inputs != [] and isinstance(self.inputs[0][0], list)
        return TOKEN_CLASSIFICATION if words else TEXT_CLASSIFICATION

    def described(self) -> dict[str, Option]:
        """For the recipe: name, number, and sha256 of inputs and labels in order; of an image its file or pixels."""
        digest = hashlib.sha256()
        for part in (part for row in self.inputs for part in row):
            content = _bytes(part)
            digest.update(len(content).to_bytes(8, "little") + content)
        digest.update(json.dumps(self.labels, allow_nan=False).encode())
        name = Path(self.source).name if Path(self.source).exists() else self.source
        return options_of(name=name, sha256=digest.hexdigest(), examples=len(self.inputs))

    def classes(self, known: int | None) -> int | None:
        """The number of classes of the labels, `known` where the model has its head already; None for real values.

        Raises:
            DataError: labels that are missing, negative, out of range, of one class, or with a class left out.
        """
        numbered = self._numbers()
        labels = [label for _, label in numbered]
        if any(isinstance(label, float) for label in labels):
            return None
        count = known or max(labels) + 1
        wrong = next(((number, label) for number, label in numbered if not 0 <= label < count), None)
        if wrong is not None:
            raise DataError(f"{self.source}: example {wrong[0]} has label {wrong[1]}; expected 0 … {count - 1}")
        absent = sorted(set(range(count)) - set(labels))
        if count < 2 or len(set(labels)) < 2:
            raise DataError(f"{self.source}: all labels are {labels[0]}; expected two classes at least")
        if absent and known is None:
            raise DataError(
                f"{self.source}: labels reach {count - 1} but none is {absent[0]}; number the classes from 0"
            )
        return count

    def values(self) -> list[float]:
        """The labels as real numbers.

        Raises:
            DataError: they are missing, not finite, or all the same.
        """
        values = [float(label) for _, label in self._numbers()]
        if len(set(values)) < 2:
            raise DataError(f"{self.source}: all labels are {values[0]:g}; there is nothing to learn")
        return values

    def answered(self) -> Examples:
        """Themselves, which have answers.

        Raises:
            DataError: they have none.
        """
        if self.labels is None:
            raise DataError(f"{self.source}: has no answers; expected a column answers, or a --teacher that knows them")
        return self

    @property
    def names(self) -> list[str]:
        """The labels that are words, or none."""
        words = {str(label) for _, label in self._each()}
        return sorted(words) if any(isinstance(label, str) for _, label in self._each()) else []

    def numbered(self, names: Mapping[str, int]) -> Examples:
        """With numbers for labels that are words.

        Raises:
            DataError: a word that is not among `names`.
        """
        if not self.names:
            return self
        for number, label in self._each():
            if str(label) not in names:
                known = ", ".join(list(names)[:10])
                raise DataError(f"{self.source}: example {number} has label {label!r:.80}; the model knows {known}")

        def number_of(label: Any) -> Any:
            return [number_of(each) for each in label] if isinstance(label, list) else names[str(label)]

        return replace(self, labels=[number_of(label) for label in self.labels or ()])

    def _each(self) -> list[tuple[int, Any]]:
        """Every label, of words each of theirs, with the number of its example."""
        several = (label if isinstance(label, list) else [label] for label in self.labels or ())
        return [(number, each) for number, labels in enumerate(several, 1) for each in labels]

    def _numbers(self) -> list[tuple[int, Any]]:
        if self.labels is None:
            raise DataError(
                f"{self.source}: has no labels; expected a column label, or another that --columns label=NAME names, "
                "or a --teacher that knows them"
            )
        for number, label in self._each():
            finite = isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label)
            if not finite:
                raise DataError(f"{self.source}: example {number} has label {label!r}; expected a number")
        return self._each()


def _bytes(part: Any) -> bytes:
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, list):
        return json.dumps(part, allow_nan=False).encode()
    content: bytes = part.read_bytes() if isinstance(part, Path) else part.tobytes()
    return content


def cut_length(loaded: LoadedModel, asked: int | None) -> int:
    """The tokens that texts are cut to: as many as asked for, or as the model reads, up to `MOST_TOKENS`.

    Raises:
        UsageError: the model reads fewer than asked for.
    """
    if asked is not None and asked > loaded.max_length:
        raise UsageError(f"--max-length {asked}: the model reads {loaded.max_length} tokens at most")
    return asked or min(loaded.max_length, MOST_TOKENS)


def count_cut(loaded: LoadedModel, examples: Examples, length: int) -> int:
    """How many examples have more than `length` tokens."""
    if examples.images:
        return 0
    if loaded.task in ENCODERS:
        return count_long(loaded, examples.inputs, length)
    long = [row for row in examples.inputs if sum(len(text.encode()) for text in row) > length - 2 * (len(row) + 1)]
    if not long:
        return 0
    encoded = loaded.tokenizer(*[list(column) for column in zip(*long, strict=True)], truncation=False, verbose=False)
    return sum(len(tokens) > length for tokens in encoded["input_ids"])


def encode(
    loaded: LoadedModel,
    examples: Examples,
    labels: Sequence[Any] | None,
    max_length: int | None,
    *,
    noted: bool = False,
) -> list[dict[str, Any]]:
    """The model's inputs for each example, unpadded; images stay as they are until they are used.

    A long context gives several rows. noted: with what a judge needs, see `spans.NOTE`.
    """
    if not examples.images and loaded.task in ENCODERS:
        return ENCODERS[loaded.task](loaded, examples.inputs, labels, cut_length(loaded, max_length), noted)
    if examples.images:
        rows: list[dict[str, Any]] = [{"image": image} for (image,) in examples.inputs]
    else:
        columns = [list(column) for column in zip(*examples.inputs, strict=True)]
        cut = cut_length(loaded, max_length)
        encoded = loaded.tokenize(columns, cut)
        rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    return [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)] if labels else rows


def collator(loaded: LoadedModel, examples: Examples) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Puts encoded examples into one batch, padded to its longest."""
    if examples.images:
        return lambda rows: _image_batch(loaded.processor, rows)
    return lambda rows: _text_batch(loaded, rows)


def _text_batch(loaded: LoadedModel, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = loaded.pad([{name: value for name, value in row.items() if name not in ("labels", NOTE)} for row in rows])
    return {**batch, **_labels_of(rows, batch["input_ids"].shape[1])}


def _labels_of(rows: list[dict[str, Any]], width: int) -> dict[str, Tensor]:
    """The labels of a batch; of words, each row is filled up to `width`."""
    if "labels" not in rows[0]:
        return {}
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], list):
        labels = [label + [IGNORED] * (width - len(label)) for label in labels]
    return {"labels": torch.tensor(labels)}


def split_off(rows: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """All but `share` of the rows, and that share, drawn by `seed`; both in order."""
    held = set(random.Random(f"hold-out {seed}").sample(range(len(rows)), round(share * len(rows))))  # noqa: S311
    return [row for k, row in enumerate(rows) if k not in held], [rows[k] for k in sorted(held)]


class Batches(DataLoader[Any]):
    """Batches of one pass over the rows; examples of like length together, so that little is padding.

    What is in which batch follows from seed and pass alone. Each of `processes` gets its part of every batch of
    `size` · processes; a rest too small for one is left to the next pass, which shuffles anew.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        collate: Callable[[list[dict[str, Any]]], Any],
        size: int,
        *,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        lengths = [len(row.get("input_ids", ())) for row in rows]
        self.order = _Order(lengths, size * processes, seed, process, processes)
        super().__init__(rows, batch_sampler=self.order, collate_fn=collate)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass to iterate over next."""
        self.order.set_epoch(epoch)


class _Order:
    """Row numbers of each batch of a pass."""

    def __init__(self, lengths: list[int], size: int, seed: int, process: int, processes: int) -> None:
        self._lengths, self._size, self._seed = lengths, size, seed
        self._process, self._processes, self._epoch = process, processes, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths) // self._size

    def __iter__(self) -> Iterator[list[int]]:
        order, size = random.Random(f"{self._seed} {self._epoch}"), self._size  # noqa: S311 - shuffling, not a secret
        shuffled = order.sample(range(len(self._lengths)), len(self._lengths))
        for start in range(0, len(shuffled) - size + 1, size * POOLED_BATCHES):
            pool = sorted(shuffled[start : start + size * POOLED_BATCHES], key=self._lengths.__getitem__)
            chunks = [pool[k : k + size] for k in range(0, len(pool) - size + 1, size)]
            for chunk in order.sample(chunks, len(chunks)):
                yield chunk[self._process :: self._processes]


def _image_batch(processor: Any, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    images = [open_image(row["image"]) for row in rows]
    batch = dict(processor(images=images, return_tensors="pt"))
    return {**batch, **_labels_of(rows, 0)}


def checked(
    training: Training, examples: Examples, known: int | None, *, taught: bool = False
) -> tuple[Examples, int | None]:
    """The examples with labels as the task's loss wants them, and the number of outputs of its head.

    known: that number, where there is a head. taught: by a teacher, which knows what to say of examples without labels.
    """
    if not training.labelled:
        return examples, None
    if examples.labels is None and taught and known is not None:
        return examples, known
    if training.task == QUESTION_ANSWERING:
        return examples if taught else examples.answered(), ENDS
    if training.task.labels == VALUES:
        return replace(examples, labels=examples.values()), 1
    count = examples.classes(known)
    if count is None:
        raise DataError(
            f"{examples.source}: labels are real numbers; {training.task.name} expects whole ones from 0 on"
        )
    return examples, count
