"""Adding weights to a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from saten_runtime.errors import ExportError

__all__ = ["constant", "new_initializer"]


def new_initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """Register `array` as the main graph's initializer `name`.

    Raises:
        ExportError: there is another of that name.
    """
    if name in model.graph.initializers:
        raise ExportError(f"two tensors of the graph would be called {name!r}; rename a layer of the model")
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def constant(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """The main graph's initializer `name`, which is `array` wherever a pass asks for it."""
    known = model.graph.initializers
    return known[name] if name in known else new_initializer(model, name, array)
