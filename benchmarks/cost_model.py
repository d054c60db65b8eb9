"""Measures what the cost model predicts from, as `python benchmarks/cost_model.py [--write] [-o FILE.json]`.

Parts of layers in every form and precision, of several shapes (those of layers.py among them) and with 1 to 512 rows,
take turns in one process on one thread; the shortest run of each counts, less that of an empty graph: others' turns on
a shared machine only ever add. The prices of `saten_exporters.choice.cost` are fitted to the measurements by non-
negative least squares of the relative error, on every shape but one. The table has, for each form, how far prediction
and measurement are apart on the shapes fitted and on the one left out; then how often the model picks the fastest form
and what it loses where it does not. With --write the prices go into the exporter's table, for this machine's target.
Where the native kernels are installed their prices are measured, too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from layers import SHAPES as LAYERS
from peers.artifacts import target
from peers.plots import COLORS, bars
from peers.results import RESULTS, markdown, publish
from peers.synthetic import idle_ns, layer, samples_ns, session
from scipy.optimize import nnls

import saten_exporters
from saten_exporters.choice.cost import KERNELS, RATES_FILE, Rates
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import (
    DENSE_FORMS,
    LOWERINGS,
    RESIDUAL_FORMS,
    TRAIN_FORMS,
    Form,
    Work,
    head_of,
)
from saten_exporters.forms.form import NATIVE
from saten_exporters.quantize import PRECISIONS
from saten_runtime.records.files import write_json
from saten_runtime.run.kernels import probe

SHAPES = ((384, 384), (384, 1536), (1536, 384), (768, 768), *LAYERS, (2048, 512))
LEFT_OUT = (768, 768)
TABLE = (20_000, 384)
ROWS = (1, 8, 32, 128, 512)
GROUPS = (4, 8, 16, 32, 64, 128)
DENSITY = 0.1
ENTRY_DENSITY = 0.02  # of a table
RANK_SHARE = 0.12  # of the smaller side
TURN_S = 2e-3
NOISE = 0.1  # of an empty graph's time; a difference below it is noise, whose relative error must not lead the fit
PRICES = ("call", "weight", "mac", "move")


@dataclass(frozen=True)
class Subject:
    """One form of one layer. steps: what the model takes it for, (precision, step)."""

    name: str
    shape: tuple[int, int]
    native: bool
    run: Any
    steps: tuple[tuple[str, Work], ...]


def layer_of(shape: tuple[int, int], layout: str, group: int, rng: np.random.Generator) -> LayerParts:
    """A random layer, a table where the layout is "ell"."""
    rank = max(8, int(RANK_SHARE * min(shape)) // 8 * 8)
    kept = int(ENTRY_DENSITY * shape[1]) if layout == "ell" else int(DENSITY * shape[0])
    return layer(shape, rank, layout, kept, rng, group=group, kind="embedding" if shape == TABLE else "linear")


def forms(shape: tuple[int, int], rng: np.random.Generator) -> Iterator[tuple[str, Form, LayerParts, bool]]:
    """(name, form, layer, whether the native kernel runs it)."""
    bare = layer_of(shape, "none", 1, rng)
    entries = layer_of(shape, "csr", 1, rng)
    blocks = {group: layer_of(shape, "grouped", group, rng) for group in GROUPS}
    for precision in PRECISIONS:
        yield "dense", DENSE_FORMS["linear", precision], bare, False
        yield "low rank", TRAIN_FORMS["linear", precision], bare, False
        yield "tt chain", LOWERINGS["tt-chain"].form(bare, precision), bare, False
        for group, parts in blocks.items():
            yield f"blocks of {group}", RESIDUAL_FORMS["grouped", "linear", precision], parts, False
        yield "low rank + blocks of 32", LOWERINGS["low-rank"].form(blocks[32], precision), blocks[32], False
    for precision in NATIVE:
        yield "kernel: low rank", TRAIN_FORMS["linear", precision], bare, True
        yield "kernel: CSR", RESIDUAL_FORMS["csr", "linear", precision], entries, True
        for group, parts in blocks.items():
            yield f"kernel: blocks of {group}", RESIDUAL_FORMS["grouped", "linear", precision], parts, True
        yield "kernel: low rank + blocks of 16", LOWERINGS["low-rank"].form(blocks[16], precision), blocks[16], True


def tables(rng: np.random.Generator) -> Iterator[tuple[str, Form, LayerParts, bool]]:
    """Forms of a table, and of a head that shares one."""
    parts, entries = (layer_of(TABLE, layout, 1, rng) for layout in ("none", "ell"))
    for precision in PRECISIONS:
        yield "dense table", DENSE_FORMS["embedding", precision], parts, False
        yield "low rank table", TRAIN_FORMS["embedding", precision], parts, False
        yield "low rank head", head_of(TRAIN_FORMS["embedding", precision]), parts, False
        yield "entries head", head_of(RESIDUAL_FORMS["ell", "embedding", precision]), entries, False


def subjects(with_kernels: bool) -> Iterator[tuple[Subject, np.ndarray]]:
    """Everything to time, with x for the most rows."""
    rng = np.random.default_rng(0)
    for shape in (*SHAPES, TABLE):
        for name, form, parts, native in tables(rng) if shape == TABLE else forms(shape, rng):
            if native and not with_kernels:
                continue
            lookup = form.kind == "embedding"
            width = shape[1] if form.kind == "head" else shape[0]
            x = rng.integers(0, shape[0], max(ROWS)) if lookup else rng.standard_normal((max(ROWS), width), np.float32)
            run = session(form, parts, max(ROWS), native=native)
            yield Subject(f"{name} {form.precision}", shape, native, run, form.steps(parts, native=native)), x


def measured(with_kernels: bool, rounds: int) -> list[tuple[Subject, int, float]]:
    """(subject, rows, nanoseconds)."""
    everything = list(subjects(with_kernels))
    idle = idle_ns(rounds)
    table = []
    for rows in ROWS:
        shortest = [math.inf] * len(everything)
        for _ in range(rounds):
            for k, (subject, x) in enumerate(everything):
                shortest[k] = min(shortest[k], *samples_ns(subject.run, x[:rows], TURN_S))
        table += [
            (subject, rows, max(ns - idle, NOISE * idle)) for (subject, _), ns in zip(everything, shortest, strict=True)
        ]
    return table


def fitted(samples: list[tuple[Subject, int, float]]) -> dict[str, Rates]:
    """Prices, by "family precision", that make the relative errors of all predictions small at once."""
    keys = sorted({f"{step.family} {precision}" for subject, _, _ in samples for precision, step in subject.steps})
    column = {(key, price): k for k, (key, price) in enumerate((key, price) for key in keys for price in PRICES)}
    matrix = np.zeros((len(samples), len(column)))
    for line, (subject, rows, ns) in zip(matrix, samples, strict=True):
        for precision, step in subject.steps:
            amounts = (step.calls, step.weights, rows * step.macs, rows * step.moved)
            for price, amount in zip(PRICES, amounts, strict=True):
                line[column[f"{step.family} {precision}", price]] += amount / ns
    scale = matrix.max(axis=0)
    scale[scale == 0] = 1
    solution = nnls(matrix / scale, np.ones(len(samples)), maxiter=100 * len(column))[0] / scale
    return {key: Rates(*(float(f"{solution[column[key, price]]:.3g}") for price in PRICES)) for key in keys}


def predicted(prices: dict[str, Rates], subject: Subject, rows: int) -> float:
    return sum(prices[f"{step.family} {precision}"].time_ns(step, rows) for precision, step in subject.steps)


def errors(prices: dict[str, Rates], samples: list[tuple[Subject, int, float]]) -> list[dict[str, Any]]:
    """Prediction over measurement, by form: median and the tenth and ninetieth percentile."""
    ratios: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for subject, rows, ns in samples:
        ratios[subject.name, subject.shape == LEFT_OUT].append(predicted(prices, subject, rows) / ns)
    quantiles = {key: [round(float(q), 2) for q in np.percentile(of, (10, 50, 90))] for key, of in ratios.items()}
    return [{"form": name, "left_out": out, "p10_p50_p90": of} for (name, out), of in sorted(quantiles.items())]


def table_text(rows: list[dict[str, Any]], found: dict[str, float]) -> str:
    """How good the picks are, then every form's errors."""
    quantiles = {(row["form"], row["left_out"]): row["p10_p50_p90"] for row in rows}
    lines = [
        (form, *(", ".join(f"{q:.2f}" for q in quantiles.get((form, out), ())) for out in (False, True)))
        for form in sorted({row["form"] for row in rows})
    ]
    return (
        f"Fastest of dense, low rank and TT chain picked in {found['fastest']} of {found['cells']} cells, "
        f"at most {found['largest_loss']:.0%} lost in the others.\n\n### All forms\n\n"
    ) + markdown(("form", "prediction / measurement: p10, p50, p90", "on the shape left out"), lines)


