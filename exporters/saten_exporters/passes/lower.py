"""Placeholder nodes of compressed layers → the form that was chosen for each, with its weights and its function."""

from __future__ import annotations

import dataclasses
from collections import Counter

import onnx_ir as ir

from saten_exporters.choice.cost import Candidate, choose
from saten_exporters.choice.lowerings import lowerings_of
from saten_exporters.choice.prices import Prices
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.choice.targets import TARGETS
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import Form, followed_by, head_of
from saten_exporters.passes.calls import add_functions, call, expand_dense
from saten_exporters.passes.epilogues import epilogue_of
from saten_exporters.passes.initializers import new_initializer
from saten_exporters.tracing.mixed import ALIKE, Mixed
from saten_runtime.bundle.manifest import Layer, Rejected
from saten_runtime.errors import ExportError
from saten_runtime.vocabulary.operators import DOMAIN, HEAD, LAYER, LAYERS

__all__ = ["LowerPass"]


class LowerPass(ir.passes.InPlacePass):
    """Replaces each `saten::Linear` and `saten::Embedding` placeholder by the form of its layer.

    A `saten::Head` carries the name of the table it shares, and reads the weights that the table's form stored.
    Leaves a graph without placeholders as it is. `layers` holds one manifest row per layer afterwards; `otherwise`, of
    layers that the prices of a device write in another way than those that ship would, the latter, by layer.

    Raises:
        UsageError: the lowering that was asked for is unknown, or names no layer.
        ExportError: a placeholder names a layer that `parts` does not have, a layer has no node, or
            the lowering asked for cannot write it.
    """

    def __init__(
        self,
        parts: dict[str, LayerParts],
        settings: ExportSettings,
        mixed: Mixed = ALIKE,
        prices: Prices | None = None,
    ) -> None:
        super().__init__()
        self.parts, self.settings, self.mixed, self.prices = parts, settings, mixed, prices
        self.floats = TARGETS[settings.target].floats_at(settings.rows)
        self.layers: list[Layer] = []
        self.otherwise: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lower every placeholder, in the order of the graph."""
        found = [node for node in model.graph if node.domain == DOMAIN and node.op_type in LAYERS]
        names = {node.attributes.get_string(LAYER, "") for node in found}
        if names != set(self.parts):
            odd = sorted(names ^ set(self.parts))
            raise ExportError(f"compressed layers and graph nodes differ in {', '.join(odd[:3])}; is a layer unused?")
        asked = lowerings_of(self.settings.lowering, self.parts)
        headed = {node.attributes.get_string(LAYER, "") for node in found if node.op_type == HEAD}
        lowered: dict[str, tuple[Candidate, list[ir.Value]]] = {}
        calls: Counter[str] = Counter()
        for node in found:
            parts = self.parts[node.attributes.get_string(LAYER, "")]
            if parts.name not in lowered:
                lowered[parts.name] = self._add(model, parts, asked.get(parts.name), with_head=parts.name in headed)
            chosen, weights = lowered[parts.name]
            form = head_of(chosen.form) if node.op_type == HEAD else chosen.form
            calls[parts.name] += 1  # a shared layer is called from several places; node names must differ
            name = parts.name if calls[parts.name] == 1 else f"{parts.name}#{calls[parts.name]}"
            whole = self._call(model, node, form, parts, weights, name)
            if calls[parts.name] == 1:
                self.layers[-1] = dataclasses.replace(self.layers[-1], form=whole.op_type)
        expand_dense(model)
        return ir.passes.PassResult(model, modified=bool(found))

    def _call(
        self, model: ir.Model, node: ir.Node, form: Form, parts: LayerParts, weights: list[ir.Value], name: str
    ) -> Form:
        """Put a call of the form in the place of a placeholder, and of what follows it where a kernel does both.

        Returns the form of both.
        """
        after = epilogue_of(model, node, split=TARGETS[self.settings.target].kernels) if _takes_epilogue(form) else None
        inputs = [node.inputs[0], *weights, *([after.bias] if after else [])]
        whole = followed_by(form, after.name) if after else form
        add_functions(model, whole.functions(model.opset_imports[""]))
        call(model, after.node if after else node, whole, inputs, form.sizes(parts, self.floats), name)
        if after:
            model.graph.remove(node, safe=True)
        return whole

    def _add(
        self, model: ir.Model, parts: LayerParts, asked: str | None, *, with_head: bool
    ) -> tuple[Candidate, list[ir.Value]]:
        """Choose a layer's form, put its weights into the model, and note it."""
        precision = self.mixed.precision_of(parts.name, self.settings.precision)
        settings = dataclasses.replace(self.settings, precision=precision)
        chosen, others = choose(parts, settings, asked, with_head=with_head, prices=self.prices)
        if self.prices is not None:
            shipped, _ = choose(parts, settings, asked, with_head=with_head)
            if shipped.lowering != chosen.lowering:
                self.otherwise[parts.name] = shipped.lowering
        weights = chosen.weights
        row = _row(chosen, others, parts)
        if with_head:
            row = dataclasses.replace(row, macs_per_row=row.macs_per_row + head_of(chosen.form).macs(parts))
        self.layers.append(row)
        return chosen, [new_initializer(model, f"{parts.name}.{name}", weights[name]) for name in chosen.form.inputs]


def _takes_epilogue(form: Form) -> bool:
    """Whether a form has a kernel that may go on with what follows."""
    return form.kind == "linear" and form.native is not None


def _row(chosen: Candidate, others: list[Candidate], parts: LayerParts) -> Layer:
    rows_by_columns = (parts.shape[1], parts.shape[0]) if parts.kind == "linear" else parts.shape
    return Layer(
        name=parts.name,
        kind=parts.kind,
        form=chosen.form.op_type,
        shape=list(rows_by_columns),
        ranks=parts.ranks,
        nnz=int(parts.values.size),
        bytes=chosen.bytes,
        dense_fp32_bytes=parts.shape[0] * parts.shape[1] * 4,
        macs_per_row=chosen.form.macs(parts),
        lowering=chosen.lowering,
        predicted_us=round(chosen.predicted_us, 2),
        rejected=[Rejected(each.lowering, each.form.op_type, round(each.predicted_us, 2)) for each in others],
    )
