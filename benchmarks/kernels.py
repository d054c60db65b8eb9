"""The native kernels inside ONNX Runtime, as `python benchmarks/kernels.py [--shape 768x3072] [--library FILE]`.

One layer, density .10 and rank 48 by default, one thread unless said otherwise. Nodes take turns in one process, a few
short runs each, and the shortest run of each counts: others' turns on a shared machine only ever add. Each node is
checked against float64 before it is timed. Beside them stands the roof of the same rounds: the rate of the dense fp32
product and the bandwidth of a copy. The table is followed by one line for each target.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from peers.plots import COLORS, bars
from peers.results import RESULTS, markdown, publish

from saten_exporters.choice.targets import TARGETS
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import RESIDUAL_FORMS, Form, form_of
from saten_exporters.quantize import quantize_int8
from saten_runtime.vocabulary.operators import DOMAIN, DOMAIN_VERSION

LIBRARY = Path(__file__).parents[1] / "runtime" / "kernels" / "build" / "release" / "libsaten_kernels.so"
GROUPS = (1, 4, 8, 16, 32)  # 1: compressed rows
MANY_ROWS = 128
TURN_S = 2e-3  # of a turn, about: short enough that all nodes meet the same moments
COPY_BYTES = 256 * 2**20  # far beyond the last-level cache
HEAD_SIZE = 64
ATTENTIONS = (("", 1e-5, "attention fp32"), ("Bf16", 0.02, "attention bf16"))  # suffix, relative error, name
TARGET = TARGETS["x86-64"]


@dataclass(frozen=True)
class Subject:
    """One session to time. macs: for one row; weight_bytes: what one row reads."""

    name: str
    run: Any
    macs: int
    weight_bytes: int


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
    layout = "csr" if group == 1 else "grouped"
    return LayerParts("layer", "linear", (inputs, outputs), [rank], a, b, layout, values, indices)


def dense_of(parts: LayerParts) -> np.ndarray:
    """S in float64, (in, out)."""
    matrix = np.zeros(parts.shape)
    chosen = parts.indices["indices"].astype(np.int64)
    if parts.layout == "csr":
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
) -> Any:
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
    return on_kernels(ir.to_proto(model), library, threads)


def on_kernels(model: onnx.ModelProto, library: Path, threads: int) -> Any:
    """A session of the model, with the library's kernels."""
    import onnxruntime  # after saten_runtime, which turns its telemetry off

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def checked(subject: Subject, matrix: np.ndarray, allowed: float) -> Subject:
    """Refuse to time what computes another product than with a matrix."""
    return compared(subject, matrix.shape[0], lambda x: x @ matrix, allowed)


def compared(subject: Subject, inputs: int, exact: Callable[[np.ndarray], np.ndarray], allowed: float) -> Subject:
    """Refuse to time what computes something else than `exact` does in float64."""
    x = np.random.default_rng(1).standard_normal((9, inputs), np.float32)
    wanted = exact(x.astype(np.float64))
    error = np.linalg.norm(subject.run.run(None, {"x": x})[0] - wanted) / np.linalg.norm(wanted)
    if not error <= allowed:
        raise SystemExit(f"{subject.name}: relative error {error:.1e}, expected at most {allowed}")
    return subject


def ours(parts: LayerParts, precision: str, whole: bool, name: str, library: Path, threads: int = 1) -> Subject:
    """The node of a layer, or of its residual alone."""
    form = form_of(parts, precision) if whole else RESIDUAL_FORMS[parts.layout, "linear", precision]
    packed = form.pack(parts)
    weights = {each: packed[each] for each in form.inputs}
    run = session(form.op_type, DOMAIN, weights, parts.shape, form, library, threads)
    macs = parts.values.size + whole * (parts.a.size + parts.b.size)
    matrix = dense_of(parts) + whole * (parts.a.astype(np.float64) @ parts.b)
    stored = sum(array.nbytes for array in weights.values())
    return checked(Subject(name, run, macs, stored), matrix, 1e-5 if precision == "fp32" else 0.05)


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


