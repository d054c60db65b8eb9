"""torch → ONNX: trace, lower, quantize, write, verify."""

from __future__ import annotations

from saten_exporters.bundle import PRECISIONS, export, rounding_bound
from saten_exporters.parts import Exportable, LayerParts
from saten_exporters.targets import DEFAULT_TARGET, TARGETS

__all__ = ["DEFAULT_TARGET", "PRECISIONS", "TARGETS", "Exportable", "LayerParts", "export", "rounding_bound"]
