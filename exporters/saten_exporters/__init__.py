"""torch → ONNX: trace, lower, quantize, write, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saten_runtime.lazy import lazily

if TYPE_CHECKING:
    from saten_exporters.bundles.export import PRECISIONS, export
    from saten_exporters.bundles.verify import rounding_bound
    from saten_exporters.choice.settings import DEFAULT_TARGET
    from saten_exporters.choice.targets import TARGETS
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

_MODULES = {
    **dict.fromkeys(("PRECISIONS", "export"), ".bundles.export"),
    "rounding_bound": ".bundles.verify",
    "DEFAULT_TARGET": ".choice.settings",
    "TARGETS": ".choice.targets",
    **dict.fromkeys(("Exportable", "LayerParts"), ".exportable"),
}

# When they are asked for: the settings of an export are read where no torch is wanted.
__getattr__ = lazily(__name__, _MODULES)
