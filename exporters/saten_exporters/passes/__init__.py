"""Graph passes, one per file, and the order they run in."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from saten_exporters.parts import LayerParts
from saten_exporters.passes.expand_rms_norm import ExpandRmsNormPass
from saten_exporters.passes.lower import LowerPass
from saten_exporters.passes.quantize_dense import QuantizeDensePass
from saten_exporters.passes.split_skip_norm import SplitSkipNormPass
from saten_exporters.passes.tidy import TidyPass
from saten_runtime.manifest import Layer

__all__ = ["ExpandRmsNormPass", "LowerPass", "QuantizeDensePass", "SplitSkipNormPass", "TidyPass", "run_passes"]

# precision → passes over what stayed dense
DENSE_PASSES: dict[str, tuple[type[ir.passes.InPlacePass], ...]] = {"fp32": (), "int8": (QuantizeDensePass,)}


def run_passes(model: ir.Model, parts: dict[str, LayerParts], precision: str) -> list[Layer]:
    """Lower, quantize and tidy a traced graph in place; returns one manifest row per compressed layer."""
    lower = LowerPass(parts, precision)
    ordered = (
        TidyPass(),
        SplitSkipNormPass(),
        ExpandRmsNormPass(),
        lower,
        *(make() for make in DENSE_PASSES[precision]),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
    )
    for step in ordered:
        step(model)
    return lower.layers
