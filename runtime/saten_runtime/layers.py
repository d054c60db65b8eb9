"""The layers of a bundle: those its manifest lists, or, for a dense model that lists none, its weight matrices."""

from __future__ import annotations

import math

from saten_runtime.bundle import Bundle
from saten_runtime.manifest import Layer

__all__ = ["layers_of"]

_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "DynamicQuantizeMatMul"}
_LOOKUPS = {"Gather"}
_LEAST_VALUES = 4096  # smaller constants are shapes and masks


def layers_of(bundle: Bundle) -> list[Layer]:
    """What multiplies and what is looked up, in the order of the manifest or of the graph.

    Raises:
        BundleError: the manifest lists none and the graph cannot be read.
    """
    if bundle.manifest.layers:
        return bundle.manifest.layers
    graph = bundle.read_graph()
    found: dict[str, Layer] = {}
    for node in graph.nodes:
        kind = "linear" if node.op_type in _PRODUCTS else "embedding" if node.op_type in _LOOKUPS else ""
        for name in node.inputs:
            tensor = graph.initializers.get(name)
            if kind and tensor and len(tensor.shape) == 2 and math.prod(tensor.shape) >= _LEAST_VALUES:
                found.setdefault(name, _layer(name, kind, node.op_type, tensor.shape, tensor.bytes))
    return list(found.values())


def _layer(name: str, kind: str, form: str, shape: tuple[int, ...], size: int) -> Layer:
    """Products hold their weights as (in, out), layers are listed as (out, in)."""
    values = math.prod(shape)
    return Layer(
        name=name.removesuffix(".codes"),
        kind=kind,
        form=form,
        shape=list(shape if kind == "embedding" else shape[::-1]),
        ranks=[],
        nnz=0,
        bytes=size,
        dense_fp32_bytes=4 * values,
        macs_per_row=values if kind == "linear" else 0,
    )
