"""Codes for the weights that stayed dense: linear layers and embedding tables alike."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from saten_exporters.choice.settings import ExportSettings
from saten_exporters.choice.targets import TARGETS
from saten_exporters.forms import DENSE_FORMS, OFFSETS, STORAGES, Storage
from saten_exporters.passes.calls import add_functions, call, expand_dense
from saten_exporters.passes.initializers import constant
from saten_exporters.quantize import SMALLEST_WEIGHT, has_offsets, storing
from saten_exporters.tracing.mixed import ALIKE, Mixed

__all__ = ["QuantizeDensePass"]

# What is set on a FusedMatMul that only transposes its weight.
_TURNED = {"alpha": 1.0, "transB": 1}


class QuantizeDensePass(ir.passes.InPlacePass):
    """MatMul by a constant (in, out) and Gather from a constant table → the dense forms of a precision.

    A head that multiplies by the transpose of a table (FusedMatMul) shares what is stored of the table.
    Does nothing to activations times activations, to small weights, to anything already stored so, and at fp32.
    """

    def __init__(self, settings: ExportSettings, mixed: Mixed = ALIKE) -> None:
        super().__init__()
        self.settings, self.mixed = settings, mixed
        self.floats = TARGETS[settings.target].floats_at(settings.rows)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Store every dense weight of the main graph anew."""
        if self.settings.precision == "fp32":
            return ir.passes.PassResult(model, modified=False)
        modified = [self._store(model, node) for node in list(model.graph)]
        if any(modified):
            expand_dense(model)
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=any(modified))

    def _store(self, model: ir.Model, node: ir.Node) -> bool:
        kind = _kind(node)
        if kind is None:
            return False
        x, weight = reversed(node.inputs) if kind == "embedding" else node.inputs
        dense = _dense_weight(weight)
        if weight is None or dense is None:
            return False
        storage = self._storage(kind, dense)
        form = DENSE_FORMS[kind, storage.precision.name]
        pack = storage.pack_product if kind == "linear" else storage.pack_whole
        with storing(str(weight.name)):
            packed = pack(dense)
        stored = [
            constant(model, f"{weight.name}.{name}", array) for name, array in zip(form.inputs, packed, strict=True)
        ]
        shape = dense.shape[::-1] if kind == "head" else dense.shape
        sizes = storage.sizes({form.inputs[0]: shape}, self.floats, table=kind == "head") if form.attributes else {}
        add_functions(model, form.functions(model.opset_imports[""]))
        call(model, node, form, [x, *stored], sizes, node.name)
        return True

    def _storage(self, kind: str, dense: NDArray[np.float32]) -> Storage:
        """How a weight is stored: a matrix (in, out), or a table, which is one by its transpose."""
        matrix = dense if kind == "linear" else dense.T
        precision = self.mixed.precision_of_matrix(matrix, self.settings.precision)
        offsets = kind == "linear" and precision == "int4" and has_offsets(matrix.T, OFFSETS.precision.block)
        return OFFSETS if offsets else STORAGES[precision]


def _kind(node: ir.Node) -> str | None:
    """What a node does with its weight; None where it is neither a product nor a lookup of rows."""
    if node.domain == "" and node.op_type == "MatMul":
        return "linear"
    if node.domain == "" and node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
        return "embedding"
    if (node.domain, node.op_type) == ("com.microsoft", "FusedMatMul"):
        options = {"alpha": 1.0, **{name: attribute.value for name, attribute in node.attributes.items()}}
        return "head" if {name: value for name, value in options.items() if value} == _TURNED else None
    return None


def _dense_weight(value: ir.Value | None) -> np.ndarray | None:
    """The float32 matrix behind a constant, or None where there is none worth quantizing."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or tensor.size < SMALLEST_WEIGHT:
        return None
    return np.asarray(tensor.numpy())
