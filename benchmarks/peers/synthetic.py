"""Random layers in every form, as ONNX Runtime sessions: what layers.py and scaling.py time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from saten_exporters.choice.random_layers import idle_model, node_model
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import Form
from saten_runtime.run import kernels
from saten_runtime.run.products import exact_entries

__all__ = ["check", "idle_ns", "matrix_of", "samples_ns", "session"]

# precision → relative error beyond which a form computes something else
ALLOWED = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.05, "int8-block": 0.05, "int4": 0.35, "int4-128": 0.45, "int2": 0.8}
LEAST_RUNS = 3


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
    """One node, as `node_model`, on one thread; native: with the kernels."""
    return _start(node_model(form, parts, rows), native)


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
    run = _start(idle_model(), False)
    return min(min(samples_ns(run, np.zeros((1, 1), np.float32), 2e-3)) for _ in range(rounds))


def _start(model: bytes, native: bool) -> Any:
    import onnxruntime  # after saten_runtime, which turns its telemetry off

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    for entry in exact_entries().items():
        options.add_session_config_entry(*entry)
    if native:
        kernels.register(options)
    return onnxruntime.InferenceSession(model, options)
