"""Graph passes, one per file, and the order they run in."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from saten_exporters.choice.prices import Prices
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.choice.targets import TARGETS
from saten_exporters.exportable import LayerParts
from saten_exporters.passes.cancel_layouts import CancelLayoutsPass
from saten_exporters.passes.expand_attention import ExpandAttentionPass
from saten_exporters.passes.expand_rms_norm import ExpandRmsNormPass
from saten_exporters.passes.fuse_attention import FuseAttentionPass
from saten_exporters.passes.keep_axes import KeepAxesPass
from saten_exporters.passes.last_logits import LastLogitsPass
from saten_exporters.passes.lower import LowerPass
from saten_exporters.passes.merge_weights import MergeWeightsPass
from saten_exporters.passes.native_attention import NativeAttentionPass
from saten_exporters.passes.quantize_dense import QuantizeDensePass
from saten_exporters.passes.split_gemm import SplitGemmPass
from saten_exporters.passes.split_skip_norm import SplitSkipNormPass
from saten_exporters.passes.tidy import TidyPass
from saten_exporters.passes.used_opsets import UsedOpsetsPass
from saten_exporters.quantize import STORED
from saten_exporters.tracing.mixed import ALIKE, Mixed
from saten_runtime.bundle.manifest import Layer

__all__ = [
    "CancelLayoutsPass",
    "ExpandAttentionPass",
    "ExpandRmsNormPass",
    "FuseAttentionPass",
    "KeepAxesPass",
    "LastLogitsPass",
    "LowerPass",
    "MergeWeightsPass",
    "NativeAttentionPass",
    "QuantizeDensePass",
    "SplitGemmPass",
    "SplitSkipNormPass",
    "TidyPass",
    "UsedOpsetsPass",
    "run_passes",
]


def run_passes(
    model: ir.Model,
    parts: dict[str, LayerParts],
    settings: ExportSettings,
    mixed: Mixed = ALIKE,
    prices: Prices | None = None,
) -> tuple[list[Layer], dict[str, str]]:
    """Lower, quantize and tidy a traced graph in place.

    Returns one manifest row per compressed layer, and `LowerPass.otherwise`. mixed: layers stored at another precision
    than the settings say. prices: of a device; by default those that ship for the target.
    """
    narrow = STORED[settings.precision].bits <= 8
    lower = LowerPass(parts, settings, mixed, prices)
    ordered = (
        TidyPass(),
        FuseAttentionPass(),
        *((NativeAttentionPass(narrow=narrow),) if TARGETS[settings.target].kernels else ()),
        ExpandAttentionPass(),
        SplitSkipNormPass(),
        ExpandRmsNormPass(),
        SplitGemmPass(),
        KeepAxesPass(),
        CancelLayoutsPass(),
        LastLogitsPass(),
        lower,
        QuantizeDensePass(settings, mixed),
        MergeWeightsPass(),
        common.RemoveUnusedNodesPass(),
        UsedOpsetsPass(),
    )
    for step in ordered:
        step(model)
    return lower.layers, lower.otherwise
