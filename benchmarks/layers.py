"""One linear layer in every form and precision, as `python benchmarks/layers.py [-o FILE.json]`.

Every compressed form holds about the same bytes, a quarter of dense fp32's, indices included, three tenths of them in
the residual where there is one. The forms take turns, round by round, in one process on one thread; each output is
checked against float64 before it is timed. Beside the times stand the floor, by the rates of the machine before and
after, and what the cost model predicted: it is fitted (cost_model.py) on these layers and others.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers.artifacts import target
from peers.plots import COLORS, Line, panels
from peers.results import RESULTS, markdown, publish, short
from peers.synthetic import check, matrix_of, samples_ns, session

from saten_exporters.choice.cost import predicted_us
from saten_exporters.choice.random_layers import random_layer
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import DENSE_FORMS, LOWERINGS, Form
from saten_exporters.forms.form import NATIVE
from saten_exporters.quantize import PRECISIONS
from saten_runtime.bench.floor import floor_of_work, measure_rates
from saten_runtime.bench.stats import paired_ratio
from saten_runtime.run.kernels import probe

SHAPES = ((768, 3072), (3072, 768))
ROWS = (1, 8, 32, 128, 512)
BUDGET, RESIDUAL_SHARE = 0.25, 0.3
ENTRY_BYTES = {"grouped": 4, "csr": 6}  # of a stored entry at fp32; two are its index
GROUPS = (8, 16, 32, 64)
BASELINE = "dense fp32"
TURN_S = 0.01


def has_residual(row: dict[str, Any]) -> bool:
    """Whether a row's form stores more than a train."""
    return any(part in row["form"] for part in ("+ blocks", "+ CSR"))


KINDS = {
    "dense, any precision": ("dense-0", lambda row: row["form"].startswith("dense")),
    "low rank": ("saten-2", lambda row: row["form"].startswith("low rank ") and "+" not in row["form"]),
    "with residual, standard operators": ("saten-0", lambda row: has_residual(row) and not row["kernels"]),
    "with residual, native kernels": ("saten-1", lambda row: has_residual(row) and row["kernels"]),
}


@dataclass(frozen=True)
class Subject:
    """One form of one layer as a session. macs: that the layer needs for one row, however the form computes it."""

    name: str
    form: Form
    parts: LayerParts
    kernels: bool
    run: Any
    macs: int

    @property
    def bytes(self) -> int:
        """Of the weights, indices included."""
        packed = self.form.pack(self.parts)
        return sum(packed[name].nbytes for name in self.form.inputs)


def parts_of(shape: tuple[int, int], layout: str, group: int, rng: np.random.Generator) -> LayerParts:
    """A random layer whose factors and residual share the budget."""
    inputs, outputs = shape
    whole = 4 * BUDGET * inputs * outputs
    for_residual = 0 if layout == "none" else whole * RESIDUAL_SHARE
    rank = int((whole - for_residual) / (4 * (inputs + outputs)))
    kept = int(for_residual / (ENTRY_BYTES.get(layout, 4) * outputs))
    return random_layer(shape, rank, layout, kept, rng, group=group)


def forms(shape: tuple[int, int]) -> Iterator[tuple[str, Form, LayerParts, bool]]:
    """(name, form, layer, whether the native kernel runs it)."""
    rng = np.random.default_rng(0)
    bare, entries = (parts_of(shape, layout, 1, rng) for layout in ("none", "csr"))
    blocks = {group: parts_of(shape, "grouped", group, rng) for group in GROUPS}
    low_rank, chain = LOWERINGS["low-rank"].form, LOWERINGS["tt-chain"].form
    for precision in PRECISIONS:
        yield "dense", DENSE_FORMS["linear", precision], bare, False
        yield "low rank", low_rank(bare, precision), bare, False
        yield "TT chain", chain(bare, precision), bare, False
        for group, parts in blocks.items():
            yield f"low rank + blocks of {group}", low_rank(parts, precision), parts, False
        yield "TT chain + blocks of 32", chain(blocks[32], precision), blocks[32], False
        yield "low rank + CSR", low_rank(entries, precision), entries, False
    for precision in NATIVE:
        yield "low rank", low_rank(bare, precision), bare, True
        for group, parts in blocks.items():
            yield f"low rank + blocks of {group}", low_rank(parts, precision), parts, True
        yield "low rank + CSR", low_rank(entries, precision), entries, True


def subjects(shape: tuple[int, int], with_kernels: bool) -> list[Subject]:
    """Everything of one shape that computes the right thing.

    Raises:
        SystemExit: a form does not.
    """
    found = []
    for stem, form, parts, native in forms(shape):
        if native and not with_kernels:
            continue
        name = f"{stem} {form.precision}{' + kernels' * native}"
        run = session(form, parts, max(ROWS), native=native)
        check(name, run, matrix_of(parts), form.precision)
        stored = parts.a.size + parts.b.size + parts.values.size
        found.append(Subject(name, form, parts, native, run, math.prod(shape) if stem == "dense" else stored))
    return found


