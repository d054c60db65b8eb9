"""The layers of a bundle: those its manifest lists, or, for a dense model that lists none, its weight matrices."""

from __future__ import annotations

import math

from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.graph import Graph, Tensor
from saten_runtime.bundle.manifest import Layer

__all__ = ["layers_of"]

# operator → whether it holds its weights as (out, in)
_PRODUCTS = {
    "MatMul": False,
    "Gemm": False,
    "FusedMatMul": False,
    "MatMulInteger": False,
    "DynamicQuantizeMatMul": False,
    "MatMulNBits": True,  # (out, blocks, bytes of a block)
}
_LOOKUPS = {"Gather", "GatherBlockQuantized"}
_ON_BLOCKS = {"MatMulNBits", "GatherBlockQuantized"}
_PACKED = {2: 4, 4: 2, 8: 1}  # bits of a code → codes in a byte
# What the exporter calls the parts of a matrix stored in fewer bits.
_CODES, _SCALE = ".codes", ".scale"
_ON_THE_WAY = {"Reshape", "Cast"}
_LEAST_VALUES = 4096  # smaller constants are shapes and masks


def layers_of(bundle: Bundle) -> list[Layer]:
    """What multiplies and what is looked up, in the order of the manifest or of the graph.

    Raises:
        BundleError: the manifest lists none and the graph cannot be read.
    """
    if bundle.manifest.layers:
        return bundle.manifest.layers
    graph = bundle.read_graph()
    origins = _origins(graph)
    found: dict[str, Layer] = {}
    for node in graph.nodes:
        if node.op_type not in _PRODUCTS and node.op_type not in _LOOKUPS:
            continue
        packed = _PACKED.get(node.integers.get("bits", 4), 1) if node.op_type in _ON_BLOCKS else 1
        for name in (origins.get(value, value) for value in node.inputs):
            tensor, layer = graph.initializers.get(name), name.removesuffix(_CODES)
            if tensor is None or len(tensor.shape) < 2 or name.endswith(_SCALE):
                continue
            if packed * math.prod(tensor.shape) >= _LEAST_VALUES:
                scale = graph.initializers.get(layer + _SCALE)
                found.setdefault(layer, _layer(layer, node.op_type, tensor, packed, scale.bytes if scale else 0))
    return list(found.values())


def _origins(graph: Graph) -> dict[str, str]:
    """Initializers behind what is made of them: float16 is reshaped and cast on its way to a product."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in _ON_THE_WAY:
            found[node.outputs[0]] = found.get(node.inputs[0], node.inputs[0])
    return found


def _layer(name: str, operator: str, tensor: Tensor, packed: int, scale_bytes: int) -> Layer:
    """A matrix in the graph as a layer, whose shape is (out, in) or (rows, width); packed: values in each element."""
    first, *rest = tensor.shape
    shape = [first, packed * math.prod(rest)]
    linear = operator in _PRODUCTS
    return Layer(
        name=name,
        kind="linear" if linear else "embedding",
        form=operator,
        shape=shape[::-1] if linear and not _PRODUCTS[operator] else shape,
        ranks=[],
        nnz=0,
        bytes=tensor.bytes + scale_bytes,
        dense_fp32_bytes=4 * math.prod(shape),
        macs_per_row=math.prod(shape) if linear else 0,
    )
