"""`saten-edge optimize`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saten_edge.cli.options import Overwrite
from saten_edge.cli.printing import show, talk
from saten_edge.options import OptimizeOptions
from saten_runtime.errors import GoalMissed, InvalidRun, UsageError
from saten_runtime.options import Printing
from saten_runtime.records.plain_text import align

if TYPE_CHECKING:
    from saten_edge.optimize import Found


def optimize(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, or to go on in with --resume")],
    options: OptimizeOptions,
    printing: Printing,
    model: Annotated[str | None, typer.Argument(help="Dense model: folder, or a name on the Hugging Face hub")] = None,
    data: Annotated[Path | None, typer.Option(help="JSON Lines or CSV file to train and calibrate on")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="JSON Lines or CSV file that decides, in the form that eval takes")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="recipe.yaml of a search, whose bundle is made again")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, its time and the disk it needs")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in the output folder")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Find the best bundle of a model within a goal of accuracy, size and time."""
    from saten_edge import optimize as search

    if recipe is not None:
        unread = {"--judge": judge, "--dry-run": dry_run, "--resume": resume}
        _replay(recipe, output, model, data, options, overwrite, printing, unread)
        return
    missing = [name for name, given in (("MODEL", model), ("--data", data), ("--judge", judge)) if given is None]
    if model is None or data is None or judge is None:
        raise UsageError(f"{' and '.join(missing)} missing; only --recipe does without")
    if dry_run:
        show(search.plan(model, data, judge, options).to_json(), _plan_text, printing)
        return
    with talk(printing) as said:
        try:
            found = search.optimize(
                model, output, data, judge, options, resume=resume, overwrite=overwrite, progress=said.progress
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; --resume goes on with what is in {output}") from None
    show(found.to_json(), lambda _: _text(found), printing)
    if found.best is None:
        raise GoalMissed(found.answer)
    if found.invalid:
        raise InvalidRun("; ".join(found.invalid))


def _replay(
    recipe: Path,
    output: Path,
    model: str | None,
    data: Path | None,
    options: OptimizeOptions,
    overwrite: bool,
    printing: Printing,
    unread: Mapping[str, object],
) -> None:
    from saten_edge.optimize import replay
    from saten_edge.recipes import merged, read_recipe

    file = read_recipe(recipe)
    if given := [name for name, value in unread.items() if value]:
        raise UsageError(f"--recipe {recipe}: makes one bundle again and does not read {' or '.join(given)}")
    merged(file, "optimize", options)  # an option that says something else is refused
    with talk(printing) as said:
        bundle = replay(file, output, model=model, data=data, overwrite=overwrite, progress=said.progress)
    show({"output": str(bundle.path), "name": bundle.name}, lambda made: f"{made['output']}: {made['name']}", printing)


def _text(found: Found) -> str:
    """Every bundle that was measured, the answer, and what failed as nobody expected."""
    from saten_edge.optimize.showing import table_rows

    defects = [f"failed by a defect, please report it: {each}" for each in found.defects]
    parts = [align(table_rows(found.rows)), found.answer, *defects, f"report: {found.out / 'report.html'}"]
    return "\n\n".join(parts)


def _plan_text(plan: dict[str, Any]) -> str:
    lines = [f"{step['minutes']:>7.1f} min  {step['step']}" for step in plan["steps"]]
    total = f"{plan['minutes']:>7.1f} min  in all, about; at most {plan['disk_bytes'] / 1e9:.2f} GB of disk"
    return "\n".join([*lines, total, *plan["notes"]])
