"""torch → ONNX: trace, lower, quantize, write, verify."""

from __future__ import annotations

from saten_exporters.bundles.export import PRECISIONS, export
from saten_exporters.bundles.verify import rounding_bound
from saten_exporters.choice.targets import DEFAULT_TARGET, TARGETS
from saten_exporters.exportable import Exportable, LayerParts

__all__ = [
    "DEFAULT_TARGET",
    "PRECISIONS",
    "TARGETS",
    "Exportable",
    "LayerParts",
    "export",
    "rounding_bound",
]
