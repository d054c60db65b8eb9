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
from saten_edge.texts import FORMATS, Row, number_in, read_rows
from saten_edge.training.columns import EXPECTED, LABEL, label_column, layout_of
from saten_edge.training.objectives import Training
from saten_runtime.bundle.recipe import Option, options_of
from saten_runtime.errors import DataError, UsageError
from saten_runtime.records.plain_text import one_line
from saten_runtime.vocabulary.tasks import VALUES

__all__ = [
    "Batches",
    "Examples",
    "Rows",
    "checked",
    "collator",
    "count_cut",
    "cut_length",
    "encode",
    "split_off",
]

# Batches are cut from this many batches' worth of examples, sorted by length.
POOLED_BATCHES = 16
# Where nothing else is said, texts are cut to what the model reads, and to this many tokens.
MOST_TOKENS = 512


@dataclass(frozen=True)
class Examples:
    """inputs: (text,), (text, text) or (image,) each, an image being its path or itself; labels: as many, or none."""

    source: str
    inputs: list[tuple[Any, ...]]
    labels: list[Any] | None = None

    @property
    def images(self) -> bool:
        """Whether the inputs are images."""
        return self.inputs != [] and not isinstance(self.inputs[0][0], str)

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
        labels = self._numbers()
        if any(isinstance(label, float) for label in labels):
            return None
        count = known or max(labels) + 1
        wrong = next((k for k, label in enumerate(labels) if not 0 <= label < count), None)
        if wrong is not None:
            raise DataError(f"{self.source}: example {wrong + 1} has label {labels[wrong]}; expected 0 … {count - 1}")
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
        values = [float(label) for label in self._numbers()]
        if len(set(values)) < 2:
            raise DataError(f"{self.source}: all labels are {values[0]:g}; there is nothing to learn")
        return values

    @property
    def names(self) -> list[str]:
        """The labels that are words, or none."""
        words = {str(label) for label in self.labels or ()}
        return sorted(words) if any(isinstance(label, str) for label in self.labels or ()) else []

    def numbered(self, names: Mapping[str, int]) -> Examples:
        """With numbers for labels that are words.

        Raises:
            DataError: a word that is not among `names`.
        """
        if not self.names:
            return self
        for number, label in enumerate(self.labels or (), 1):
            if str(label) not in names:
                known = ", ".join(list(names)[:10])
                raise DataError(f"{self.source}: example {number} has label {label!r:.80}; the model knows {known}")
        return replace(self, labels=[names[str(label)] for label in self.labels or ()])

    def _numbers(self) -> list[Any]:
        if self.labels is None:
            raise DataError(
                f"{self.source}: has no labels; expected a column label, or another that --columns label=NAME names, "
                "or a --teacher that knows them"
            )
        for number, label in enumerate(self.labels, 1):
            finite = isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label)
            if not finite:
                raise DataError(f"{self.source}: example {number} has label {label!r}; expected a number")
        return self.labels


def _bytes(part: Any) -> bytes:
    if isinstance(part, str):
        return part.encode()
    content: bytes = part.read_bytes() if isinstance(part, Path) else part.tobytes()
    return content


