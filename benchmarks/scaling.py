"""How time and memory grow, as `python benchmarks/scaling.py --work artifacts [--prices FILE] [-o FILE.json]`.

A whole model of MiniLM's shape, with random weights, dense and compressed, against tokens, batch and threads; and one
layer against rank, density, size of blocks and width, in each lowering, beside what the cost model predicts. Sessions
take turns as in the other tables. The first table counts where each lowering is the fastest. Predictions are by the
prices that ship, or by those of this machine, a file that `saten-edge devices calibrate local` wrote.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from encoder import METHODS, random_checkpoints
from peers.artifacts import Maker, Row, build, saten_rows, target
from peers.comparison import say
from peers.measure import Column, Turns, measure, peaks, tokens_columns
from peers.plots import COLORS, PREDICTED, Line, panels
from peers.results import RESULTS, markdown, publish, short
from peers.synthetic import check, idle_ns, matrix_of, samples_ns, session

from saten_exporters.choice.cost import predicted_us
from saten_exporters.choice.prices import prices_for
from saten_exporters.choice.random_layers import random_layer
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import LOWERINGS, Form
from saten_exporters.forms.form import NATIVE
from saten_runtime.run.kernels import probe

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
MODELS = (
    Row("dense fp32", "onnxruntime", "dense", "fp32"),
    Row("dense int8", "onnxruntime", "dense", "int8"),
    *saten_rows("saten-grouped 0.25", ("fp32", "int8"), (False, True)),
)
TOKENS, BATCHES, BATCHED_TOKENS, THREADS = (1, 2, 8, 32, 128, 512), (1, 4, 16), 32, (1, 2)
LINE_COLORS = ("dense-0", "dense-1", "saten-0", "saten-2", "saten-1", "saten-3")
TURN_S = 2e-3


@dataclass(frozen=True)
class Point:
    """A layer. rank, density: as shares of the smaller side and of the entries; group: outputs in a block."""

    width: int = 768
    rank: float = 0.125
    density: float = 0.05
    group: int = 32
    rows: int = 128

    def parts(self) -> LayerParts:
        """Random numbers of width → 4 · width."""
        rank = max(1, int(self.rank * self.width))
        kept = int(self.density * self.width)
        layout = "grouped" if kept else "none"
        return random_layer(
            (self.width, 4 * self.width), rank, layout, kept, np.random.default_rng(0), group=self.group
        )


AXES: dict[str, Sequence[Any]] = {
    "rank": (0.015625, 0.03125, 0.0625, 0.125, 0.25, 0.5),
    "density": (0.0125, 0.025, 0.05, 0.1, 0.2),
    "group": (4, 8, 16, 32, 64, 128),
    "width": (192, 384, 768, 1536),
    "rows": (1, 8, 32, 128, 512),
}
FORMS = ("dense", "low-rank", "tt-chain")
PARTS = ("models", "layers")
# A choice may take so much longer than the best form, and has to keep to it at so many of all points.
MOST_LOST, WANTED = 0.05, 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the artifacts; kept for the next run")
    parser.add_argument("--quick", action="store_true", help="two rounds, few points, a smaller model")
    parser.add_argument("--rounds", type=int, help="default: 4, or 2 if --quick")
    parser.add_argument("--only", choices=PARTS, help="one of the two parts")
    parser.add_argument("--prices", type=Path, help="predict by these of this machine; default: by those that ship")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "scaling.json")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 4)
    rows: list[dict[str, Any]] = []
    if arguments.only != "layers":
        rows += models(arguments.work, rounds, arguments.quick)
    if arguments.only != "models":
        rows += layers(rounds, arguments.prices, quick=arguments.quick)
    publish(arguments.output, rows, table_text(rows), picture(rows))
    return 0


def models(work: Path, rounds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """One object per model, axis (tokens, batch, threads) and place on it."""
    sizes = {**MINILM, "num_hidden_layers": 1} if quick else MINILM
    maker = Maker(random_checkpoints(work, METHODS, sizes), work, list)
    built, faults = build(MODELS, maker)
    for row, why in faults.items():
        say(f"{row.name}: left out, {why}")
    columns = {
        "tokens": tokens_columns(TOKENS[::5] if quick else TOKENS),
        "batch": tokens_columns((BATCHED_TOKENS,), BATCHES[:2] if quick else BATCHES),
    }
    every = {column.name: column for of_axis in columns.values() for column in of_axis}
    plan = Turns(sorted(every.values(), key=lambda each: each.rows), THREADS, rounds, 0.1 * rounds)
    measured = measure(list(built.values()), plan, say)
    peak = {(row, threads): peaks(built[row], plan.columns, threads) for row in built for threads in THREADS}
    for row in built:
        for axis, column, threads in _cells(columns):
            yield {
                "of": "model",
                "form": row.name,
                "axis": axis,
                "at": {"tokens": column.shape[1], "batch": column.shape[0], "threads": threads}[axis],
                "ms": measured[row.name].median_ms(column.name, threads),
                "peak_anon_bytes": peak[row, threads][column.name],
            }


def _cells(columns: Mapping[str, Sequence[Column]]) -> Iterator[tuple[str, Column, int]]:
    """(axis, column, threads): other axes stay at one thread, threads are shown at the longest text."""
    yield from ((axis, column, THREADS[0]) for axis, of_axis in columns.items() for column in of_axis)
    yield from (("threads", columns["tokens"][-1], threads) for threads in THREADS)


@dataclass(frozen=True)
class Subject:
    """One lowering of one layer at a point of an axis."""

    axis: str
    point: Point
    lowering: str
    form: Form
    parts: LayerParts
    run: Any
    kernels: bool

    @property
    def name(self) -> str:
        """E.g. "low-rank int8 + kernels"."""
        return f"{self.lowering} {self.form.precision}{' + kernels' * self.kernels}"


def subjects(axes: Mapping[str, Sequence[Any]]) -> Iterator[Subject]:
    """Every lowering of every point, without and with the native kernels where there are some."""
    switches = (False, True) if probe().state == "active" else (False,)
    for axis, values in axes.items():
        for value in values:
            point = replace(Point(), **{axis: value})
            parts = point.parts()
            matrix = matrix_of(parts)
            for lowering in FORMS:
                for precision in NATIVE:
                    form = LOWERINGS[lowering].form(parts, precision)
                    for native in switches if form.native and lowering != "dense" else (False,):
                        run = session(form, parts, point.rows, native=native)
                        subject = Subject(axis, point, lowering, form, parts, run, native)
                        check(subject.name, run, matrix, precision)
                        yield subject


def layers(rounds: int, file: Path | None, *, quick: bool) -> Iterator[dict[str, Any]]:
    """One object per axis, place on it and lowering; the shortest of all runs, less an empty graph's.

    file: of the prices that predict.
    """
    say("layers")
    everything = list(subjects({axis: values[::3] if quick else values for axis, values in AXES.items()}))
    prices = {native: prices_for(target(native), file) for native in {subject.kernels for subject in everything}}
    idle, shortest = idle_ns(rounds), [math.inf] * len(everything)
    chance = np.random.default_rng(1)
    inputs = [chance.standard_normal((each.point.rows, each.point.width), np.float32) for each in everything]
    for _ in range(rounds):
        for k, (subject, x) in enumerate(zip(everything, inputs, strict=True)):
            shortest[k] = min(shortest[k], *samples_ns(subject.run, x, TURN_S))
    for subject, ns in zip(everything, shortest, strict=True):
        packed, native = subject.form.pack(subject.parts), subject.kernels
        rates, rows = prices[native], subject.point.rows
        yield {
            "of": "layer",
            "form": subject.name,
            "lowering": subject.lowering,
            "precision": subject.form.precision,
            "kernels": subject.kernels,
            "axis": subject.axis,
            "at": getattr(subject.point, subject.axis),
            "ms": max(ns - idle, 1.0) / 1e6,
            "predicted_ms": predicted_us(subject.form, subject.parts, rows, target(native), rates) / 1e3,
            "bytes": sum(packed[name].nbytes for name in subject.form.inputs),
        }


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Where which lowering wins, then the models, then all layers."""
    there = {row["of"] for row in rows}
    parts = (
        ("layer", winners(rows)),
        ("model", f"### Models\n\n{_table(rows, 'model', 'peak_anon_bytes', 'ms; peak anonymous, MB')}"),
        ("layer", f"### Layers\n\n{_table(rows, 'layer', 'predicted_ms', 'ms; predicted, ms')}"),
    )
    return "\n".join(text for of, text in parts if of in there)


