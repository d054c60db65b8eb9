"""The report as data: what was measured, joined per bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saten_edge.reports.devices import bundle_of
from saten_edge.reports.text import MIB, plural
from saten_runtime.accuracy.results import EvalData, EvalResult, read_evaluation
from saten_runtime.bench.profiling import Profile, read_profile
from saten_runtime.bench.results import BenchResult, Cell, CellRatio, Load, Verdict, read_bench
from saten_runtime.bundle.folder import Bundle, open_bundles
from saten_runtime.bundle.manifest import FileEntry, Layer
from saten_runtime.errors import DataError
from saten_runtime.records.plain_text import printable
from saten_runtime.records.reader import RESULTS, Count
from saten_runtime.vocabulary.files import MODEL_FILE

__all__ = ["Note", "Point", "Report", "Row", "Setting", "Step", "build_report", "environment_facts"]


@dataclass(frozen=True)
class Setting:
    """What the latencies of one table have in common."""

    threads: int
    batch: int
    memory_mode: str

    def __str__(self) -> str:
        return f"{plural(self.threads, 'thread')}, batch {self.batch}, memory mode {self.memory_mode}"


@dataclass(frozen=True)
class Note:
    """A titled text shown as it is; a blank line starts a new paragraph."""

    title: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One point of the fine-tuning: optimizer step and loss."""

    step: Count
    loss: float


@dataclass(frozen=True)
class Row:
    """One bundle.

    bytes: on disk, everything the device needs; model_bytes: graph and weights alone. dense: no
    layer is stored compressed. cells: latency by token count, in the report's setting. Whatever was not
    measured is None or empty.
    """

    name: str
    precision: str | None
    dense: bool
    bytes: int | None
    model_bytes: int | None
    layers: tuple[Layer, ...]
    files: tuple[tuple[str, FileEntry], ...]
    cells: Mapping[int, Cell]
    load: Load | None
    metrics: Mapping[str, float | None]

    @property
    def peak_anon_mib(self) -> float | None:
        """Highest anonymous memory of the process, MiB."""
        memory = self.load.memory if self.load else None
        return None if memory is None or memory.peak_anon_bytes is None else memory.peak_anon_bytes / MIB

    @property
    def cold_load_ms(self) -> float | None:
        """From the start of a fresh process to its first result."""
        return self.load.cold_load_ms if self.load else None

    def p50_ms(self, tokens: int) -> float | None:
        """Median latency; None when not measured or failed."""
        return self.time_ms("p50_ms", tokens)

    def time_ms(self, statistic: str, tokens: int) -> float | None:
        """A statistic of the latency by its field name in `Cell`; None when not measured or failed."""
        cell = self.cells.get(tokens)
        value: float | None = getattr(cell, statistic) if cell and cell.failed is None else None
        return value

    def times_floor(self, tokens: int) -> float | None:
        """How many times its floor the median takes; None when either is not known."""
        cell = self.cells.get(tokens)
        return cell.times_floor if cell and cell.failed is None else None

    def has_failed(self, tokens: int) -> bool:
        """Whether the run at this token count was tried and failed."""
        cell = self.cells.get(tokens)
        return cell is not None and cell.failed is not None

    def ratio(self, tokens: int, to: str) -> CellRatio | None:
        """The paired time ratio to the bundle `to`, when that pair was measured."""
        cell = self.cells.get(tokens)
        found = cell.ratio if cell and cell.failed is None else None
        return found if found and found.to == to else None


@dataclass(frozen=True)
class Point:
    """One candidate of a search. bytes: of the bundle. drop: points of the metric lost; None where not computed.

    level: what the numbers are taken from. why: it was dropped. chosen: it is the answer.
    """

    name: str
    bytes: int
    drop: float | None
    level: str
    why: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Report:
    """Everything the outputs show; no output reads a file or computes a measurement.

    baseline: the bundle ratios and percentages refer to. tokens: measured token counts, ascending.
    metrics: names, in the order of eval.json. cells, loads: all settings, as measured. profiles: by
    bundle. generation: the cells in which a decoder generates, or reads after other tokens. trials, answer: of a
    search that found these bundles.
    """

    rows: tuple[Row, ...]
    baseline: Row
    setting: Setting | None
    tokens: tuple[int, ...]
    metrics: tuple[str, ...]
    verdict: Verdict | None
    environment: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]
    loads: tuple[Load, ...]
    task: str | None
    data: EvalData | None
    notes: tuple[Note, ...]
    history: tuple[Step, ...]
    profiles: Mapping[str, Profile]
    generation: tuple[Cell, ...]
    trials: tuple[Point, ...] = ()
    answer: str = ""

    @property
    def failures(self) -> tuple[Cell, ...]:
        """The cells that failed."""
        return tuple(cell for cell in self.cells if cell.failed is not None)


