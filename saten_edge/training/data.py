"""Examples out of local files or `datasets`, encoded once, and put into batches with little padding."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from saten_edge.checkpoints.models import LoadedModel
from saten_edge.texts import FORMATS, Row, read_rows
from saten_edge.training.objectives import Training
from saten_runtime.bundle.recipe import Option, options_of
from saten_runtime.errors import DataError
from saten_runtime.records.plain_text import one_line
from saten_runtime.vocabulary.tasks import VALUES

__all__ = ["Batches", "Examples", "checked", "collator", "encode", "read_examples", "split_off"]

# Batches are cut from this many batches' worth of examples, sorted by length.
POOLED_BATCHES = 16
# the columns an example may have, and what they are called elsewhere
LAYOUTS = (("text",), ("text_a", "text_b"), ("image",))
ALIASES = {
    **{"sentence": "text", "content": "text", "img": "image", "labels": "label"},
    **{"sentence1": "text_a", "premise": "text_a", "question1": "text_a"},
    **{"sentence2": "text_b", "hypothesis": "text_b", "question2": "text_b"},
}


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

    def _numbers(self) -> list[Any]:
        if self.labels is None:
            raise DataError(f"{self.source}: has no labels; expected a column `label`")
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


def read_examples(source: str, inputs: str | None, *, split: str = "train") -> Examples:
    """Read a JSON Lines or CSV file, or a data set of the `datasets` library by `name[:config]` or folder.

    inputs: see `Training`; None where the columns decide. "plain" takes every string of every row.

    Raises:
        DataError: it cannot be read, is empty, or its columns do not fit.
    """
    path = Path(source)
    local = path.is_file() or path.suffix.lower() in FORMATS
    rows = read_rows(path) if local else _dataset_rows(source, split)
    if not rows:
        raise DataError(f"{source}: is empty; expected at least one example")
    columns = rows[0][1]
    layouts = [layout for layout in LAYOUTS if any(name in columns for name in layout)]
    if inputs == "plain" or (inputs is None and (not layouts or "label" not in columns)):
        return Examples(source, _plain(source, rows))
    if len(layouts) != 1:
        found = ", ".join(columns) or "none"
        raise DataError(f"{source}: its columns are {found}; expected text, or text_a and text_b, or image, and label")
    layout = layouts[0]
    if inputs is not None and (inputs == "image") != (layout == ("image",)):
        raise DataError(f"{source}: its columns are {', '.join(columns)}; the task's examples have {inputs}")
    examples = [_example(where, row, layout, path.parent) for where, row in rows]
    if "label" not in columns:
        return Examples(source, examples)
    for where, row in rows:
        if row.get("label") in (None, ""):
            raise DataError(f"{where}: has no label; expected a number")
    return Examples(source, examples, [row["label"] for _, row in rows])


def encode(
    loaded: LoadedModel, examples: Examples, labels: Sequence[Any] | None, max_length: int
) -> list[dict[str, Any]]:
    """The model's inputs for each example, unpadded; images stay as they are until they are used."""
    if examples.images:
        rows: list[dict[str, Any]] = [{"image": image} for (image,) in examples.inputs]
    else:
        columns = [list(column) for column in zip(*examples.inputs, strict=True)]
        cut = min(loaded.max_length, max_length)
        encoded = dict(loaded.tokenizer(*columns, truncation=True, max_length=cut, return_attention_mask=True))
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


def _plain(source: str, rows: list[Row]) -> list[tuple[str, ...]]:
    values = (value for _, row in rows for value in row.values())
    texts: list[tuple[str, ...]] = [(value,) for value in values if isinstance(value, str) and value.strip()]
    if not texts:
        raise DataError(f'{source}: holds no text; expected lines such as {{"text": "…"}}')
    return texts


def _example(where: str, row: dict[str, Any], layout: tuple[str, ...], folder: Path) -> tuple[Any, ...]:
    mixed = [name for other in LAYOUTS if other != layout for name in other if name in row]
    missing = [name for name in layout if name not in row]
    if mixed or missing:
        raise DataError(f"{where}: has {', '.join(row)}; expected {' and '.join(layout)}, as in the first example")
    values = tuple(row[name] for name in layout)
    if layout == ("image",):
        return tuple(_image(where, value, folder) for value in values)
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: {' and '.join(layout)} must be text, found {values!r:.80}")
    return values


def _image(where: str, value: Any, folder: Path) -> Any:
    if not isinstance(value, str):
        return value  # `datasets` decodes images itself
    path = folder / value
    if not path.is_file():
        raise DataError(f"{where}: no image at {path}")
    return path


def _image_batch(processor: Any, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    from PIL import Image, UnidentifiedImageError

    images = []
    for row in rows:
        image = row["image"]
        try:
            images.append((Image.open(image) if isinstance(image, Path) else image).convert("RGB"))
        except (OSError, UnidentifiedImageError) as cause:
            raise DataError(f"{image}: cannot be read as an image ({cause})") from None
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
    rows = [{ALIASES.get(column, column): value for column, value in row.items()} for row in loaded]
    return [(f"{source}[{number}]", row) for number, row in enumerate(rows)]


def checked(training: Training, examples: Examples, known: int | None) -> tuple[Examples, int | None]:
    """The examples with labels as the task's loss wants them, and the number of outputs of its head."""
    if training.task.labels is None:
        return examples, None
    if training.task.labels == VALUES:
        return replace(examples, labels=examples.values()), 1
    count = examples.classes(known)
    if count is None:
        raise DataError(
            f"{examples.source}: labels are real numbers; {training.task.name} expects whole ones from 0 on"
        )
    return examples, count