# axis, precision, with kernels → place, the fastest lowering, the one predicted to be, and what that takes longer
Choices = Mapping[tuple[str, str, bool], Sequence[tuple[Any, str, str, float]]]


def choices(rows: Sequence[dict[str, Any]]) -> Choices:
    """What the prediction chooses at every point, and what it loses by that."""
    cells: dict[tuple[str, str, bool], list[tuple[Any, str, str, float]]] = {}
    of_layers = [row for row in rows if row["of"] == "layer"]
    for kernels in sorted({row["kernels"] for row in of_layers}):
        keys = dict.fromkeys((row["axis"], row["precision"], row["at"]) for row in of_layers)
        for axis, precision, at in keys:
            own = [row for row in of_layers if (row["axis"], row["precision"], row["at"]) == (axis, precision, at)]
            own = [row for row in own if row["kernels"] == kernels or row["lowering"] == "dense"]
            best, picked = min(own, key=lambda row: row["ms"]), min(own, key=lambda row: row["predicted_ms"])
            lost = picked["ms"] / best["ms"] - 1
            cells.setdefault((axis, precision, kernels), []).append((at, best["lowering"], picked["lowering"], lost))
    return cells


def winners(rows: Sequence[dict[str, Any]]) -> str:
    """Where the prediction's favourite was the fastest, by axis and precision, with and without kernels."""
    lines, cells = [], choices(rows)
    for (axis, precision, kernels), found in cells.items():
        wins = Counter(best for _, best, _, _ in found)
        places = {name: [f"{at:g}" for at, best, _, _ in found if best == name] for name in FORMS}
        said = [", ".join(places[name]) or "–" for name in FORMS]
        right = sum(best == picked for _, best, picked, _ in found)
        worst = max(lost for *_, lost in found)
        lines.append([axis, precision, "yes" if kernels else "no", *said, f"{right} of {wins.total()}", f"{worst:.0%}"])
    head = ["axis", "precision", "kernels", *(f"{name} is fastest at" for name in FORMS)]
    return f"{markdown([*head, 'predicted fastest is', 'lost at most'], lines, texts=6)}\n{verdict(cells)}\n"


