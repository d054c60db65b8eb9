"""Placeholder nodes of compressed layers → one `saten` node each, with its weights and its function."""

from __future__ import annotations

import dataclasses
from collections import Counter

import onnx_ir as ir

from saten_exporters.forms import DOMAIN, DOMAIN_VERSION, Form, form_of
from saten_exporters.forms.head import head_of
from saten_exporters.parts import LayerParts
from saten_exporters.passes.initializers import new_initializer
from saten_runtime.errors import ExportError
from saten_runtime.manifest import Layer

__all__ = ["PLACEHOLDERS", "LowerPass"]

PLACEHOLDERS = ("Linear", "Embedding", "Head")


class LowerPass(ir.passes.InPlacePass):
    """Replaces each `saten::Linear` and `saten::Embedding` placeholder by the form of its layer.

    A `saten::Head` carries the name of the table it shares, and reads the weights that the table's form stored.
    Leaves a graph without placeholders as it is. `layers` holds one manifest row per layer afterwards.

    Raises:
        ExportError: a placeholder names a layer that `parts` does not have, or a layer has no node.
    """

    def __init__(self, parts: dict[str, LayerParts], precision: str) -> None:
        super().__init__()
        self.parts, self.precision = parts, precision
        self.layers: list[Layer] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lower every placeholder, in the order of the graph."""
        found = [node for node in model.graph if node.domain == DOMAIN and node.op_type in PLACEHOLDERS]
        names = {node.attributes.get_string("layer", "") for node in found}
        if names != set(self.parts):
            odd = sorted(names ^ set(self.parts))
            raise ExportError(f"compressed layers and graph nodes differ in {', '.join(odd[:3])}; is a layer unused?")
        forms: dict[str, Form] = {}
        packed: dict[str, dict[str, ir.Value]] = {}
        calls: Counter[str] = Counter()
        for node in found:
            parts = self.parts[node.attributes.get_string("layer", "")]
            if parts.name not in packed:
                forms[parts.name] = form_of(parts, self.precision)
                packed[parts.name] = self._add_weights(model, forms[parts.name], parts)
            form = forms[parts.name]
            if node.op_type == "Head":
                form = self._add_head(model, form, parts)
            calls[parts.name] += 1  # a shared layer is called from several places; node names must differ
            name = parts.name if calls[parts.name] == 1 else f"{parts.name}#{calls[parts.name]}"
            _replace(model, node, form, packed[parts.name], name)
        return ir.passes.PassResult(model, modified=bool(found))

    def _add_weights(self, model: ir.Model, form: Form, parts: LayerParts) -> dict[str, ir.Value]:
        weights = form.pack(parts)
        self.layers.append(_row(form, parts, sum(array.nbytes for array in weights.values())))
        _add_functions(model, form)
        return {name: new_initializer(model, f"{parts.name}.{name}", array) for name, array in weights.items()}

    def _add_head(self, model: ir.Model, table: Form, parts: LayerParts) -> Form:
        """The head's form, its functions added; the table's row counts what the head multiplies, too."""
        form = head_of(table)
        _add_functions(model, form)
        index = next(index for index, row in enumerate(self.layers) if row.name == parts.name)
        row = self.layers[index]
        self.layers[index] = dataclasses.replace(row, macs_per_row=row.macs_per_row + form.macs(parts))
        return form


def _add_functions(model: ir.Model, form: Form) -> None:
    for function in form.functions(model.opset_imports[""]):
        model.functions[function.identifier()] = function
        model.opset_imports.update({k: v for k, v in function.opset_imports.items() if k})
    model.opset_imports[DOMAIN] = DOMAIN_VERSION


def _row(form: Form, parts: LayerParts, size_bytes: int) -> Layer:
    rows_by_columns = (parts.shape[1], parts.shape[0]) if parts.kind == "linear" else parts.shape
    return Layer(
        name=parts.name,
        kind=parts.kind,
        form=form.op_type,
        shape=list(rows_by_columns),
        ranks=parts.ranks,
        nnz=int(parts.values.size),
        bytes=size_bytes,
        dense_fp32_bytes=parts.shape[0] * parts.shape[1] * 4,
        macs_per_row=form.macs(parts),
    )


def _replace(model: ir.Model, node: ir.Node, form: Form, weights: dict[str, ir.Value], name: str) -> None:
    old = node.outputs[0]
    inputs = [node.inputs[0], *(weights[each] for each in form.inputs)]
    lowered = ir.Node(DOMAIN, form.op_type, inputs, name=name)
    new = lowered.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [lowered], [old], [new])
