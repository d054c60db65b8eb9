"""One linear layer in every form, as `python benchmarks/layers.py [--shape 384x1536] [--rows 1,32,128]`.

Every form holds about the same bytes (0.285 of dense fp32). The forms take turns, round by round, in one process on one
thread; each output is checked against float64 before it is timed. Prints a Markdown table and writes it, with
every sample's median per round, as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from saten_exporters.choices import Choices
from saten_exporters.forms import DOMAIN, DOMAIN_VERSION
from saten_exporters.parts import LayerParts
from saten_exporters.passes import run_passes
from saten_exporters.passes.initializers import new_initializer
from saten_exporters.quantize import PRECISIONS
from saten_exporters.targets import TARGETS
from saten_runtime.stats import paired_ratio

BUDGET = 0.285
RESIDUAL_SHARE = 0.3
TARGET = TARGETS["x86-64"]
BASELINE = "dense fp32"
# precision → relative error beyond which a form computes something else
ALLOWED = {"fp32": 1e-5, "fp16": 1e-3, "int8": 0.05, "int8-block": 0.05, "int4": 0.25}


def graph(inputs: int, outputs: int, node: ir.Node, x: ir.Value) -> ir.Model:
    """A model of one node from x (rows, inputs) to y (rows, outputs)."""
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["batch", outputs]), ir.TensorType(ir.DataType.FLOAT)
    x.shape, x.type = ir.Shape(["batch", inputs]), ir.TensorType(ir.DataType.FLOAT)
    imports = {"": TARGET.opset, DOMAIN: DOMAIN_VERSION}
    return ir.Model(ir.Graph([x], [y], nodes=[node], name="layer", opset_imports=imports), ir_version=TARGET.ir_version)


def parts(inputs: int, outputs: int, pattern: str, group: int, rng: np.random.Generator) -> LayerParts:
    """A random layer: factors and residual share the budget as RESIDUAL_SHARE says."""
    values = int(BUDGET * inputs * outputs)
    for_residual = 0 if pattern == "none" else int(values * RESIDUAL_SHARE)
    rank = (values - for_residual) // (inputs + outputs)
    a = rng.standard_normal((inputs, rank), np.float32) / math.sqrt(inputs)
    b = rng.standard_normal((rank, outputs), np.float32) / math.sqrt(rank)
    indices: dict[str, np.ndarray] = {}
    stored = np.zeros(0, np.float32)
    if pattern == "grouped":
        kept = for_residual // outputs
        chosen = [np.sort(rng.choice(inputs, kept, replace=False)) for _ in range(outputs // group)]
        indices = {"indices": np.stack(chosen).astype(np.int32)}
        stored = rng.standard_normal((outputs // group, group, kept), np.float32)
    elif pattern == "unstructured":
        kept = for_residual * 2 // (3 * outputs)  # two bytes of index for four of value
        columns = np.stack([np.sort(rng.choice(inputs, kept, replace=False)) for _ in range(outputs)])
        indices = {"indptr": np.arange(outputs + 1, dtype=np.int32) * kept, "indices": columns.ravel().astype("uint16")}
        stored = rng.standard_normal(columns.size, np.float32)
    layout = {"unstructured": "csr"}.get(pattern, pattern)
    return LayerParts("layer", "linear", (inputs, outputs), [rank], a, b, layout, stored, indices)


def dense_matrix(layer: LayerParts, group: int) -> np.ndarray:
    """A B + S in float64."""
    matrix = layer.a.astype(np.float64) @ layer.b
    if layer.layout == "grouped":
        for number, (block, chosen) in enumerate(zip(layer.values, layer.indices["indices"], strict=True)):
            matrix[chosen, number * group : (number + 1) * group] += block.T
    elif layer.layout == "csr":
        rows = np.repeat(np.arange(layer.shape[1]), np.diff(layer.indices["indptr"]))
        matrix[layer.indices["indices"], rows] += layer.values
    return matrix


def models(inputs: int, outputs: int) -> Iterator[tuple[str, ir.Model, np.ndarray, int]]:
    """(name, model, the matrix it stands for, bytes of its weights)."""
    rng = np.random.default_rng(0)
    kinds = [("dense", 1), ("none", 1), ("grouped", 16), ("grouped", 32), ("grouped", 64), ("unstructured", 1)]
    for pattern, group in kinds:
        for precision in PRECISIONS:
            x = ir.Value(name="x")
            if pattern == "dense":
                matrix = rng.standard_normal((inputs, outputs)) / math.sqrt(inputs)
                model = graph(inputs, outputs, ir.Node("", "MatMul", [x, ir.Value(name="w")]), x)
                weight = new_initializer(model, "w", matrix.astype(np.float32))
                model.graph[0].replace_input_with(1, weight)
                run_passes(model, {}, Choices(precision))
            else:
                layer = parts(inputs, outputs, pattern, group, rng)
                matrix = dense_matrix(layer, group)
                node = ir.Node(DOMAIN, "Linear", [x], [ir.AttrString("layer", "layer")])
                model = graph(inputs, outputs, node, x)
                run_passes(model, {"layer": layer}, Choices(precision, lowering="low-rank"))
            size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
            names = {"dense": "dense", "none": "low rank", "grouped": f"low rank + grouped {group}"}
            yield f"{names.get(pattern, 'low rank + CSR')} {precision}", model, matrix, size


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    """One thread, everything else as ONNX Runtime likes it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def check(name: str, run: onnxruntime.InferenceSession, matrix: np.ndarray) -> None:
    """Refuse to time a form that computes something else."""
    x = np.random.default_rng(1).standard_normal((8, matrix.shape[0]), np.float32)
    wanted = x @ matrix
    error = np.linalg.norm(run.run(None, {"x": x})[0] - wanted) / np.linalg.norm(wanted)
    allowed = ALLOWED[name.rpartition(" ")[2]]
    if not error <= allowed:
        raise SystemExit(f"{name}: relative error {error:.1e}, expected at most {allowed}")


