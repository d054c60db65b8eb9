"""Adding weights to a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["new_initializer"]


def new_initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """Register `array` as the main graph's initializer `name`."""
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
