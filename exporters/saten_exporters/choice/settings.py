"""What the person exporting chose, in one value that is handed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from saten_exporters.choice.targets import DEFAULT_TARGET
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import LOWERINGS
from saten_runtime.bundle.recipe import Option, options_of
from saten_runtime.errors import UsageError
from saten_runtime.records.files import read_json

__all__ = ["ExportSettings", "lowerings_of"]


@dataclass(frozen=True)
class ExportSettings:
    """precision: of `PRECISIONS`. target: of `TARGETS`. rows: of x that a layer is expected to get at once.

    lowering: of `LOWERINGS`, for every layer that it can write; or a JSON file, pattern of layer names → lowering, of
    which the first that fits counts. All other layers are left to the cost model; None leaves it all of them.
    """

    precision: str = "fp32"
    target: str = DEFAULT_TARGET
    rows: int = 128
    lowering: str | Path | None = None

    def recorded(self) -> dict[str, Option]:
        """As the recipe has them: of a file of patterns its content, for its path says nothing elsewhere.

        Raises:
            UsageError: as `lowerings_of`.
        """
        named = self.lowering is None or str(self.lowering) in LOWERINGS
        return options_of(self, lowering=self.lowering if named else _rules(str(self.lowering)))

    def __post_init__(self) -> None:
        """Refuse what no layer could be written for.

        Raises:
            UsageError: fewer rows than one.
        """
        if self.rows < 1:
            raise UsageError(
                f"--rows {self.rows}: a layer gets at least 1 row at once; 1 is decoding, 128 a short text"
            )


def lowerings_of(lowering: str | Path | None, layers: Mapping[str, LayerParts]) -> dict[str, str]:
    """Name of the lowering that was asked for, by layer; layers that are left to the cost model are missing.

    Raises:
        UsageError: there is no such lowering or file, a pattern fits no layer, or a name none that it can write.
    """
    if lowering is None:
        return {}
    if str(lowering) in LOWERINGS:
        return _wherever_it_applies(str(lowering), layers)
    rules = _rules(lowering)
    for pattern, name in rules.items():
        if name not in LOWERINGS:
            raise UsageError(f"--lowering {lowering}: {pattern!r} asks for {name!r}; there are {', '.join(LOWERINGS)}")
        if not any(fnmatchcase(layer, pattern) for layer in layers) and layers:
            first = next(iter(layers))
            raise UsageError(f"--lowering {lowering}: {pattern!r} fits no layer; the first is called {first}")
    wanted = {layer: next((rules[p] for p in rules if fnmatchcase(layer, p)), None) for layer in layers}
    return {layer: name for layer, name in wanted.items() if name is not None}


def _rules(lowering: str | Path) -> dict[str, str]:
    if not Path(lowering).is_file():
        raise UsageError(f"--lowering {lowering}: there are {', '.join(LOWERINGS)}, or a JSON file of patterns")
    return {pattern: str(name) for pattern, name in read_json(Path(lowering), UsageError).items()}


def _wherever_it_applies(name: str, layers: Mapping[str, LayerParts]) -> dict[str, str]:
    refusals = {layer: LOWERINGS[name].refusal(parts) for layer, parts in layers.items()}
    if refusals and all(refusals.values()):
        layer, reason = next(iter(refusals.items()))
        raise UsageError(f"--lowering {name}: applies to no layer; to {layer} not, for {reason}")
    return {layer: name for layer, refusal in refusals.items() if not refusal}
