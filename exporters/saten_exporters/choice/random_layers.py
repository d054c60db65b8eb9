"""Layers of random numbers, and a form of one as an ONNX model of a single node: what prices are measured on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from saten_exporters.choice.targets import TARGETS, Target
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import Form
from saten_runtime.vocabulary.operators import DOMAIN, DOMAIN_VERSION

__all__ = ["idle_model", "node_model", "random_layer"]

_TARGET = next(iter(TARGETS.values()))


def random_layer(
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
        (_normal(rng, 1, first[0], left), _normal(rng, left, first[1], rank, scale=1 / math.sqrt(left * inputs))),
        (_normal(rng, rank, last[0], right, scale=1 / math.sqrt(right * rank)), _normal(rng, right, last[1], 1)),
    )
    a, b = (np.tensordot(left_core, right_core, axes=1) for left_core, right_core in cores)
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


def node_model(form: Form, parts: LayerParts, rows: int, target: Target = _TARGET) -> bytes:
    """One node from x (rows, inputs), or ids (rows) of a table, to y (rows, outputs); rows: of x to expect."""
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
        array = np.ascontiguousarray(packed[name])
        tensor = ir.tensor(array, name=name)
        weights.append(
            ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    sizes = [ir.AttrInt64(name, size) for name, size in form.sizes(parts, target.floats_at(rows)).items()]
    node = ir.Node(DOMAIN, form.op_type, [x, *weights], sizes)
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["rows", outputs]), ir.TensorType(ir.DataType.FLOAT)
    imports = {"": _TARGET.opset, "com.microsoft": 1, DOMAIN: DOMAIN_VERSION}
    graph = ir.Graph([x], [y], nodes=[node], initializers=weights, opset_imports=imports, name="layer")
    return _bytes(ir.Model(graph, ir_version=_TARGET.ir_version, functions=form.functions(_TARGET.opset)))


def idle_model() -> bytes:
    """A model that computes nothing: y is x (rows, 1)."""
    x, y = (ir.Value(name=name, shape=ir.Shape([None, 1]), type=ir.TensorType(ir.DataType.FLOAT)) for name in "xy")
    node = ir.Node("", "Identity", [x], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": _TARGET.opset}, name="empty")
    return _bytes(ir.Model(graph, ir_version=_TARGET.ir_version))


def _bytes(model: ir.Model) -> bytes:
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _split(size: int) -> tuple[int, int]:
    """Two dims of a side, the smaller first."""
    small = next(dim for dim in range(math.isqrt(size), 0, -1) if size % dim == 0)
    return small, size // small


def _places(rng: np.random.Generator, count: int, kept: int, among: int) -> NDArray[Any]:
    """`count` rows of `kept` different numbers below `among`, ascending."""
    return np.stack([np.sort(rng.choice(among, kept, replace=False)) for _ in range(count)])


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = rng.standard_normal(shape, np.float32) * np.float32(scale)
    return numbers