def build_report(
    bundles: Sequence[Bundle],
    bench: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    *,
    notes: Iterable[tuple[str, str]] = (),
    history: Iterable[Mapping[str, Any]] = (),
    profiles: Iterable[Mapping[str, Any]] = (),
    trials: Iterable[Point] = (),
    answer: str = "",
) -> Report:
    """Join opened bundles with the content of bench.json and eval.json, by bundle name.

    Rows come in the order of `bundles`, where a name met again is "name#2" as in bench.json, then
    bundles that only the measurements know. The table shows the setting of the first cell; the
    baseline is what the first ratio refers to, else the first row.

    Raises:
        DataError: a field missing, of a wrong type or out of range, a measurement given twice, or
            nothing to report at all.
    """
    measured = read_bench(bench) if bench is not None else None
    scored = read_evaluation(evaluation) if evaluation is not None else None
    setting = _setting(measured)
    rows = tuple(_rows(bundles, measured, scored, setting))
    if not rows:
        raise DataError("report: found no bundle, no bench.json and no eval.json; expected at least one of them")
    return Report(
        rows=rows,
        baseline=_baseline(rows, measured),
        setting=setting,
        tokens=tuple(sorted({tokens for row in rows for tokens in row.cells})),
        metrics=tuple(dict.fromkeys(metric for row in rows for metric in row.metrics)),
        verdict=measured.verdict if measured else None,
        environment=tuple(environment_facts(measured)) if measured else (),
        cells=tuple(measured.cells) if measured else (),
        loads=tuple(measured.loads) if measured else (),
        task=scored.task if scored else None,
        data=scored.data if scored else None,
        notes=tuple(_note(title, text) for title, text in notes),
        history=tuple(RESULTS.read(list[Step], list(history), "history")),
        profiles={profile.bundle: profile for profile in map(read_profile, profiles)},
        generation=tuple(cell for cell in measured.cells if not _is_run(cell)) if measured else (),
        trials=tuple(trials),
        answer=answer,
    )


def _rows(
    bundles: Sequence[Bundle], bench: BenchResult | None, evaluation: EvalResult | None, setting: Setting | None
) -> Iterator[Row]:
    opened = {printable(name): bundle for name, bundle in open_bundles(bundles).items()}
    cells = _unique("bench.json.cells", (((cell.bundle, cell.tokens), cell) for cell in _in_setting(bench, setting)))
    loads = _loads(bench, setting)
    scored = _unique("eval.json.rows", ((row.bundle, row) for row in evaluation.rows)) if evaluation else {}
    names = dict.fromkeys((*opened, *(name for name, _ in cells), *loads, *scored))
    # a bundle that only devices measured has no row of its own
    on_devices = {bundle_of(name) for name in names if name != bundle_of(name)} - {name for name, _ in cells}
    for name in (name for name in names if name not in on_devices):
        yield Row(
            name=name,
            cells={tokens: cell for (owner, tokens), cell in cells.items() if owner == name},
            load=loads.get(name),
            metrics=scored[name].metrics if name in scored else {},
            **_contents(opened.get(name) or opened.get(bundle_of(name)), loads.get(name)),
        )


def _contents(bundle: Bundle | None, load: Load | None) -> dict[str, Any]:
    """What the manifest tells; of a bundle known by its measurements alone, only its size."""
    if bundle is None:
        disk = load.disk_bytes if load else {}
        model = sum(size for file, size in disk.items() if file.startswith(MODEL_FILE))
        sizes = {"bytes": sum(disk.values()) or None, "model_bytes": model or None}
        return {"precision": None, "dense": False, "layers": (), "files": (), **sizes}
    layers = tuple(_printable_layer(layer) for layer in bundle.manifest.layers)
    files = ((printable(name), FileEntry(entry.bytes, printable(entry.sha256))) for name, entry in _files(bundle))
    return {
        "precision": printable(bundle.manifest.precision),
        "dense": bundle.manifest.is_dense,
        "bytes": bundle.size_bytes,
        "model_bytes": bundle.model_bytes,
        "layers": layers,
        "files": tuple(files),
    }


def _files(bundle: Bundle) -> Iterable[tuple[str, FileEntry]]:
    return sorted(bundle.manifest.files.items())


def _printable_layer(layer: Layer) -> Layer:
    return dataclasses.replace(
        layer, name=printable(layer.name), kind=printable(layer.kind), form=printable(layer.form)
    )


def _unique(where: str, items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in items:
        if key in result:
            raise DataError(f"{where}: found {key!r} twice, expected it once; was the file edited?")
        result[key] = value
    return result


def environment_facts(bench: BenchResult) -> Iterator[tuple[str, str]]:
    """Everything recorded about machine and run, as (dotted name, text)."""
    return _flat(bench.environment)


def _is_run(cell: Cell) -> bool:
    """Whether the cell belongs to the tables by token count: one pass over an input from its beginning."""
    return cell.phase != "generate" and cell.depth == 0


def _setting(bench: BenchResult | None) -> Setting | None:
    if bench is None or not bench.cells:
        return None
    return _setting_of(bench.cells[0])


def _setting_of(cell: Cell) -> Setting:
    return Setting(cell.threads, cell.batch, cell.memory_mode)


def _in_setting(bench: BenchResult | None, setting: Setting | None) -> list[Cell]:
    return [cell for cell in bench.cells if _setting_of(cell) == setting and _is_run(cell)] if bench else []


def _loads(bench: BenchResult | None, setting: Setting | None) -> dict[str, Load]:
    """By bundle, the load measured in the table's setting; else the first one measured."""
    result: dict[str, Load] = {}
    for load in bench.loads if bench else ():
        fits = setting is not None and (load.threads, load.memory_mode) == (setting.threads, setting.memory_mode)
        if fits or load.bundle not in result:
            result[load.bundle] = load
    return result


def _baseline(rows: tuple[Row, ...], bench: BenchResult | None) -> Row:
    named = [cell.ratio.to for cell in bench.cells if cell.ratio] if bench else []
    by_name = {row.name: row for row in rows}
    return next((by_name[name] for name in named if name in by_name), rows[0])


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as (dotted key, text)."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from _flat(item, f"{name}.")
        elif isinstance(item, list) and any(isinstance(one, dict) for one in item):
            yield from _flat({str(index): one for index, one in enumerate(item)}, f"{name}.")
        elif isinstance(item, list):
            yield name, ", ".join(map(str, item))
        else:
            yield name, "not known" if item is None else str(item)


def _note(title: str, text: str) -> Note:
    parts = (" ".join(printable(line) for line in part.splitlines()).strip() for part in text.split("\n\n"))
    return Note(printable(title), tuple(part for part in parts if part))