def verdict(cells: Choices) -> str:
    """How often a choice loses little."""
    lost = [each for found in cells.values() for *_, each in found]
    good = sum(each <= MOST_LOST for each in lost)
    met = "met " if good >= WANTED * len(lost) else "MISS"
    return f"- {met} the choice loses at most {MOST_LOST:.0%}: at {good} of {len(lost)} points (wanted {WANTED:.0%})"


def _table(rows: Sequence[dict[str, Any]], of: str, also: str, unit: str) -> str:
    """All places of all axes, by form: the time, and a second column."""
    scale = 1e-6 if also.endswith("bytes") else 1
    text = ""
    own = [row for row in rows if row["of"] == of]
    for axis in dict.fromkeys(row["axis"] for row in own):
        of_axis = [row for row in own if row["axis"] == axis]
        places = list(dict.fromkeys(row["at"] for row in of_axis))
        lines = [
            [form, *(f"{short(row['ms'])}; {short(row[also] * scale)}" for row in of_axis if row["form"] == form)]
            for form in dict.fromkeys(row["form"] for row in of_axis)
        ]
        text += f"\n{markdown([f'{axis}: {unit}', *(f'{place:g}' for place in places)], lines)}"
    return text.lstrip("\n")


def picture(rows: Sequence[dict[str, Any]]) -> str:
    """A panel per axis; what was predicted is dashed."""
    drawings = {}
    for of, axis in dict.fromkeys((row["of"], row["axis"]) for row in rows):
        own = [row for row in rows if (row["of"], row["axis"]) == (of, axis) and row["ms"]]
        own = [row for row in own if of == "model" or row["precision"] == "int8"]
        lines = []
        for form, color in zip(dict.fromkeys(row["form"] for row in own), LINE_COLORS, strict=False):
            points = [row for row in own if row["form"] == form]
            places = [row["at"] for row in points]
            lines.append(Line(form, places, [row["ms"] for row in points], COLORS[color]))
            if of == "layer":
                lines.append(Line("", places, [row["predicted_ms"] for row in points], COLORS[color], PREDICTED))
        drawings[f"{of}: {axis}"] = (axis, "ms", lines)
    return panels("Scaling; dashed: predicted", drawings)


if __name__ == "__main__":
    sys.exit(main())
