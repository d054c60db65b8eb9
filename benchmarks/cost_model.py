"""Measures what the cost model predicts from, as `python benchmarks/cost_model.py [--rounds 5] [--write]`.

Parts of layers in every form and precision, of several shapes and with 1 to 512 rows, take turns in one process on one
thread; the shortest run of each counts, less that of an empty graph: others' turns on a shared machine only ever add.
The prices of `saten_exporters.cost` are fitted to the measurements by non-negative least squares of the relative
error, on every shape but one. Prints, for each form, how far prediction and measurement are apart on the shapes
fitted and on the one left out, then how often the model picks the fastest form and what it loses where it does not.
Writes both as JSON, and with --write the prices into the exporter's table, for this machine's target.
Where the native kernels are installed their prices are measured, too.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from scipy.optimize import nnls

import saten_exporters
from saten_exporters.cost import KERNELS, RATES_FILE, Rates
from saten_exporters.forms import (
    DENSE_FORMS,
    DOMAIN,
    DOMAIN_VERSION,
    LOWERINGS,
    RESIDUAL_FORMS,
    TRAIN_FORMS,
    Form,
    Work,
    head_of,
)
from saten_exporters.forms.form import NATIVE
from saten_exporters.parts import LayerParts
from saten_exporters.quantize import PRECISIONS
from saten_exporters.targets import TARGETS
from saten_runtime import kernels

SHAPES = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (2048, 512))
LEFT_OUT = (768, 768)
TABLE = (20_000, 384)
ROWS = (1, 8, 32, 128, 512)
GROUPS = (4, 8, 16, 32, 64, 128)
DENSITY = 0.1
ENTRY_DENSITY = 0.02  # of a table
RANK_SHARE = 0.12  # of the smaller side
TURN_S = 2e-3
TARGET = next(iter(TARGETS.values()))
MACHINES = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}
PRICES = ("call", "weight", "mac", "move")


@dataclass(frozen=True)
class Subject:
    """One form of one layer. steps: what the model takes it for, (precision, step)."""

    name: str
    shape: tuple[int, int]
    native: bool
    run: onnxruntime.InferenceSession
    steps: tuple[tuple[str, Work], ...]


def layer(shape: tuple[int, int], kind: str, layout: str, group: int, rng: np.random.Generator) -> LayerParts:
    """Random numbers of a layer whose train has two cores on each side and its inner ranks cut in half."""
    inputs, outputs = shape
    rank = max(8, int(RANK_SHARE * min(shape)) // 8 * 8)
    first, last = _split(inputs), tuple(reversed(_split(outputs)))
    left, right = min(first[0], rank) // 2, min(last[1], rank) // 2
    cores = (
        (_normal(rng, 1, first[0], left), _normal(rng, left, first[1], rank)),
        (_normal(rng, rank, last[0], right), _normal(rng, right, last[1], 1)),
    )
    values, indices = np.zeros(0, np.float32), {}
    kept = int(DENSITY * inputs)
    if layout == "grouped":
        chosen = [np.sort(rng.choice(inputs, kept, replace=False)) for _ in range(outputs // group)]
        indices = {"indices": np.stack(chosen).astype(np.int32)}
        values = _normal(rng, outputs // group, group, kept)
    if layout == "csr":
        columns = np.stack([np.sort(rng.choice(inputs, kept, replace=False)) for _ in range(outputs)])
        pointers = np.arange(outputs + 1, dtype=np.int32) * kept
        indices = {"indptr": pointers, "indices": columns.ravel().astype(np.uint16)}
        values = _normal(rng, columns.size)
    if layout == "ell":
        kept = int(ENTRY_DENSITY * outputs)
        chosen = [np.sort(rng.choice(outputs, kept, replace=False)) for _ in range(inputs)]
        indices, values = {"indices": np.stack(chosen).astype(np.uint16)}, _normal(rng, inputs, kept)
    a, b = _normal(rng, inputs, rank), _normal(rng, rank, outputs)
    return LayerParts("layer", kind, shape, [rank], a, b, layout, values, indices, cores)


def _split(size: int) -> tuple[int, int]:
    """Two dims of a side, the smaller first."""
    small = next(dim for dim in range(math.isqrt(size), 0, -1) if size % dim == 0)
    return small, size // small


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def forms(shape: tuple[int, int], rng: np.random.Generator) -> Iterator[tuple[str, Form, LayerParts, bool]]:
    """(name, form, layer, whether the native kernel runs it)."""
    bare = layer(shape, "linear", "none", 1, rng)
    entries = layer(shape, "linear", "csr", 1, rng)
    blocks = {group: layer(shape, "linear", "grouped", group, rng) for group in GROUPS}
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
    parts, entries = (layer(TABLE, "embedding", layout, 1, rng) for layout in ("none", "ell"))
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
            x = rng.integers(0, shape[0], max(ROWS)) if lookup else _normal(rng, max(ROWS), width)
            run = session(form, parts, native)
            yield Subject(f"{name} {form.precision}", shape, native, run, form.steps(parts, native=native)), x


def session(form: Form, parts: LayerParts, native: bool) -> onnxruntime.InferenceSession:
    """One node from x (rows, inputs) or ids (rows) to y (rows, outputs)."""
    lookup, head = form.kind == "embedding", form.kind == "head"
    inputs, outputs = reversed(parts.shape) if head else parts.shape
    x = ir.Value(
        name="x",
        shape=ir.Shape(["rows"] if lookup else ["rows", inputs]),
        type=ir.TensorType(ir.DataType.INT64 if lookup else ir.DataType.FLOAT),
    )
    packed = form.pack(parts)
    weights = []
    for name in form.inputs:
        tensor = ir.tensor(np.ascontiguousarray(packed[name]), name=name)
        weights.append(ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor))
    sizes = [ir.AttrInt64(name, size) for name, size in form.sizes(parts, max(ROWS)).items()]
    node = ir.Node(DOMAIN, form.op_type, [x, *weights], sizes)
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["rows", outputs]), ir.TensorType(ir.DataType.FLOAT)
    imports = {"": TARGET.opset, "com.microsoft": 1, DOMAIN: DOMAIN_VERSION}
    graph = ir.Graph([x], [y], nodes=[node], initializers=weights, opset_imports=imports, name="layer")
    model = ir.Model(graph, ir_version=TARGET.ir_version, functions=form.functions(TARGET.opset))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if native:
        kernels.register(options)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def turn(run: onnxruntime.InferenceSession, x: np.ndarray) -> float:
    """Seconds of the shortest of a few runs."""
    shortest, end = math.inf, time.perf_counter() + TURN_S
    while (start := time.perf_counter()) < end:
        run.run(None, {"x": x})
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def empty_graph_ns(rounds: int) -> float:
    """What a run costs that computes nothing."""
    x, y = (ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT)) for name in "xy")
    node = ir.Node("", "Identity", [x], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": TARGET.opset}, name="empty")
    model = ir.Model(graph, ir_version=TARGET.ir_version)
    run = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return min(turn(run, np.zeros(1, np.float32)) for _ in range(rounds)) * 1e9


def measured(with_kernels: bool, rounds: int) -> list[tuple[Subject, int, float]]:
    """(subject, rows, nanoseconds)."""
    everything = list(subjects(with_kernels))
    idle = empty_graph_ns(rounds)
    table = []
    for rows in ROWS:
        shortest = [math.inf] * len(everything)
        for _ in range(rounds):
            for k, (subject, x) in enumerate(everything):
                shortest[k] = min(shortest[k], turn(subject.run, x[:rows]) * 1e9)
        table += [(subject, rows, max(ns - idle, 1.0)) for (subject, _), ns in zip(everything, shortest, strict=True)]
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


def report(prices: dict[str, Rates], samples: list[tuple[Subject, int, float]]) -> list[dict[str, object]]:
    """Prediction over measurement, by form: median and the tenth and ninetieth percentile."""
    ratios: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for subject, rows, ns in samples:
        ratios[subject.name, subject.shape == LEFT_OUT].append(predicted(prices, subject, rows) / ns)
    quantiles = {key: [round(float(q), 2) for q in np.percentile(of, (10, 50, 90))] for key, of in ratios.items()}
    print("| form | prediction / measurement: p10, p50, p90 | on the shape left out |\n|---|--:|--:|")
    for name in sorted({name for name, _ in quantiles}):
        cells = (", ".join(f"{q:.2f}" for q in quantiles.get((name, left_out), ())) for left_out in (False, True))
        print(f"| {name} | {' | '.join(cells)} |")
    return [{"form": name, "left_out": out, "p10_p50_p90": of} for (name, out), of in sorted(quantiles.items())]


def picks(prices: dict[str, Rates], samples: list[tuple[Subject, int, float]]) -> dict[str, float]:
    """How often the form predicted fastest is the fastest of dense, low rank and TT chain, and the time lost if not."""
    cells: dict[tuple[object, ...], list[tuple[float, float]]] = defaultdict(list)
    for subject, rows, ns in samples:
        form, _, precision = subject.name.rpartition(" ")
        if form in ("dense", "low rank", "tt chain"):
            cells[subject.shape, rows, precision].append((predicted(prices, subject, rows), ns))
    lost = [min(pairs)[1] / min(ns for _, ns in pairs) - 1 for pairs in cells.values()]
    found = {"cells": len(lost), "fastest": sum(x == 0 for x in lost), "largest_loss": round(max(lost), 3)}
    print(f"\nfastest of dense, low rank and TT chain picked in {found['fastest']} of {found['cells']} cells, "
          f"at most {found['largest_loss']:.0%} lost in the others")  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the prices into the exporter's table")
    parser.add_argument("-o", "--output", type=Path, default=Path("cost-model.json"))
    arguments = parser.parse_args()
    state = kernels.probe()
    samples = measured(state.state == "active", arguments.rounds)
    held = fitted([sample for sample in samples if sample[0].shape != LEFT_OUT])
    table = report(held, samples)
    chosen = picks(held, samples)
    prices = {key: vars(rates) for key, rates in fitted(samples).items()}
    target = MACHINES[platform.machine()]
    targets = {
        target: {key: rates for key, rates in prices.items() if not key.startswith("native")},
        target + KERNELS: {key: rates for key, rates in prices.items() if key.startswith("native")},
    }
    rows = [{"form": each.name, "shape": each.shape, "rows": count, "ns": round(ns)} for each, count, ns in samples]
    versions = {"onnxruntime": onnxruntime.__version__, "kernels": state.words}
    result = {**versions, "target": target, "errors": table, "picks": chosen, "measured": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.write:
        path = Path(saten_exporters.__file__).with_name(RATES_FILE)
        kept = json.loads(path.read_text())["targets"] if path.is_file() else {}
        new = {**kept, **{name: rates for name, rates in targets.items() if rates}}
        path.write_text(json.dumps({**versions, "nanoseconds": "per unit", "targets": new}, indent=1) + "\n")


if __name__ == "__main__":
    main()
