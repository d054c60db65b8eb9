"""torch → ONNX: trace, lower, quantize, write, verify."""

from __future__ import annotations

from saten_exporters.bundle import PRECISIONS, export
from saten_exporters.parts import Exportable, LayerParts
from saten_exporters.targets import TARGETS
from saten_exporters.tasks import TASKS
from saten_exporters.verify import rounding_bound

__all__ = ["PRECISIONS", "TARGETS", "TASKS", "Exportable", "LayerParts", "export", "rounding_bound"]
