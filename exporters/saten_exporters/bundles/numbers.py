"""Numbers that leave their format: weights that a precision cannot hold, settings that JSON cannot.

Weights are looked at before anything is traced: there they still have the model's names.
"""

from __future__ import annotations

from pathlib import Path

from saten_exporters.exportable import Exportable
from saten_exporters.quantize import PRECISIONS, SMALLEST_WEIGHT, check_storable, storing
from saten_runtime.errors import ExportError
from saten_runtime.records.files import parse_json

__all__ = ["refuse_loose_json", "refuse_unstorable"]


def refuse_unstorable(source: Exportable, precision: str) -> None:
    """Look at every weight, also at what no sample reads.

    Dense matrices and tables must fit the precision, everything else float32; what compressed layers store is
    looked at where it is packed, as a form may store products of their numbers.

    Raises:
        ExportError: naming the weight, its value, and the limit.
    """
    packed = tuple(f"{name}." for name in source.layer_parts())
    for name, parameter in source.model.named_parameters():
        is_matrix = parameter.ndim == 2 and parameter.numel() >= SMALLEST_WEIGHT and not name.startswith(packed)
        with storing(f"{source.source['model']}: {name}"):
            check_storable(parameter.detach().numpy(), PRECISIONS[precision if is_matrix else "fp32"])


def refuse_loose_json(folder: Path) -> None:
    """Look at every .json file of a bundle: Python writes NaN and -Infinity, which browsers and other programs refuse.

    Raises:
        ExportError: naming the file.
    """
    for path in sorted(folder.rglob("*.json")):
        try:
            parse_json(path.read_bytes())
        except ValueError as cause:
            name = path.relative_to(folder)
            raise ExportError(
                f"{name}: is not JSON ({cause}); change that setting of the model, then export it"
            ) from None