def median_ns(run: onnxruntime.InferenceSession, x: np.ndarray, least_s: float) -> float:
    """Median time of one run, over at least 10 runs and `least_s` seconds."""
    samples: list[int] = []
    run.run(None, {"x": x})
    while len(samples) < 10 or sum(samples) < least_s * 1e9:
        start = time.perf_counter_ns()
        run.run(None, {"x": x})
        samples.append(time.perf_counter_ns() - start)
    return float(np.median(samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="384x1536", help="inputs × outputs (default: 384x1536)")
    parser.add_argument("--rows", default="1,32,128", help="rows of x (default: 1,32,128)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path, default=Path("layers.json"))
    arguments = parser.parse_args()
    inputs, outputs = map(int, arguments.shape.split("x"))
    forms = []
    for name, model, matrix, size in models(inputs, outputs):
        run = session(model)
        check(name, run, matrix)
        forms.append((name, run, size))
    rows_of_x = [int(rows) for rows in arguments.rows.split(",")]
    table = []
    for rows in rows_of_x:
        x = np.random.default_rng(2).standard_normal((rows, inputs), np.float32)
        medians: dict[str, list[float]] = {name: [] for name, _, _ in forms}
        for _ in range(arguments.rounds):
            for name, run, _ in forms:
                medians[name].append(median_ns(run, x, 0.02))
        for name, _, size in forms:
            ratio = paired_ratio([[m] for m in medians[name]], [[m] for m in medians[BASELINE]])
            table.append({"form": name, "rows": rows, "bytes": size, "round_medians_ns": medians[name],
                          "ratio": [ratio.value, ratio.low, ratio.high]})  # fmt: skip
    arguments.output.write_text(json.dumps({"shape": arguments.shape, "table": table}, indent=2) + "\n")
    print("| form | bytes |" + "".join(f" {rows} rows, ms | ratio |" for rows in rows_of_x))
    print("|---|--:|" + "--:|--:|" * len(rows_of_x))
    for name, _, size in forms:
        cells = [entry for entry in table if entry["form"] == name]
        texts = [
            f" {np.median(c['round_medians_ns']) / 1e6:.4f} | {c['ratio'][0]:.2f} "
            f"[{c['ratio'][1]:.2f}-{c['ratio'][2]:.2f}] |"
            for c in cells
        ]
        print(f"| {name} | {size:,} |" + "".join(texts))


if __name__ == "__main__":
    main()
