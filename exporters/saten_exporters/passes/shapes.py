"""Comparing shapes whose axes have numbers or names."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["same_shape"]


def same_shape(one: ir.Shape | None, other: ir.Shape | None) -> bool:
    """Whether every axis has the same number or name; an axis without either is like no other."""
    if one is None or other is None or len(one) != len(other):
        return False
    return all(a == b and str(a) != "None" for a, b in zip(one, other, strict=True))