def medians_ns(everything: Sequence[Subject], x: np.ndarray, rounds: int) -> list[list[float]]:
    """Of each subject and round; they take turns."""
    found: list[list[float]] = [[] for _ in everything]
    for _ in range(rounds):
        for subject, medians in zip(everything, found, strict=True):
            medians.append(float(np.median(samples_ns(subject.run, x, TURN_S))))
    return found


def measured(shape: tuple[int, int], with_kernels: bool, rounds: int, rows_of_x: Sequence[int]) -> list[dict[str, Any]]:
    """One object per form and number of rows."""
    everything = subjects(shape, with_kernels)
    sizes = sorted({subject.bytes for subject in everything})
    before = measure_rates(1, sizes)
    times = {}
    for count in rows_of_x:
        x = np.random.default_rng(2).standard_normal((count, shape[0]), np.float32)
        times[count] = medians_ns(everything, x, rounds)
    rates = before.faster(measure_rates(1, sizes))
    baseline = next(k for k, subject in enumerate(everything) if subject.name == BASELINE)
    table = []
    for count, medians in times.items():
        for subject, own in zip(everything, medians, strict=True):
            ratio = paired_ratio([[m] for m in own], [[m] for m in medians[baseline]])
            table.append(
                {
                    "shape": list(shape),
                    "form": subject.name,
                    "precision": subject.form.precision,
                    "kernels": subject.kernels,
                    "rows": count,
                    "bytes": subject.bytes,
                    "round_medians_ns": own,
                    "ms": float(np.median(own)) / 1e6,
                    "of_dense_fp32": [ratio.value, ratio.low, ratio.high],
                    "floor_ms": floor_of_work(
                        2.0 * count * subject.macs, subject.bytes, subject.form.precision, rates
                    ).ms,
                    "predicted_ms": predicted_us(subject.form, subject.parts, count, target(subject.kernels)) / 1e3,
                }
            )
    return table


def table_text(table: Sequence[dict[str, Any]]) -> str:
    """The fastest forms of each kind, then all of them."""
    cells = list(dict.fromkeys((tuple(row["shape"]), row["rows"]) for row in table))
    best = []
    for shape, count in cells:
        of_cell = [row for row in table if (tuple(row["shape"]), row["rows"]) == (shape, count)]
        dense = fastest(of_cell, "dense, any precision")
        line = [f"{shape[0]} → {shape[1]}", str(count)]
        for kind in KINDS:
            row = fastest(of_cell, kind)
            line.append("–" if row is None else f"{row['form']}: {row['ms']:.3g} ms, {row['ms'] / dense['ms']:.2f} ×, "
                                                f"{row['ms'] / row['floor_ms']:.1f} × floor")  # fmt: skip
        best.append(line)
    text = markdown(("layer", "rows", *(f"fastest: {kind}" for kind in KINDS)), best)
    counts = list(dict.fromkeys(row["rows"] for row in table))
    head = ["layer", "form", "bytes", *(f"{count} rows, ms; × floor; predicted, ms" for count in counts)]
    keys = dict.fromkeys((tuple(row["shape"]), row["form"]) for row in table)
    lines = []
    for shape, form in keys:
        of_form = [row for row in table if (tuple(row["shape"]), row["form"]) == (shape, form)]
        said = [f"{r['ms']:.3g}; {r['ms'] / r['floor_ms']:.1f}; {short(r['predicted_ms'])}" for r in of_form]
        lines.append([f"{shape[0]} → {shape[1]}", form, f"{of_form[0]['bytes']:,}", *said])
    return f"{text}\n### All forms\n\n{markdown(head, lines, texts=2)}"


def fastest(rows: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The fastest row of a kind, if there is one."""
    _, belongs = KINDS[kind]
    return min(filter(belongs, rows), key=lambda row: row["ms"], default=None)


def picture(table: Sequence[dict[str, Any]]) -> str:
    """The fastest form of each kind over its floor's work: milliseconds by rows."""
    drawings = {}
    for shape in dict.fromkeys(tuple(row["shape"]) for row in table):
        lines = []
        counts = list(dict.fromkeys(row["rows"] for row in table))
        for kind, (color, _) in KINDS.items():
            of_kind = [
                fastest([r for r in table if (tuple(r["shape"]), r["rows"]) == (shape, c)], kind) for c in counts
            ]
            if all(of_kind):
                lines.append(Line(kind, counts, [row["ms"] for row in of_kind if row], COLORS[color]))
        drawings[f"{shape[0]} → {shape[1]}"] = ("rows", "ms", lines)
    return panels("One layer, the fastest form of each kind", drawings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(f"{a}x{b}" for a, b in SHAPES), help="inputs × outputs, …")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="rows of x")
    parser.add_argument("--rounds", type=int, help="default: 8, or 2 if --quick")
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "layers.json")
    arguments = parser.parse_args()
    shapes = [tuple(map(int, text.split("x"))) for text in arguments.shapes.split(",")]
    rows_of_x = [int(count) for count in arguments.rows.split(",")]
    rounds = arguments.rounds or (2 if arguments.quick else 8)
    active = probe().state == "active"
    table = [row for shape in shapes for row in measured(shape, active, rounds, rows_of_x)]
    publish(arguments.output, table, table_text(table), picture(table), budget=BUDGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
