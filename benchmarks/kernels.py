"""The native kernels inside ONNX Runtime, as `python benchmarks/kernels.py [--shape 768x3072] [--library FILE]`.

One layer, density .10 and rank 48 by default, one thread unless said otherwise. Nodes take turns, round by round, in
one process; each is checked against float64 before it is timed. Beside them stands the roof of these rounds: the rate
of the dense fp32 product and the bandwidth of a copy. What runs on one thread is timed by that thread's own clock, so
that other programs' turns do not count. Prints a Markdown table and one line for each target, and writes both as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from saten_exporters.forms import DOMAIN, DOMAIN_VERSION, RESIDUAL_FORMS, Form, form_of
from saten_exporters.parts import LayerParts
from saten_exporters.quantize import quantize_int8
from saten_exporters.targets import TARGETS

LIBRARY = Path(__file__).parents[1] / "runtime" / "kernels" / "build" / "release" / "libsaten_kernels.so"
GROUPS = (1, 4, 8, 16, 32)  # 1: compressed rows
MANY_ROWS = 128
LEAST_S = 0.03  # of one sample, at least
COPY_BYTES = 256 * 2**20  # far beyond the last-level cache
TARGET = TARGETS["cpu"]


@dataclass(frozen=True)
class Subject:
    """One session to time.

    macs: for one row; weight_bytes: what one row reads; threads: 1 is timed by its own time, else by the clock.
    """

    name: str
    run: onnxruntime.InferenceSession
    macs: int
    weight_bytes: int
    threads: int = 1


def layer(inputs: int, outputs: int, rank: int, density: float, group: int, rng: np.random.Generator) -> LayerParts:
    """A random layer; group 1 means compressed rows."""
    kept = max(1, round(density * inputs))
    count = outputs // group
    chosen = np.stack([np.sort(rng.choice(inputs, kept, replace=False)) for _ in range(count)])
    indices = {"indices": chosen.astype(np.int32)}
    values = rng.standard_normal((count, group, kept), np.float32)
    if group == 1:
        pointers = np.arange(count + 1, dtype=np.int32) * kept
        indices, values = {"indptr": pointers, "indices": chosen.ravel().astype(np.uint16)}, values.ravel()
    a = rng.standard_normal((inputs, rank), np.float32) / math.sqrt(inputs)
    b = rng.standard_normal((rank, outputs), np.float32) / math.sqrt(rank)
    pattern = "unstructured" if group == 1 else "grouped"
    return LayerParts("layer", "linear", (inputs, outputs), [rank], a, b, pattern, values, indices)


def dense_of(parts: LayerParts) -> np.ndarray:
    """S in float64, (in, out)."""
    matrix = np.zeros(parts.shape)
    chosen = parts.indices["indices"].astype(np.int64)
    if parts.pattern == "unstructured":
        matrix[chosen, np.repeat(np.arange(parts.shape[1]), np.diff(parts.indices["indptr"]))] = parts.values
        return matrix
    size = parts.values.shape[1]
    for number, (block, rows) in enumerate(zip(parts.values, chosen, strict=True)):
        matrix[rows, number * size : (number + 1) * size] = block.T
    return matrix


def session(
    op: str,
    domain: str,
    weights: dict[str, np.ndarray],
    shape: tuple[int, int],
    form: Form | None,
    library: Path,
    threads: int,
) -> onnxruntime.InferenceSession:
    """One node from x (rows, inputs) to y (rows, outputs), on the kernels where it is one of ours."""
    x = ir.Value(name="x", shape=ir.Shape(["rows", shape[0]]), type=ir.TensorType(ir.DataType.FLOAT))
    values = []
    for name, array in weights.items():
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        values.append(ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor))
    node = ir.Node(domain, op, [x, *values])
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["rows", shape[1]]), ir.TensorType(ir.DataType.FLOAT)
    imports = {"": TARGET.opset, "com.microsoft": 1, DOMAIN: DOMAIN_VERSION}
    graph = ir.Graph([x], [y], nodes=[node], initializers=values, opset_imports=imports, name="layer")
    functions = form.functions(TARGET.opset) if form else []
    model = ir.Model(graph, ir_version=TARGET.ir_version, functions=functions)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def checked(subject: Subject, matrix: np.ndarray, allowed: float) -> Subject:
    """Refuse to time what computes something else."""
    x = np.random.default_rng(1).standard_normal((9, matrix.shape[0]), np.float32)
    wanted = x @ matrix
    error = np.linalg.norm(subject.run.run(None, {"x": x})[0] - wanted) / np.linalg.norm(wanted)
    if not error <= allowed:
        raise SystemExit(f"{subject.name}: relative error {error:.1e}, expected at most {allowed}")
    return subject


def ours(parts: LayerParts, precision: str, whole: bool, name: str, library: Path, threads: int = 1) -> Subject:
    """The node of a layer, or of its residual alone."""
    form = form_of(parts, precision) if whole else RESIDUAL_FORMS[parts.pattern, "linear", precision]
    packed = form.pack(parts)
    weights = {each: packed[each] for each in form.inputs}
    run = session(form.op_type, DOMAIN, weights, parts.shape, form, library, threads)
    macs = parts.values.size + whole * (parts.a.size + parts.b.size)
    matrix = dense_of(parts) + whole * (parts.a.astype(np.float64) @ parts.b)
    stored = sum(array.nbytes for array in weights.values())
    return checked(Subject(name, run, macs, stored, threads), matrix, 1e-5 if precision == "fp32" else 0.05)


def dense(inputs: int, outputs: int, precision: str, library: Path, rng: np.random.Generator) -> Subject:
    """The dense product that ONNX Runtime has for a precision."""
    matrix = rng.standard_normal((inputs, outputs), np.float32)
    if precision == "fp32":
        run = session("MatMul", "", {"matrix": matrix}, matrix.shape, None, library, 1)
        return checked(Subject("dense fp32", run, matrix.size, matrix.nbytes), matrix.astype(np.float64), 1e-5)
    codes, scale = quantize_int8(matrix, axis=0)
    weights = {"codes": codes, "scale": scale.reshape(-1)}
    run = session("DynamicQuantizeMatMul", "com.microsoft", weights, matrix.shape, None, library, 1)
    return checked(Subject("dense int8", run, matrix.size, codes.nbytes), matrix.astype(np.float64), 0.05)


def median_s(subject: Subject, x: np.ndarray) -> float:
    """Median seconds of one run; of the thread's own time where it works alone, so that others' turns do not count."""
    clock = time.thread_time if subject.threads == 1 else time.perf_counter
    samples: list[float] = []
    subject.run.run(None, {"x": x})
    while len(samples) < 5 or sum(samples) < LEAST_S:
        start = clock()
        subject.run.run(None, {"x": x})
        samples.append(clock() - start)
    return float(np.median(samples))


def copy_rate(source: np.ndarray, target: np.ndarray) -> float:
    """Bytes per second of a copy, read and written bytes counted."""
    start = time.thread_time()
    np.copyto(target, source)
    return 2 * source.nbytes / (time.thread_time() - start)


def rounds_of(subjects: list[Subject], x: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds per run by subject, one median for each round; the subjects take turns."""
    seconds: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            seconds[subject.name].append(median_s(subject, x))
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """Median over the rounds of a quotient of neighbours."""
    return float(np.median(np.array(over) / np.array(under)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="768x3072", help="inputs × outputs (default: 768x3072)")
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--density", type=float, default=0.10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--large", default="4096x32768", help="a layer larger than the last-level cache, for one row")
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("-o", "--output", type=Path, default=Path("kernels.json"))
    arguments = parser.parse_args()
    library, rng = arguments.library.resolve(), np.random.default_rng(0)
    inputs, outputs = map(int, arguments.shape.split("x"))

    def random_layer(group: int) -> LayerParts:
        return layer(inputs, outputs, arguments.rank, arguments.density, group, rng)

    subjects = [dense(inputs, outputs, precision, library, rng) for precision in ("fp32", "int8")]
    for group in GROUPS:
        parts, name = random_layer(group), f"blocks of {group}" if group > 1 else "CSR"
        for precision in ("fp32", "int8"):
            subjects.append(ours(parts, precision, False, f"{name} {precision}", library))
            subjects.append(ours(parts, precision, True, f"low rank + {name} {precision}", library))
        if group == 16:
            clocked = ours(parts, "fp32", False, "blocks of 16 fp32, by the clock", library)
            subjects.append(dataclasses.replace(clocked, threads=0))
            subjects.append(ours(parts, "fp32", False, "blocks of 16 fp32, 2 threads", library, threads=2))

    table = {}
    for rows in (MANY_ROWS, 1):
        x = rng.standard_normal((rows, inputs), np.float32)
        table[rows] = rounds_of(subjects, x, arguments.rounds)
    large = layer(*map(int, arguments.large.split("x")), 1, arguments.density, 16, rng)
    alone = ours(large, "fp32", False, "large", library)
    row, source = rng.standard_normal((1, large.shape[0]), np.float32), np.ones(COPY_BYTES // 8)
    target = np.ones_like(source)  # its pages exist before they are timed
    shares = [alone.weight_bytes / median_s(alone, row) / copy_rate(source, target) for _ in range(arguments.rounds)]

    print(f"| node | {MANY_ROWS} rows, ms | GFLOP/s | of dense fp32's rate | 1 row, ms | of dense int8's time |")
    print("|---|--:|--:|--:|--:|--:|")
    roof = [2 * MANY_ROWS * subjects[0].macs / seconds for seconds in table[MANY_ROWS]["dense fp32"]]
    rates = {}
    for subject in subjects:
        many, one = table[MANY_ROWS][subject.name], table[1][subject.name]
        rate = [2 * MANY_ROWS * subject.macs / seconds for seconds in many]
        rates[subject.name] = ratio(rate, roof)
        print(
            f"| {subject.name} | {np.median(many) * 1e3:.3f} | {np.median(rate) / 1e9:.0f} | {rates[subject.name]:.2f} "
            f"| {np.median(one) * 1e3:.4f} | {ratio(one, table[1]['dense int8']):.2f} |"
        )
    fused, best = "low rank + blocks of 16 int8", min(np.median(table[1][f"dense {p}"]) for p in ("fp32", "int8"))
    csr = (
        2 * MANY_ROWS * next(s.macs for s in subjects if s.name == "CSR fp32") / np.median(table[MANY_ROWS]["CSR fp32"])
    )
    two = ratio(table[MANY_ROWS]["blocks of 16 fp32, by the clock"], table[MANY_ROWS]["blocks of 16 fp32, 2 threads"])
    targets = [
        ("blocks of 16, many rows: of the dense fp32 rate", rates["blocks of 16 fp32"], "≥", 0.9),
        ("blocks of 8, many rows: of the dense fp32 rate", rates["blocks of 8 fp32"], "≥", 0.7),
        ("CSR, many rows: GFLOP/s", csr / 1e9, "≥", 100),
        ("1 row, weights beyond the cache: of the copy bandwidth", float(np.median(shares)), "≥", 0.6),
        ("2 threads: times as fast", two, "≥", 1.8),
        (
            "int8 node, many rows: of dense int8",
            ratio(table[MANY_ROWS][fused], table[MANY_ROWS]["dense int8"]),
            "≤",
            0.6,
        ),
        ("int8 node, 1 row: of the fastest dense form", float(np.median(table[1][fused]) / best), "≤", 0.5),
    ]
    print()
    for what, value, sign, wanted in targets:
        met = value >= wanted if sign == "≥" else value <= wanted
        print(f"{'met ' if met else 'MISS'}  {what}: {value:.2f} (wanted {sign} {wanted})")
    result = {"shape": arguments.shape, "rank": arguments.rank, "density": arguments.density, "rounds_s": table,
              "of_copy_bandwidth": shares, "targets": targets}  # fmt: skip
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
