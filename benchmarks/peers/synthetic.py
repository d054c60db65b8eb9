"""Random layers in every form, as ONNX Runtime sessions: what layers.py, scaling.py and cost_model.py time."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import onnx_ir as ir

from saten_exporters.choice.targets import TARGETS
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import Form
from saten_runtime.run import kernels
from saten_runtime.run.products import EXACT_BYTES
from saten_runtime.vocabulary.operators import DOMAIN, DOMAIN_VERSION

__all__ = ["TARGET", "check", "idle_ns", "layer", "matrix_of", "samples_ns", "session"]

TARGET = next(iter(TARGETS.values()))
# precision → relative error beyond which a form computes something else
ALLOWED = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.05, "int8-block": 0.05, "int4": 0.35}
LEAST_RUNS = 3


def layer(
    shape: tuple[int, int],
    rank: int,
    layout: str,
    kept: int,
    rng: np.random.Generator,
    *,
    group: int = 1,
    kind: str = "linear",
) -> LayerParts:
    """Random numbers of a layer whose train has two cores on each side and its inner ranks cut in half.

    kept: stored entries of a row: of an output for "csr", of a block of outputs for "grouped", of an input for "ell".
    """
    inputs, outputs = shape
    first, last = _split(inputs), tuple(reversed(_split(outputs)))
    left, right = max(1, min(first[0], rank) // 2), max(1, min(last[1], rank) // 2)
    cores = (
        (_normal(rng, 1, first[0], left), _normal(rng, left, first[1], rank) / math.sqrt(left * inputs)),
        (_normal(rng, rank, last[0], right) / math.sqrt(right * rank), _normal(rng, right, last[1], 1)),
    )
    a, b = (np.tensordot(*side, axes=1).astype(np.float32) for side in cores)
    values, indices = np.zeros(0, np.float32), {}
    scale = 1 / math.sqrt(inputs)
    if layout == "grouped":
        indices = {"indices": _places(rng, outputs // group, kept, inputs).astype(np.int32)}
        values = _normal(rng, outputs // group, group, kept) * np.float32(scale)
    if layout == "csr":
        pointers = np.arange(outputs + 1, dtype=np.int32) * kept
        indices = {"indptr": pointers, "indices": _places(rng, outputs, kept, inputs).ravel().astype(np.uint16)}
        values = _normal(rng, outputs * kept) * np.float32(scale)
    if layout == "ell":
        indices = {"indices": _places(rng, inputs, kept, outputs).astype(np.uint16)}
        values = _normal(rng, inputs, kept) * np.float32(scale)
    return LayerParts(
        "layer", kind, shape, [rank], a.reshape(inputs, rank), b.reshape(rank, outputs), layout, values, indices, cores
    )


def matrix_of(parts: LayerParts) -> np.ndarray:
    """A B + S of a linear layer in float64, (in, out)."""
    matrix = parts.a.astype(np.float64) @ parts.b
    if parts.layout == "grouped":
        size = parts.values.shape[1]
        for number, (block, chosen) in enumerate(zip(parts.values, parts.indices["indices"], strict=True)):
            matrix[chosen, number * size : (number + 1) * size] += block.T
    elif parts.layout == "csr":
        rows = np.repeat(np.arange(parts.shape[1]), np.diff(parts.indices["indptr"]))
        matrix[parts.indices["indices"], rows] += parts.values
    return matrix


def session(form: Form, parts: LayerParts, rows: int, *, native: bool = False) -> Any:
    """One node from x (rows, inputs), or ids (rows) of a table, to y (rows, outputs), on one thread.

    rows: of x to expect; native: with the kernels.
    """
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
    sizes = [ir.AttrInt64(name, size) for name, size in form.sizes(parts, rows).items()]
    node = ir.Node(DOMAIN, form.op_type, [x, *weights], sizes)
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["rows", outputs]), ir.TensorType(ir.DataType.FLOAT)
    imports = {"": TARGET.opset, "com.microsoft": 1, DOMAIN: DOMAIN_VERSION}
    graph = ir.Graph([x], [y], nodes=[node], initializers=weights, opset_imports=imports, name="layer")
    return _start(ir.Model(graph, ir_version=TARGET.ir_version, functions=form.functions(TARGET.opset)), native)


def check(name: str, run: Any, matrix: np.ndarray, precision: str) -> None:
    """Refuse to time a form that computes something else.

    Raises:
        SystemExit: its error is more than its precision explains.
    """
    x = np.random.default_rng(1).standard_normal((8, matrix.shape[0]), np.float32)
    wanted = x @ matrix
    error = np.linalg.norm(run.run(None, {"x": x})[0] - wanted) / np.linalg.norm(wanted)
    if not error <= ALLOWED[precision]:
        raise SystemExit(f"{name}: relative error {error:.1e}, expected at most {ALLOWED[precision]}")


def samples_ns(run: Any, x: np.ndarray, least_s: float) -> list[int]:
    """Nanoseconds of runs that take `least_s` seconds together, or of three; the first, untimed, warms up."""
    run.run(None, {"x": x})
    samples: list[int] = []
    end = time.perf_counter_ns() + least_s * 1e9
    now = time.perf_counter_ns()
    while len(samples) < LEAST_RUNS or now < end:
        run.run(None, {"x": x})
        now, before = time.perf_counter_ns(), now
        samples.append(now - before)
    return samples


def idle_ns(rounds: int) -> float:
    """What a run costs that computes nothing: the shortest."""
    x, y = (ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT)) for name in "xy")
    node = ir.Node("", "Identity", [x], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": TARGET.opset}, name="empty")
    run = _start(ir.Model(graph, ir_version=TARGET.ir_version), False)
    return min(min(samples_ns(run, np.zeros(1, np.float32), 2e-3)) for _ in range(rounds))


def _start(model: ir.Model, native: bool) -> Any:
    import onnxruntime  # after saten_runtime, which turns its telemetry off

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.add_session_config_entry(*EXACT_BYTES)
    if native:
        kernels.register(options)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def _split(size: int) -> tuple[int, int]:
    """Two dims of a side, the smaller first."""
    small = next(dim for dim in range(math.isqrt(size), 0, -1) if size % dim == 0)
    return small, size // small


def _places(rng: np.random.Generator, count: int, kept: int, among: int) -> np.ndarray:
    """`count` rows of `kept` different numbers below `among`, ascending."""
    return np.stack([np.sort(rng.choice(among, kept, replace=False)) for _ in range(count)])


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)