def picks(prices: dict[str, Rates], samples: list[tuple[Subject, int, float]]) -> dict[str, float]:
    """How often the form predicted fastest is the fastest of dense, low rank and TT chain, and the time lost if not."""
    cells: dict[tuple[object, ...], list[tuple[float, float]]] = defaultdict(list)
    for subject, rows, ns in samples:
        form, _, precision = subject.name.rpartition(" ")
        if form in ("dense", "low rank", "tt chain"):
            cells[subject.shape, rows, precision].append((predicted(prices, subject, rows), ns))
    lost = [min(pairs)[1] / min(ns for _, ns in pairs) - 1 for pairs in cells.values()]
    return {"cells": len(lost), "fastest": sum(x == 0 for x in lost), "largest_loss": round(max(lost), 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--write", action="store_true", help="put the prices into the exporter's table")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "cost_model.json")
    arguments = parser.parse_args()
    state = probe()
    samples = measured(state.state == "active", 1 if arguments.quick else arguments.rounds)
    held = fitted([sample for sample in samples if sample[0].shape != LEFT_OUT])
    rows, chosen = errors(held, samples), picks(held, samples)
    medians = [(row["form"], row["p10_p50_p90"][1], COLORS["saten-0"]) for row in rows if row["left_out"]]
    picture = bars("Cost model, on the shape left out", "prediction / measurement, median", medians)
    cells = [{"form": each.name, "shape": each.shape, "rows": count, "ns": round(ns)} for each, count, ns in samples]
    facts = {"target": target(), "picks": chosen, "measured": cells}
    publish(arguments.output, rows, table_text(rows, chosen), picture, **facts)
    if arguments.write:
        write_prices(fitted(samples), state.words)
    return 0


def write_prices(prices: dict[str, Rates], kernels: str) -> None:
    """Put the prices of this machine's target into the exporter's table; those of other targets stay."""
    path = Path(saten_exporters.__file__).with_name(RATES_FILE)
    old = json.loads(path.read_text())["targets"] if path.is_file() else {}
    native = {key: vars(rates) for key, rates in prices.items() if key.startswith("native")}
    own = {key: vars(rates) for key, rates in prices.items() if key not in native}
    new = {target(): own, **({target() + KERNELS: native} if native else {})}
    versions = {"onnxruntime": version("onnxruntime"), "kernels": kernels}
    write_json(path, {**versions, "nanoseconds": "per unit", "targets": {**old, **new}})


if __name__ == "__main__":
    sys.exit(main())