@dataclass(frozen=True)
class Rows:
    """What a data file or set holds, before it is known what for.

    layout: the columns of an example, ours → theirs; None where their names say nothing. label: that of the labels.
    """

    source: str
    folder: Path
    rows: list[Row]
    layout: dict[str, str] | None
    label: str | None
    chosen: bool = False

    @classmethod
    def read(cls, source: str, *, split: str = "train", columns: Mapping[str, str] | None = None) -> Rows:
        """Read a JSON Lines or CSV file, or a data set of the `datasets` library by `name[:config]` or folder.

        columns: ours → theirs, where they are not called by their usual names.

        Raises:
            DataError: it cannot be read, is empty, or lacks a column.
            UsageError: an example could be made of several of its columns.
        """
        path, named = Path(source), columns or {}
        local = path.is_file() or path.suffix.lower() in FORMATS
        rows = read_rows(path) if local else _dataset_rows(source, split)
        if not rows:
            raise DataError(f"{source}: is empty; expected at least one example")
        there = list(rows[0][1])
        layout, label = layout_of(source, there, named), label_column(there, named)
        return cls(source, path.parent, rows, layout, label, chosen=bool(named.keys() - {LABEL}))

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.label is not None

    @property
    def images(self) -> bool:
        """Whether an example is an image."""
        return self.layout is not None and "image" in self.layout

    def examples(self, inputs: str) -> Examples:
        """The examples, with labels where there are some.

        inputs: see `Training`. "plain" takes every string of every row, but for labels, where no column was chosen.

        Raises:
            DataError: a row that does not fit.
        """
        if inputs == "plain":
            return Examples(self.source, self._plain())
        columns = ", ".join(self.rows[0][1])
        if self.layout is None:
            raise DataError(f"{self.source}: its columns are {columns}; {EXPECTED}")
        if (inputs == "image") != self.images:
            raise DataError(f"{self.source}: its columns are {columns}; the task's examples have {inputs}")
        examples = [self._example(where, row, self.layout) for where, row in self.rows]
        return Examples(self.source, examples, None if self.label is None else self._labels(self.label))

    def _labels(self, column: str) -> list[Any]:
        for where, row in self.rows:
            if row.get(column) in (None, ""):
                raise DataError(f"{where}: has no label; expected one in {column}")
        labels = [row[column] for _, row in self.rows]
        numbers = [number_in(label) if isinstance(label, str) else label for label in labels]
        return labels if any(isinstance(number, str) for number in numbers) else numbers

    def _plain(self) -> list[tuple[str, ...]]:
        wanted = set(self.layout.values()) if self.layout is not None and self.chosen else None
        values = (
            value
            for _, row in self.rows
            for name, value in row.items()
            if (name != self.label if wanted is None else name in wanted)
        )
        texts: list[tuple[str, ...]] = [(value,) for value in values if isinstance(value, str) and value.strip()]
        if not texts:
            raise DataError(f'{self.source}: holds no text; expected lines such as {{"text": "…"}}')
        return texts

    def _example(self, where: str, row: dict[str, Any], layout: Mapping[str, str]) -> tuple[Any, ...]:
        if any(column not in row for column in layout.values()):
            wanted = " and ".join(layout.values())
            raise DataError(f"{where}: has {', '.join(row)}; expected {wanted}, as in the first example")
        values = tuple(row[column] for column in layout.values())
        if "image" in layout:
            return tuple(_image(where, value, self.folder) for value in values)
        if not all(isinstance(value, str) for value in values):
            raise DataError(f"{where}: {' and '.join(layout.values())} must be text, found {values!r:.80}")
        return values


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
    long = [row for row in examples.inputs if sum(len(text.encode()) for text in row) > length - 2 * (len(row) + 1)]
    if not long:
        return 0
    encoded = loaded.tokenizer(*[list(column) for column in zip(*long, strict=True)], truncation=False, verbose=False)
    return sum(len(tokens) > length for tokens in encoded["input_ids"])


def encode(
    loaded: LoadedModel, examples: Examples, labels: Sequence[Any] | None, max_length: int | None
) -> list[dict[str, Any]]:
    """The model's inputs for each example, unpadded; images stay as they are until they are used."""
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
    return loaded.pad


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


def _image(where: str, value: Any, folder: Path) -> Any:
    if not isinstance(value, str):
        return value  # `datasets` decodes images itself
    path = folder / value
    if not path.is_file():
        raise DataError(f"{where}: no image at {path}")
    return path


def _image_batch(processor: Any, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    images = [open_image(row["image"]) for row in rows]
    batch = dict(processor(images=images, return_tensors="pt"))
    return {**batch, **({"labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else {})}


def _dataset_rows(source: str, split: str) -> list[Row]:
    import datasets

    name, _, config = source.partition(":")
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(name, config or None, split=split)
    except Exception as cause:  # the library raises many kinds, offline ones too
        reason = one_line(cause, 200)
        raise DataError(f"{source}: no such file, and no data set with a split {split!r} either ({reason})") from None
    return [(f"{source}[{number}]", dict(row)) for number, row in enumerate(loaded)]


def checked(
    training: Training, examples: Examples, known: int | None, *, taught: bool = False
) -> tuple[Examples, int | None]:
    """The examples with labels as the task's loss wants them, and the number of outputs of its head.

    known: that number, where there is a head. taught: by a teacher, which knows what to say of examples without labels.
    """
    if training.task.labels is None:
        return examples, None
    if examples.labels is None and taught and known is not None:
        return examples, known
    if training.task.labels == VALUES:
        return replace(examples, labels=examples.values()), 1
    count = examples.classes(known)
    if count is None:
        raise DataError(
            f"{examples.source}: labels are real numbers; {training.task.name} expects whole ones from 0 on"
        )
    return examples, count
