"""The lowerings that were asked for, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from saten_exporters.exportable import LayerParts
from saten_exporters.forms import LOWERINGS
from saten_runtime.errors import UsageError
from saten_runtime.records.files import read_json

__all__ = ["lowerings_of", "rules_of"]


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


def rules_of(lowering: str | None) -> str | dict[str, str] | None:
    """What was asked for, a file of patterns as its content: pattern of layer names → lowering.

    Raises:
        UsageError: there is no such lowering or file.
    """
    return lowering if lowering is None or lowering in LOWERINGS else _rules(lowering)


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
