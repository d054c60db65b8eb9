"""The judge: a data file in two parts, one that steers the search and one that only confirms; and its metric."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_edge.texts import read_rows, write_lines
from saten_runtime.accuracy.data import KINDS, Data, in_our_names, read_data
from saten_runtime.accuracy.measures import MEASURES
from saten_runtime.errors import DataError, UsageError
from saten_runtime.records.files import sha256_file
from saten_runtime.vocabulary.tasks import FEATURE_EXTRACTION

__all__ = ["NOTHING_LEFT", "PARTS", "Judge", "Scale", "read_judge", "scale_of"]

PARTS = ("steer", "confirm")
SMALLEST_PART = 4
# Points that are lost where nothing is left, and the most that a perplexity can lose.
NOTHING_LEFT, MOST_POINTS = 100.0, 1e6


@dataclass(frozen=True)
class Scale:
    """How far apart two values of a metric are, in points: `per_unit` a unit, or per cent where less is better."""

    higher_is_better: bool = True
    per_unit: float = 100.0

    def drop(self, dense: float | None, found: float | None) -> float:
        """Points that `found` is worse than `dense`; negative where it is better.

        None is where the metric is not defined, such as a correlation with answers that are all the same: nothing says
        then that less is lost than everything.
        """
        if dense is None or found is None:
            return NOTHING_LEFT
        if self.higher_is_better:
            return round((dense - found) * self.per_unit, 9)  # without the rounding of the subtraction
        if not dense:
            return MOST_POINTS if found else 0.0
        return round(min((found / dense - 1) * 100, MOST_POINTS), 9)


@dataclass(frozen=True)
class Judge:
    """A judge's file, what it measures, and how much of it stands in the training data, too."""

    path: Path
    data: Data
    sha256: str
    overlap: int

    def write(self, folder: Path, confirm: float, seed: int) -> dict[str, Path]:
        """Write its two parts into a folder as JSON Lines, drawn by the seed; the share `confirm` is the second.

        Raises:
            UsageError: a part would be too small to judge by.
        """
        count = self.data.count
        held = round(confirm * count)
        if min(held, count - held) < SMALLEST_PART:
            raise UsageError(
                f"--judge {self.path}: {count} examples make parts of {count - held} and {held}; "
                f"expected at least {SMALLEST_PART} in each"
            )
        kept = set(random.Random(f"judge {seed}").sample(range(count), held))  # noqa: S311 - a split, not a secret
        paths = {part: folder / f"{part}.jsonl" for part in PARTS}
        for part, path in paths.items():
            numbers = [number for number in range(count) if (number in kept) is (part == "confirm")]
            write_lines(path, [self._row(number) for number in numbers])
        return paths

    def _row(self, number: int) -> dict[str, Any]:
        row = {name: column[number] for name, column in self.data.columns.items()}
        if "image" in row:
            row["image"] = str((self.path.parent / row["image"]).resolve())
        return row


def read_judge(path: Path, training: Path) -> Judge:
    """Read a judge, and compare it with the training data.

    Raises:
        UsageError: it is the training data.
        DataError: one of them cannot be read.
    """
    sha256 = sha256_file(path) if path.is_file() else ""
    if sha256 and training.is_file() and sha256_file(training) == sha256:
        raise UsageError(f"--judge {path}: is the training data, {training}; judge by examples that are not trained on")
    data = read_data(path)
    inputs = next(kind for kind in KINDS if kind.name == data.kind).inputs
    rows = read_rows(training)
    named = in_our_names(rows, KINDS, labelled=False) if rows else []
    trained = {_text(row, inputs) for _, row in named}
    shared = sum(_text(row, inputs) in trained for row in _rows(data, inputs))
    return Judge(path, data, sha256, shared)


def scale_of(judge: Judge, task: str, metric: str | None) -> tuple[str, Scale]:
    """The metric that decides, and its scale.

    task: of the bundle, as `saten_runtime` names it.

    Raises:
        DataError: the judge's data is not what models of this task are scored by.
        UsageError: there is no such metric for it.
    """
    measure = next((row for row in MEASURES if (row.data, row.bundle_task) == (judge.data.kind, task)), None)
    if measure is None:
        fitting = sorted({row.data for row in MEASURES if row.bundle_task == task})
        raise DataError(
            f"--judge {judge.path}: holds {judge.data.kind} data, a model for {task} is judged by {', '.join(fitting)}"
        )
    known = SCALES[measure.name]
    if metric is not None and metric not in known:
        raise UsageError(f"--metric {metric}: {measure.name} has {', '.join(known)}")
    name = metric or next(iter(known))
    return name, known[name]


def needs_head(judge: Judge, task: str) -> bool:
    """Whether a model for embeddings has to learn the judge's labels first, for it has no other use for them."""
    measured = {row.bundle_task for row in MEASURES if row.data == judge.data.kind}
    return task == FEATURE_EXTRACTION.name and task not in measured


def _rows(data: Data, inputs: list[str]) -> list[dict[str, Any]]:
    return [{name: data.columns[name][number] for name in inputs} for number in range(data.count)]


def _text(row: Mapping[str, Any], inputs: list[str]) -> str:
    """What an example asks, in any spelling of white space and case."""
    return "\n".join(" ".join(str(row.get(name, "")).casefold().split()) for name in inputs)


_HIGH = Scale()
# measure → its metrics, the one that decides by default first
SCALES: Mapping[str, Mapping[str, Scale]] = {
    "search": dict.fromkeys(("recall_at_1", "recall_at_10", "mrr_at_10"), _HIGH),
    "similarity": dict.fromkeys(("spearman", "pearson"), _HIGH),
    "classification": dict.fromkeys(("accuracy", "macro_f1", "binary_f1", "matthews"), _HIGH),
    "regression": {"spearman": _HIGH, "pearson": _HIGH, "rmse": Scale(higher_is_better=False)},
    "images": dict.fromkeys(("top_1", "top_5"), _HIGH),
    "entities": dict.fromkeys(("entity_f1", "accuracy"), _HIGH),
    "answers": dict.fromkeys(("f1", "exact_match"), _HIGH),
    "language": {"perplexity": Scale(higher_is_better=False)},
}
