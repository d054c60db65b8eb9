"""What a data file or a set of the `datasets` library holds, and the examples in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_edge.texts import FORMATS, number_in, read_rows, text_in
from saten_edge.training.columns import EXPECTED, LABEL, label_column, layout_of
from saten_edge.training.data import Examples
from saten_edge.training.spans import answers_in, list_in
from saten_runtime.accuracy.columns import IMAGE, QUESTION, WORDS
from saten_runtime.errors import DataError
from saten_runtime.records.plain_text import one_line
from saten_runtime.records.rows import Placed
from saten_runtime.vocabulary.tasks import (
    IMAGE_CLASSIFICATION,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
)

__all__ = ["Rows"]

# Layouts by what a task's examples are called, `Training.inputs`, and the task that labels of such examples are for.
KINDS = {IMAGE: "image", WORDS: "words", QUESTION: "question"}
WANTED = {"text": "text, or text_a and text_b", "image": "image", "words": "words", "question": "question and context"}
TASKS = {IMAGE: IMAGE_CLASSIFICATION, WORDS: TOKEN_CLASSIFICATION, QUESTION: QUESTION_ANSWERING}


@dataclass(frozen=True)
class Rows:
    """What a data file or set holds, before it is known what for.

    layout: the columns of an example, ours → theirs; None where their names say nothing. label: that of the labels.
    """

    source: str
    folder: Path
    rows: list[Placed]
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
        layout = layout_of(source, there, named)
        label = label_column(there, named, layout)
        return cls(source, path.parent, rows, layout, label, chosen=bool(named.keys() - {LABEL}))

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.label is not None

    @property
    def kind(self) -> str:
        """What an example looks like: "image", "words", "question" or "text"."""
        return KINDS.get(tuple(self.layout or ()), "text")

    @property
    def task(self) -> Task:
        """What a new head would learn from the labels."""
        return TASKS.get(tuple(self.layout or ()), TEXT_CLASSIFICATION)

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
        if inputs != self.kind:
            raise DataError(f"{self.source}: its columns are {columns}; the task's examples have {WANTED[inputs]}")
        examples = [self._example(where, row, self.layout) for where, row in self.rows]
        return Examples(self.source, examples, None if self.label is None else self._labels(self.label, self.layout))

    def _labels(self, column: str, layout: Mapping[str, str]) -> list[Any]:
        for where, row in self.rows:
            if row.get(column) in (None, ""):
                raise DataError(f"{where}: has no label; expected one in {column}")
        if self.kind == "question":
            return [answers_in(where, row[layout["context"]], row[column]) for where, row in self.rows]
        if self.kind == "words":
            labels = [_of_words(where, row[layout["words"]], row[column]) for where, row in self.rows]
            return labels if _are_words(label for row in labels for label in row) else _numbers(labels)
        plain = [row[column] for _, row in self.rows]
        return plain if _are_words(plain) else _numbers(plain)

    def _plain(self) -> list[tuple[str, ...]]:
        wanted = set(self.layout.values()) if self.layout is not None and self.chosen else None
        columns = (
            column
            for _, row in self.rows
            for column in row.items()
            if (column[0] != self.label if wanted is None else column[0] in wanted)
        )
        found = itertools.starmap(text_in, columns)
        texts: list[tuple[str, ...]] = [(text,) for text in found if text is not None]
        if not texts:
            raise DataError(f'{self.source}: holds no text; expected lines such as {{"text": "…"}}')
        return texts

    def _example(self, where: str, row: dict[str, Any], layout: Mapping[str, str]) -> tuple[Any, ...]:
        if any(column not in row for column in layout.values()):
            wanted = " and ".join(layout.values())
            raise DataError(f"{where}: has {', '.join(row)}; expected {wanted}, as in the first example")
        values = tuple(row[column] for column in layout.values())
        if self.kind == "image":
            return tuple(_image(where, value, self.folder) for value in values)
        if self.kind == "words":
            return tuple(_words(where, value) for value in values)
        if not all(isinstance(value, str) for value in values):
            raise DataError(f"{where}: {' and '.join(layout.values())} must be text, found {values!r:.80}")
        return values


def _words(where: str, value: Any) -> list[str]:
    words = list_in(where, value)
    if not words or not all(isinstance(word, str) for word in words):
        raise DataError(f"{where}: found {value!r:.60}, expected a list of words")
    return words


def _of_words(where: str, words: Any, value: Any) -> list[Any]:
    """The labels of an example's words."""
    labels, count = list_in(where, value), len(list_in(where, words))
    if len(labels) != count:
        raise DataError(f"{where}: has {count} words and {len(labels)} labels; expected one for each word")
    return labels


def _are_words(labels: Iterable[Any]) -> bool:
    """Whether some of these labels are no numbers."""
    return any(isinstance(label, str) and isinstance(number_in(label), str) for label in labels)


def _numbers(labels: list[Any]) -> list[Any]:
    """Labels that are numbers, those that are written as texts included."""
    read: dict[type, Callable[[Any], Any]] = {list: _numbers, str: number_in}
    return [read[type(label)](label) if type(label) in read else label for label in labels]


def _image(where: str, value: Any, folder: Path) -> Any:
    if not isinstance(value, str):
        return value  # `datasets` decodes images itself
    path = folder / value
    if not path.is_file():
        raise DataError(f"{where}: no image at {path}")
    return path


def _dataset_rows(source: str, split: str) -> list[Placed]:
    import datasets

    name, _, config = source.partition(":")
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(name, config or None, split=split)
    except Exception as cause:  # the library raises many kinds, offline ones too
        reason = one_line(cause, 200)
        raise DataError(f"{source}: no such file, and no data set with a split {split!r} either ({reason})") from None
    named = {column: names for column in loaded.column_names if (names := _names_in(loaded.features[column]))}
    return [(f"{source}[{number}]", _with_names(dict(row), named)) for number, row in enumerate(loaded)]


def _names_in(feature: Any) -> list[str]:
    """What a data set calls the numbers in a column of lists, as in that of the labels of words."""
    return list(getattr(getattr(feature, "feature", None), "names", None) or ())


def _with_names(row: dict[str, Any], named: Mapping[str, list[str]]) -> dict[str, Any]:
    return {**row, **{column: [names[number] for number in row[column]] for column, names in named.items()}}
