"""The tensor train with its cores folded to two factors: y = (x A) B."""

from __future__ import annotations

from saten_exporters.forms.form import Form, Weights
from saten_exporters.parts import LayerParts
from saten_exporters.quantize import quantize_int8

__all__ = ["LOW_RANK_EMBEDDING", "LOW_RANK_EMBEDDING_INT8", "LOW_RANK_LINEAR", "LOW_RANK_LINEAR_INT8"]


def _factors(parts: LayerParts) -> Weights:
    return {"a": parts.a, "b": parts.b}


def _factors_int8(parts: LayerParts) -> Weights:
    (a, a_scale), (b, b_scale) = quantize_int8(parts.a, axis=0), quantize_int8(parts.b, axis=0)
    return {"a": a, "a_scale": a_scale.reshape(-1), "b": b, "b_scale": b_scale.reshape(-1)}


def _table_int8(parts: LayerParts) -> Weights:
    a, a_scale = quantize_int8(parts.a, axis=1)  # a scale per row: one row is looked up at a time
    b, b_scale = quantize_int8(parts.b, axis=0)
    return {"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale.reshape(-1)}


def _linear_macs(parts: LayerParts) -> int:
    return parts.a.size + parts.b.size


def _embedding_macs(parts: LayerParts) -> int:
    return parts.b.size


LOW_RANK_LINEAR = Form(
    "LowRank",
    "linear",
    "fp32",
    ("a", "b"),
    """
        inner = MatMul (x, a)
        y = MatMul (inner, b)""",
    _factors,
    _linear_macs,
)

LOW_RANK_LINEAR_INT8 = Form(
    "LowRank",
    "linear",
    "int8",
    ("a", "a_scale", "b", "b_scale"),
    """
        inner = com.microsoft.DynamicQuantizeMatMul (x, a, a_scale)
        y = com.microsoft.DynamicQuantizeMatMul (inner, b, b_scale)""",
    _factors_int8,
    _linear_macs,
)

LOW_RANK_EMBEDDING = Form(
    "LowRank",
    "embedding",
    "fp32",
    ("a", "b"),
    """
        inner = Gather <axis = 0> (a, x)
        y = MatMul (inner, b)""",
    _factors,
    _embedding_macs,
)

LOW_RANK_EMBEDDING_INT8 = Form(
    "LowRank",
    "embedding",
    "int8",
    ("a", "a_scale", "b", "b_scale"),
    """
        codes = Gather <axis = 0> (a, x)
        numbers = Cast <to = 1> (codes)
        scale = Gather <axis = 0> (a_scale, x)
        inner = Mul (numbers, scale)
        y = com.microsoft.DynamicQuantizeMatMul (inner, b, b_scale)""",
    _table_int8,
    _embedding_macs,
)
