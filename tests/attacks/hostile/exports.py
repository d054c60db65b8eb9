"""What an exporter is asked for that it must refuse (E)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hostile.case import MEBIBYTE, Case, Place, saten_edge
from hostile.folders import (
    Make,
    config,
    entries,
    export,
)

__all__ = ["CASES"]


def option(source: str = "bert", **values: Any) -> Make:
    return config(entries(**values), source)


def export_with(*arguments: object) -> Callable[[Place], int]:
    return lambda place: saten_edge("export", place.sound["bert"], "-o", place.out, "--quiet", *arguments)


def nothing(place: Place) -> None:
    """The input is in the arguments."""


def _corrupt_export(place: Place) -> int:
    """An exporter that writes another number than torch has."""
    from saten_exporters.bundles import export as bundle

    real = bundle._save_graph

    def wrong(exported: Any, *rest: Any) -> None:
        weights = [value for value in exported.graph.initializers.values() if value.const_value.size > 4000]
        array = weights[0].const_value.numpy().copy()
        array.flat[::7] += 0.5
        import onnx_ir as ir

        weights[0].const_value = ir.tensor(array, name=weights[0].name)
        real(exported, *rest)

    bundle._save_graph = wrong
    return saten_edge("export", place.sound["bert"], "-o", place.out, "--quiet")


CASES = [
    Case(
        "E1", "an unknown family", option(model_type="unheard-of"), export, "ExportError", "'unheard-of' is not known"
    ),
    Case(
        "E1",
        "an option that cannot be expressed",
        option(position_embedding_type="relative_key"),
        export,
        "ExportError",
        "position_embedding_type = 'relative_key' cannot be expressed",
    ),
    Case("E1", "a decoder made of an encoder", option(is_decoder=True), export, "ExportError", "is_decoder = True"),
    Case("E2", "an unknown target", nothing, export_with("--target", "toaster"), "UsageError", "--target toaster"),
    Case("E2", "an unknown precision", nothing, export_with("--precision", "int3"), "UsageError", "--precision int3"),
    Case(
        "E4",
        "an output that exists",
        lambda place: place.out.mkdir(),
        export_with(),
        "UsageError",
        "out: already exists",
    ),
    Case(
        "E4",
        "an output that is a link",
        lambda place: place.out.symlink_to("/tmp"),
        export_with(),
        "UsageError",
        "out: already exists",
    ),
    Case(
        "E4",
        "an output below a file",
        lambda place: (place.folder / "file").write_text(""),
        lambda place: saten_edge("export", place.sound["bert"], "-o", place.folder / "file" / "x", "--quiet"),
        "UsageError",
        "file is a file, not a folder; choose another output path",
        most_bytes=512 * MEBIBYTE,
    ),
    Case(
        "E7",
        "a graph that computes another thing",
        nothing,
        _corrupt_export,
        "ParityError",
        "single|short|padded|ragged|differ",
        code=3,
        most_bytes=512 * MEBIBYTE,
    ),
]
