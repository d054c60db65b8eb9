"""Products of 8 bits: whether this machine computes them exactly, found out by computing one.

x86-64 processors without VNNI (AVX2, AVX-512 of before 2019) add pairs of products of unsigned by signed bytes in
16 bits, which saturates: 255 · 127 twice is 64770, the largest is 32767. With `EXACT_BYTES`, ONNX Runtime stores such
weights as unsigned there, in an optimization of its own, and its sums are exact. Elsewhere the entry changes no
number, but it costs time: an encoder took 1.8 of its time with it on a processor with VNNI. So it is set only where a
product, computed once, comes out wrong without it.
Source: "When and why do I need to try U8U8?" in
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle.protobuf import bytes_field, packed, varint_field
from saten_runtime.errors import DeviceError
from saten_runtime.machine.child import how_it_ended, python_command
from saten_runtime.records.plain_text import last_line
from saten_runtime.run.kernels import register

__all__ = ["EXACT_BYTES", "exact_bytes", "exact_entries", "exact_kernels", "probe_products", "product_model"]

Weights = Mapping[str, npt.NDArray[Any]]

EXACT_BYTES = ("session.x64quantprecision", "1")

_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}  # TensorProto.DataType
_OPSET, _IR_VERSION = 18, 8
_PROBE_LIMIT_S = 120
_ROWS, _INNER, _COLUMNS, _LARGEST = 8, 64, 16, 127
# A range of 8-bit activations has 255 steps; what is saturated is off by a half.
_A_STEP = 1 / 255


def exact_bytes(*, optimized: bool = True, entry: tuple[str, str] = EXACT_BYTES) -> bool:
    """Whether ONNX Runtime's products by bytes are exact here, in a session with `entry`.

    optimized: with its optimizations, without which the entry does nothing.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*entry)
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    weights: Weights = {"w": _codes(_INNER, _COLUMNS), "scale": np.ones(_COLUMNS, np.float32)}
    return _is_exact(options, "com.microsoft", "DynamicQuantizeMatMul", weights, _INNER * _LARGEST)


@functools.cache
def exact_entries() -> Mapping[str, str]:
    """The entries that a session needs here for exact products by bytes; none where they are exact without."""
    return {} if exact_bytes(entry=(EXACT_BYTES[0], "0")) else dict([EXACT_BYTES])


def exact_kernels() -> bool | None:
    """The same of the native kernels; None where they are not active."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if register(options).state != "active":
        return None
    scale = np.ones(_COLUMNS, np.float32)
    weights: Weights = {
        "a": _codes(_INNER, _COLUMNS),
        "a_scale": scale,
        "b": _codes(_COLUMNS, _COLUMNS),
        "b_scale": scale,
    }
    return _is_exact(options, "saten", "LowRankLinearInt8", weights, _INNER * _COLUMNS * _LARGEST**2)


def probe_products() -> dict[str, bool]:
    """By what computes, whether it is exact; found out in a process of its own, as an instruction may be missing.

    Raises:
        DeviceError: how that process ended instead.
    """
    command = python_command("from saten_runtime.run.products import _main; _main()")
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"a product of 8 bits: no answer in {_PROBE_LIMIT_S} s") from None
    if child.returncode != 0:
        words = last_line(child.stderr)
        raise DeviceError(f"a product of 8 bits: {how_it_ended(child.returncode, words)}")
    found: dict[str, bool | None] = json.loads(child.stdout.splitlines()[-1])
    return {name: exact for name, exact in found.items() if exact is not None}


def _main() -> None:
    found = {"ONNX Runtime": exact_bytes(), "native kernels": exact_kernels()}
    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")


def product_model(op_type: str, weights: Weights, *, x: str = "float32", y: str = "float32", domain: str = "") -> bytes:
    """An ONNX file of the one node y = op(x, weights …); x, y: element types. For field numbers see `bundle.graph`."""
    node = b"".join(bytes_field(1, name) for name in ("x", *weights))
    node += bytes_field(2, "y") + bytes_field(4, op_type) + bytes_field(7, domain)
    graph = bytes_field(1, node) + bytes_field(2, "g")
    graph += b"".join(bytes_field(5, _tensor(name, array)) for name, array in weights.items())
    graph += bytes_field(11, _value("x", x)) + bytes_field(12, _value("y", y))
    opsets = bytes_field(8, bytes_field(1, "") + varint_field(2, _OPSET))
    opsets += bytes_field(8, bytes_field(1, domain) + varint_field(2, 1)) if domain else b""
    return varint_field(1, _IR_VERSION) + bytes_field(7, graph) + opsets


def _is_exact(options: Any, domain: str, op_type: str, weights: Weights, wanted: float) -> bool:
    """Whether rows of ones, whose codes are all the largest, give `wanted` everywhere."""
    import onnxruntime

    options.log_severity_level, options.intra_op_num_threads = 4, 1
    model = product_model(op_type, weights, domain=domain)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": np.ones((_ROWS, _INNER), np.float32)})
    return bool(np.allclose(y, wanted, rtol=_A_STEP, atol=0))


def _codes(*shape: int) -> npt.NDArray[np.int8]:
    return np.full(shape, _LARGEST, np.int8)


def _tensor(name: str, array: npt.NDArray[Any]) -> bytes:
    head = packed(1, array.shape) + varint_field(2, _TYPES[array.dtype.name])
    return head + bytes_field(8, name) + bytes_field(9, array.tobytes())


def _value(name: str, element_type: str) -> bytes:
    """A ValueInfoProto of a tensor of two axes of any length."""
    shape = bytes_field(2, bytes_field(1, b"") * 2)
    return bytes_field(1, name) + bytes_field(2, bytes_field(1, varint_field(1, _TYPES[element_type]) + shape))
