"""`saten-edge phone`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saten_edge.cli.options import Only
from saten_edge.cli.printing import talk
from saten_edge.cli.tables import run_tables
from saten_edge.options import PageOptions, PhoneOptions
from saten_runtime.bench.plan import Plan
from saten_runtime.errors import InvalidRun
from saten_runtime.options import Printing

if TYPE_CHECKING:
    from saten_edge.phone import Address, Run


def phone(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to measure")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder in which every run gets a new one")],
    options: PhoneOptions,
    plan: Annotated[Plan, Only("threads", "batches", "tokens", "min_time_s", "rounds")],
    printing: Printing,
    listening: PageOptions,
    once: Annotated[bool, typer.Option("--once", help="End after the first complete run")] = False,
) -> None:
    """Measure bundles on a phone or tablet, through its browser."""
    from saten_edge import phone as page

    address = page_address(listening)
    job = page.make_job(bundles, plan, **vars(options))
    runs: list[Run] = []

    def done(run: Run) -> None:
        runs.append(run)
        print(json.dumps(run_json(run), indent=2, allow_nan=False) if printing.as_json else run_tables(run), flush=True)

    page.serve(
        job, partial(page.Run, job), output, address, opened=page.show_link, done=done, once=once, talk=talk(printing)
    )
    reasons = [reason for run in runs if run.bench for reason in run.bench.verdict.reasons]
    if once and reasons:
        raise InvalidRun("; ".join(reasons))


def page_address(options: PageOptions) -> Address:
    """Where the options say, or on the local network."""
    from saten_edge.phone import Address, lan_address

    return Address(options.host or lan_address(), options.port, options.certificate, options.key)


def run_json(run: Run) -> dict[str, object]:
    """What a page sent, as JSON data."""
    results = {"bench": run.bench, "eval": run.evaluation}
    return {"folder": str(run.folder), **{name: one.to_json() for name, one in results.items() if one is not None}}