def attended(x: np.ndarray) -> np.ndarray:
    """softmax(x xᵀ / √HEAD_SIZE) x of each head; x (rows, heads · HEAD_SIZE)."""
    heads = x.reshape(len(x), -1, HEAD_SIZE).swapaxes(0, 1)
    scores = heads @ heads.swapaxes(1, 2) / math.sqrt(HEAD_SIZE)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ heads).swapaxes(0, 1).reshape(x.shape)


def attention(inputs: int, suffix: str, allowed: float, name: str, library: Path) -> Subject:
    """An encoder's attention of the rows of one text to each other. macs: of a row among MANY_ROWS."""
    text = f"""<ir_version: {TARGET.ir_version}, opset_import: ["": {TARGET.opset}, "{DOMAIN}": {DOMAIN_VERSION}]>
        g (float[rows, {inputs}] x) => (float[rows, {inputs}] y) <int64[1] axis = {{0}}> {{
            one = Unsqueeze (x, axis)
            all = {DOMAIN}.MultiHeadAttention{suffix}
                <heads = {inputs // HEAD_SIZE}, scale = {1 / math.sqrt(HEAD_SIZE)}> (one, one, one)
            y = Squeeze (all, axis)
        }}"""
    run = on_kernels(onnx.parser.parse_model(text), library, 1)
    return compared(Subject(name, run, 2 * MANY_ROWS * inputs, 0), inputs, attended, allowed)


def turn(subject: Subject, x: np.ndarray) -> float:
    """Seconds of the shortest of a few runs."""
    shortest, end = math.inf, time.perf_counter() + TURN_S
    while (start := time.perf_counter()) < end:
        subject.run.run(None, {"x": x})
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def copy_s(source: np.ndarray, target: np.ndarray) -> float:
    """Seconds of a copy."""
    start = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - start


def rounds_of(subjects: list[Subject], x: np.ndarray, rounds: int) -> dict[str, float]:
    """The shortest run of each subject in seconds; they take turns."""
    seconds = {subject.name: math.inf for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            seconds[subject.name] = min(seconds[subject.name], turn(subject, x))
    return seconds


def arguments_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="768x3072", help="inputs × outputs (default: 768x3072)")
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--density", type=float, default=0.10)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--large", default="4096x32768", help="a layer larger than the last-level cache, for one row")
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "kernels.json")
    return parser.parse_args()


def subjects_of(arguments: argparse.Namespace, library: Path, rng: np.random.Generator) -> list[Subject]:
    """The dense layer, our nodes of every group at both precisions, and attention."""
    inputs, outputs = map(int, arguments.shape.split("x"))
    subjects = [dense(inputs, outputs, precision, library, rng) for precision in ("fp32", "int8")]
    for group in GROUPS:
        parts = layer(inputs, outputs, arguments.rank, arguments.density, group, rng)
        name = f"blocks of {group}" if group > 1 else "CSR"
        for precision in ("fp32", "int8"):
            subjects.append(ours(parts, precision, False, f"{name} {precision}", library))
            subjects.append(ours(parts, precision, True, f"low rank + {name} {precision}", library))
        if group == 16:
            subjects.append(ours(parts, "fp32", False, "blocks of 16 fp32, 2 threads", library, threads=2))
    return subjects + [attention(inputs, *row, library) for row in ATTENTIONS]


