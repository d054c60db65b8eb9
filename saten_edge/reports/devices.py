"""Several measurements as one: every bundle appears once per device, as "bundle @ device".

A device that was measured again is another: "pi5", then "pi5#2", then "pi5#3".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saten_runtime.accuracy.results import read_evaluation
from saten_runtime.bench.results import read_bench
from saten_runtime.errors import DataError

__all__ = ["beside", "bundle_of", "join_benches", "join_evaluations"]

Json = Mapping[str, Any]
_AT = " @ "
_HERE = "this machine"


def bundle_of(name: str) -> str:
    """The bundle of a row's name."""
    return name.partition(_AT)[0]


def join_benches(values: Sequence[Json]) -> Json | None:
    """The content of several bench.json as one; of a single one, as it is; of none, None.

    Raises:
        DataError: one that is no bench.json.
    """
    if len(values) < 2:
        return values[0] if values else None
    devices = _devices(values)
    verdicts = {device: read_bench(value).verdict for device, value in devices.items()}
    return {
        "schema_version": values[0]["schema_version"],
        "environment": {device: value["environment"] for device, value in devices.items()},
        "verdict": {
            "valid": all(verdict.valid for verdict in verdicts.values()),
            "reasons": [f"{device}: {reason}" for device, verdict in verdicts.items() for reason in verdict.reasons],
        },
        "cells": [_cell(cell, device) for device, value in devices.items() for cell in value["cells"]],
        "loads": [_on(load, device) for device, value in devices.items() for load in value["loads"]],
    }


def beside(first: Json, second: Json, label: str) -> dict[str, Any]:
    """The content of a bench.json, and what a second one of the same machine says of all bundles but its baseline.

    label: what tells these rows, "bundle @ label", from those of the first. Their ratios stay those to their own
    baseline, which the first has measured, too.

    Raises:
        DataError: one that is no bench.json.
    """
    verdicts = {name: read_bench(value).verdict for name, value in (("", first), (f"{label}: ", second))}
    others = [cell for cell in second["cells"] if cell.get("ratio")]
    measured = {cell["bundle"] for cell in others}
    return {
        **first,
        "verdict": {
            "valid": all(verdict.valid for verdict in verdicts.values()),
            "reasons": [f"{name}{reason}" for name, verdict in verdicts.items() for reason in verdict.reasons],
        },
        "cells": [*first["cells"], *(_on(cell, label) for cell in others)],
        "loads": [*first["loads"], *(_on(load, label) for load in second["loads"] if load["bundle"] in measured)],
    }


def join_evaluations(values: Sequence[Json]) -> Json | None:
    """The content of several eval.json as one; of a single one, as it is; of none, None.

    Raises:
        DataError: one that is no eval.json, or measurements on different data.
    """
    if len(values) < 2:
        return values[0] if values else None
    measured = {(read_evaluation(value).task, read_evaluation(value).data.sha256) for value in values}
    if len(measured) > 1:
        raise DataError("eval.json: the devices were given different data, so they cannot be compared")
    rows = [_on(row, device) for device, value in _devices(values).items() for row in value["rows"]]
    return {**values[0], "rows": rows}


def _devices(values: Sequence[Json]) -> dict[str, Json]:
    """The measurements by the name of their device."""
    found: dict[str, Json] = {}
    for index, value in enumerate(values):
        name = _device(value)
        same = sum(_device(other) == name for other in values[:index])
        found[f"{name}#{same + 1}" if same else name] = value
    return found


def _device(value: Json) -> str:
    device = value.get("device")
    return str(device.get("label", _HERE)) if isinstance(device, dict) else _HERE


def _on(entry: Json, device: str) -> Json:
    return {**entry, "bundle": f"{entry['bundle']}{_AT}{device}"}


def _cell(cell: Json, device: str) -> Json:
    ratio = cell.get("ratio")
    there = None if ratio is None else {**ratio, "to": f"{ratio['to']}{_AT}{device}"}
    return {**_on(cell, device), "ratio": there}
