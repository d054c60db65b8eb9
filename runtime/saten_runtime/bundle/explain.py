"""What a bundle's manifest says of each layer and of the stages that made the model."""

from __future__ import annotations

import dataclasses
from typing import Any

from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.layers import layers_of
from saten_runtime.bundle.recipe import OTHERWISE, UNRECORDED, Recipe, recipe_lines
from saten_runtime.errors import BundleError
from saten_runtime.records.plain_text import align

__all__ = ["explain", "explain_table"]

_HEAD = ("layer", "lowering", "form", "shape", "ranks", "nnz", "bytes", "MACs/row", "predicted µs", "rejected, µs")


def explain(bundle: Bundle) -> dict[str, Any]:
    """Plain JSON data: the target, rows and prices that forms were chosen for, the layers, and the recipe.

    by_shipped_prices: where those of a device chose, how the ones that ship would write the layers that differ.

    The layers of a dense model are its weight matrices, of which nothing was predicted.

    Raises:
        BundleError: the manifest lists no layers and the graph cannot be read.
    """
    manifest = bundle.manifest
    stages = manifest.recipe.stages if manifest.recipe else ()
    export = next((stage for stage in reversed(stages) if stage.stage == "export"), UNRECORDED)
    return {
        "bundle": bundle.name,
        "precision": manifest.precision,
        "target": manifest.target,
        "rows": manifest.rows,
        "prices": export.inputs.get("prices"),
        "by_shipped_prices": export.outcome.get(OTHERWISE),
        "layers": [dataclasses.asdict(layer) for layer in layers_of(bundle)],
        "recipe": None if manifest.recipe is None else manifest.recipe.to_json(),
    }


def explain_table(found: dict[str, Any]) -> str:
    """`found`, as `explain` gives it, as aligned text."""
    layers = found["layers"]
    rows = "an unknown number of rows" if found["rows"] is None else f"{found['rows']} rows"
    known = [layer["predicted_us"] for layer in layers if layer["predicted_us"] is not None]
    totals = ("all", "", "", "", "", *(f"{sum(layer[key] for layer in layers):,}" for key in _SUMMED))
    table = align([_HEAD, *map(_row, layers), (*totals, f"{sum(known):.1f}" if known else "", "")])
    head = f"{found['bundle']}: {found['precision']}, chosen for {found['target']} and {rows} per layer"
    recipe = None if found["recipe"] is None else Recipe.from_json(found["recipe"], "recipe", BundleError)
    return "\n".join((head, *_prices_lines(found), table, *recipe_lines(recipe)))


def _prices_lines(found: dict[str, Any]) -> list[str]:
    """Whose prices chose, and what those that ship would have chosen; nothing where they did."""
    if not isinstance(differing := found["by_shipped_prices"], dict):
        return []
    device = (found["prices"] or {}).get("device", "a device that is not recorded")
    layers = ", ".join(f"{layer} as {lowering}" for layer, lowering in differing.items()) or "the same"
    return [f"prices of {device}; by those of x86-64: {layers}"]


_SUMMED = ("nnz", "bytes", "macs_per_row")


def _row(layer: dict[str, Any]) -> tuple[str, ...]:
    predicted = layer["predicted_us"]
    rejected = (f"{other['lowering']} {other['predicted_us']:.1f}" for other in layer["rejected"])
    return (
        layer["name"],
        layer["lowering"],
        layer["form"],
        " × ".join(map(str, layer["shape"])),
        "·".join(map(str, layer["ranks"])),
        *(f"{layer[key]:,}" for key in _SUMMED),
        "" if predicted is None else f"{predicted:.1f}",
        ", ".join(rejected),
    )