def share_of_copy(arguments: argparse.Namespace, library: Path, rng: np.random.Generator) -> float:
    """Bytes of weights per second that one row reads of a layer beyond the cache, as a share of what a copy moves."""
    large = layer(*map(int, arguments.large.split("x")), 1, arguments.density, 16, rng)
    alone = ours(large, "fp32", False, "large", library)
    row, source = rng.standard_normal((1, large.shape[0]), np.float32), np.ones(COPY_BYTES // 8)
    target = np.ones_like(source)  # its pages exist before they are timed
    pairs = [(turn(alone, row), copy_s(source, target)) for _ in range(arguments.rounds)]
    fastest, copied = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    return alone.weight_bytes / fastest / (2 * source.nbytes / copied)


def targets_of(
    many: dict[str, float], one: dict[str, float], rate: dict[str, float], share: float
) -> list[tuple[str, float, str, float]]:
    """What was aimed at: name, value, and the limit it must reach or keep. many, one: seconds by node."""
    fused, best = "low rank + blocks of 16 int8", min(one["dense fp32"], one["dense int8"])
    two = many["blocks of 16 fp32"] / many["blocks of 16 fp32, 2 threads"]
    return [
        ("blocks of 16, many rows: of the dense fp32 rate", rate["blocks of 16 fp32"] / rate["dense fp32"], "≥", 0.9),
        ("blocks of 8, many rows: of the dense fp32 rate", rate["blocks of 8 fp32"] / rate["dense fp32"], "≥", 0.7),
        ("CSR, many rows: GFLOP/s", rate["CSR fp32"] / 1e9, "≥", 100),
        ("1 row, weights beyond the cache: of the copy bandwidth", share, "≥", 0.6),
        ("2 threads: times as fast", two, "≥", 1.8),
        ("int8 node, many rows: of dense int8", many[fused] / many["dense int8"], "≤", 0.6),
        ("int8 node, 1 row: of the fastest dense form", one[fused] / best, "≤", 0.5),
    ]


def main() -> None:
    arguments = arguments_of()
    library, rng = arguments.library.resolve(), np.random.default_rng(0)
    subjects = subjects_of(arguments, library, rng)
    inputs = int(arguments.shape.partition("x")[0])
    many, one = (
        rounds_of(subjects, rng.standard_normal((rows, inputs), np.float32), arguments.rounds)
        for rows in (MANY_ROWS, 1)
    )
    rate = {each.name: 2 * MANY_ROWS * each.macs / many[each.name] for each in subjects}
    rows_of_table = [
        {
            "node": name,
            "many_rows_ms": many[name] * 1e3,
            "flops_per_s": of_node,
            "of_dense_fp32_rate": of_node / rate["dense fp32"],
            "one_row_ms": one[name] * 1e3,
            "of_dense_int8_time": one[name] / one["dense int8"],
        }
        for name, of_node in rate.items()
    ]
    targets = targets_of(many, one, rate, share_of_copy(arguments, library, rng))
    facts = {"shape": arguments.shape, "rank": arguments.rank, "density": arguments.density, "targets": targets}
    colors = [(name, of_node / 1e9, COLORS["saten-1"]) for name, of_node in rate.items()]
    picture = bars(f"Nodes at {MANY_ROWS} rows", "GFLOP/s", colors)
    publish(arguments.output, rows_of_table, table_text(rows_of_table, targets), picture, **facts)


def table_text(rows: Sequence[dict[str, Any]], targets: Sequence[tuple[str, float, str, float]]) -> str:
    """The table for people, and a line for each target."""
    head = ("node", f"{MANY_ROWS} rows, ms", "GFLOP/s", "of dense fp32's rate", "1 row, ms", "of dense int8's time")
    lines = [
        (
            row["node"],
            f"{row['many_rows_ms']:.3f}",
            f"{row['flops_per_s'] / 1e9:.0f}",
            f"{row['of_dense_fp32_rate']:.2f}",
            f"{row['one_row_ms']:.4f}",
            f"{row['of_dense_int8_time']:.2f}",
        )
        for row in rows
    ]
    said = ""
    for what, value, sign, wanted in targets:
        met = value >= wanted if sign == "≥" else value <= wanted
        said += f"- {'met ' if met else 'MISS'} {what}: {value:.2f} (wanted {sign} {wanted})\n"
    return f"{markdown(head, lines)}\n{said}"


if __name__ == "__main__":
    main()
