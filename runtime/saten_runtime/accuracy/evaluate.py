"""Accuracy of bundles on a data file, and how far each agrees with a reference bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.accuracy.data import Data, read_data
from saten_runtime.accuracy.measures import MEASURES, Columns, Measure
from saten_runtime.accuracy.metrics import cosines, mcnemar
from saten_runtime.accuracy.results import SCHEMA_VERSION, Agreement, EvalData, EvalResult, EvalRow, Metrics
from saten_runtime.bench.stats import Interval, bootstrap
from saten_runtime.bundle.folder import Bundle, open_bundles
from saten_runtime.errors import DataError, UsageError
from saten_runtime.machine.device import package_versions
from saten_runtime.records.files import key_of, refuse_existing
from saten_runtime.records.jsonl import LineWriter, Notice, read_lines, rewrite_lines, silent
from saten_runtime.records.reader import Count, Natural, Reader
from saten_runtime.run.runner import Runner

__all__ = ["evaluate", "measure_of"]

Array = npt.NDArray[Any]
_EXAMPLES = Reader(DataError)


def evaluate(
    bundles: Sequence[Bundle | str | Path],
    data: Path,
    *,
    reference: Bundle | str | Path | None = None,
    threads: int = 1,
    examples: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    notice: Notice = silent,
) -> EvalResult:
    """Score every bundle on the file; with a reference, say how far each agrees with it.

    Embeddings then get the metric "cosine", too: the mean cosine to the reference's. examples: a
    file for the values of every example, JSON Lines; with `resume`, bundles it holds already are
    not run again.

    Raises:
        DataError: the file cannot be read, or fits no measure of the bundles' task.
        BundleError, RuntimeMismatch, InvalidRun: a bundle cannot be loaded or run.
        UsageError: bundles of different tasks, or `examples` exists.
    """
    named = open_bundles(bundles)
    table = read_data(data)
    measures = {name: measure_of(bundle, table) for name, bundle in named.items()}
    measure = next(iter(measures.values()))
    if any(other is not measure for other in measures.values()):
        raise UsageError(f"{', '.join(named)}: have different tasks; evaluate them separately")
    with _Examples(examples, resume=resume, overwrite=overwrite, notice=notice) as store:
        scorer = _Scorer(measure, table, threads, store)
        if reference is not None:
            scorer.refer_to(reference)
        rows = []
        for index, (name, bundle) in enumerate(named.items()):
            if progress is not None:
                progress(index, len(named), name)
            rows.append(scorer.row(name, bundle))
    described = EvalData(data.name, table.sha256, table.count)
    return EvalResult(SCHEMA_VERSION, measure.name, described, rows)


class _Scorer:
    """Scores bundles one after the other, each against the same reference."""

    def __init__(self, measure: Measure, data: Data, threads: int, store: _Examples) -> None:
        self._measure, self._data, self._threads, self._store = measure, data, threads, store
        self._reference: Bundle | None = None
        self._columns: Columns = {}
        self._vectors: Array | None = None

    def refer_to(self, reference: Bundle | str | Path) -> None:
        (bundle,) = open_bundles([reference]).values()
        if bundle.manifest.task != self._measure.bundle_task:
            wanted = self._measure.bundle_task
            raise UsageError(f"--reference: {bundle.name} has the task {bundle.manifest.task}, not {wanted}")
        self._reference = bundle
        examined = self._measure.examine(Runner.load(bundle, threads=self._threads), self._data)
        self._columns, self._vectors = examined.columns, examined.vectors

    def row(self, name: str, bundle: Bundle) -> EvalRow:
        key = self._key(bundle)
        columns, seconds = self._store.find(key, self._data.count)
        if columns is None:
            columns, seconds = self._examine(name, bundle)
            self._store.add(key, name, columns, seconds)
        metrics = self._score(columns)
        return EvalRow(name, metrics, seconds, self._agreement(columns) if self._reference else None)

    def _examine(self, name: str, bundle: Bundle) -> tuple[Columns, float]:
        runner = Runner.load(bundle, threads=self._threads)
        start = time.perf_counter()
        examined = self._measure.examine(runner, self._data)
        seconds = time.perf_counter() - start
        if self._vectors is None or examined.vectors is None:
            return examined.columns, seconds
        if examined.vectors.shape != self._vectors.shape:
            widths = (examined.vectors.shape[2], self._vectors.shape[2])
            raise UsageError(f"{name}: embeddings {widths[0]} wide, the reference's {widths[1]}")
        pairs = (vectors.reshape(-1, vectors.shape[2]) for vectors in (examined.vectors, self._vectors))
        alike = cosines(*pairs).reshape(self._data.count, -1).mean(axis=1)
        return {**examined.columns, "cosine": alike}, seconds

    def _score(self, columns: Columns) -> Metrics:
        alike = {"cosine": float(columns["cosine"].mean())} if "cosine" in columns else {}
        return {**self._measure.score(columns), **alike}

    def _agreement(self, columns: Columns) -> Agreement:
        assert self._reference is not None  # noqa: S101  only called with one
        measure, other = self._measure, self._columns
        right = measure.right
        return Agreement(
            to=self._reference.name,
            same=float((columns[measure.said] == other[measure.said]).mean()) if measure.said else None,
            mcnemar_p=mcnemar(right(columns), right(other)) if right else None,
            differences=_differences(measure, columns, other, self._data.count),
        )

    def _key(self, bundle: Bundle) -> str:
        """What the values of an example depend on."""
        files = {name: entry.sha256 for name, entry in bundle.manifest.files.items()}
        reference = self._reference and {name: one.sha256 for name, one in self._reference.manifest.files.items()}
        return key_of([files, reference, self._data.sha256, self._measure.name, self._threads, package_versions()])


def _differences(measure: Measure, columns: Columns, other: Columns, count: int) -> dict[str, Interval]:
    def difference(chosen: Array) -> dict[str, float]:
        mine, theirs = (
            measure.score({name: values[chosen] for name, values in one.items()}) for one in (columns, other)
        )
        # A sample drawn again may hold nothing a metric can be computed from, such as two equal labels.
        return {name: _minus(value, theirs[name]) for name, value in mine.items()}

    return bootstrap(difference, count)


def _minus(value: float | None, other: float | None) -> float:
    return float("nan") if value is None or other is None else value - other


@dataclass(frozen=True)
class _Example:
    """One line of the file: what the bundle of `key` said about one of `count` examples, all in `seconds`."""

    key: str
    count: Natural
    seconds: float
    example: Count
    values: dict[str, Any]


class _Examples:
    """The file that holds what every bundle said about every example, or nowhere when the path is None."""

    def __init__(self, path: Path | None, *, resume: bool, overwrite: bool, notice: Notice) -> None:
        self._found: dict[str, list[_Example]] = {}
        if path is not None:
            if path.exists() and resume:
                self._read(path, notice)
            elif overwrite:
                path.unlink(missing_ok=True)
            else:
                refuse_existing(path)
            path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = LineWriter(path, keep=True)

    def find(self, key: str, count: int) -> tuple[Columns | None, float]:
        """The columns stored under `key`, and the seconds they took; None when not all examples are there."""
        rows = self._found.get(key, [])
        if len(rows) != count or any(row.values.keys() != rows[0].values.keys() for row in rows):
            return None, 0.0
        columns = {name: np.array([row.values[name] for row in rows]) for name in rows[0].values}
        return columns, rows[0].seconds

    def add(self, key: str, bundle: str, columns: Columns, seconds: float) -> None:
        values = {name: array.tolist() for name, array in columns.items()}
        count = len(next(iter(values.values())))
        head = {"schema_version": SCHEMA_VERSION, "key": key, "bundle": bundle, "count": count, "seconds": seconds}
        self._lines.write_all(
            {**head, "example": index, "values": {name: column[index] for name, column in values.items()}}
            for index in range(count)
        )

    def _read(self, path: Path, notice: Notice) -> None:
        groups: dict[str, list[tuple[_Example, dict[str, Any]]]] = {}
        for number, row in enumerate(read_lines(path, notice), 1):
            if row.get("schema_version") != SCHEMA_VERSION:
                raise DataError(f"{path}: holds no examples of this version; choose another file, or --overwrite")
            example = _EXAMPLES.read(_Example, row, f"{path}:{number}")
            groups.setdefault(example.key, []).append((example, row))
        whole = {key: pairs for key, pairs in groups.items() if len(pairs) == pairs[0][0].count}
        self._found = {key: [example for example, _ in pairs] for key, pairs in whole.items()}
        rewrite_lines(path, [row for pairs in whole.values() for _, row in pairs])

    def __enter__(self) -> _Examples:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()


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
