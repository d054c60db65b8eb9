"""`saten-edge export`."""

from __future__ import annotations

from typing import Annotated

import typer

import saten_edge
from saten_edge.cli.options import Output, Overwrite, Recipe
from saten_edge.cli.printing import followed, show, talk
from saten_edge.options import ExportOptions
from saten_runtime.bundle.manifest import Judgement
from saten_runtime.options import Printing
from saten_runtime.records.folders import check_output
from saten_runtime.records.plain_text import printable


def export(
    model: Annotated[str, typer.Argument(help="Dense model or Saten checkpoint: folder, GGUF file or hub name")],
    output: Output,
    options: ExportOptions,
    printing: Printing,
    layout: Annotated[str, typer.Option(help="Layout of the folder: bundle or transformersjs")] = "bundle",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO", help="Upload the result to owner/name on the Hugging Face hub")
    ] = None,
    recipe: Recipe = None,
    overwrite: Overwrite = False,
) -> None:
    """Export to a bundle and verify it against torch."""
    from saten_exporters.bundles.hub import check_repository, push
    from saten_exporters.bundles.layouts import laid_out

    if push_to_hub is not None:
        check_repository(push_to_hub)
    check_output(output, overwrite=overwrite, inputs=[model, options.dense, options.lowering, options.prices])
    with (
        followed(recipe, "export", options, output) as how,
        laid_out(output, layout, overwrite=overwrite) as folder,
        talk(printing) as said,
    ):
        bundle = saten_edge.export(model, folder, how, overwrite=overwrite, progress=said.progress)
    for notice in bundle.manifest.notices:
        typer.echo(f"saten-edge: {printable(notice)}", err=True)
    result: dict[str, object] = {
        "output": str(output),
        "model_bytes": bundle.model_bytes,
        "size_bytes": bundle.size_bytes,
    }
    if (found := bundle.manifest.judgement) is not None:
        result["judgement"] = vars(found)
    if push_to_hub is not None:
        result["url"] = push(output, push_to_hub)
    show(result, _summary, printing)


def _summary(result: dict[str, object]) -> str:
    sizes = f"{result['model_bytes']:,} bytes of graph and weights, {result['size_bytes']:,} in all"
    lines = [f"{result['output']}: {sizes}"]
    if isinstance(found := result.get("judgement"), dict):
        lines.append(f"against fp32: {Judgement(**found).text()}")
    return "\n".join([*lines, *([str(result["url"])] if "url" in result else [])])
