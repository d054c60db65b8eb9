"""`saten-edge eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import saten_edge
from saten_edge.cli.devices import refuse_on_devices, run_on_devices
from saten_edge.cli.options import Devices
from saten_edge.cli.printing import show, talk
from saten_edge.cli.tables import evaluation_table
from saten_edge.devices.kernels import Shipment
from saten_runtime.accuracy.options import EvalOptions
from saten_runtime.options import Printing


def evaluate(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to evaluate")],
    data: Annotated[Path, typer.Option(help="JSON Lines or CSV file; its fields say what is measured")],
    options: EvalOptions,
    shipment: Shipment,
    printing: Printing,
    device: Devices = None,
) -> None:
    """Measure the accuracy of bundles, without torch, on this machine or on devices."""
    if device:
        from saten_edge.devices.jobs import eval_job
        from saten_edge.devices.printing import eval_table

        refuse_on_devices(resume=options.resume, examples=options.examples)
        job = eval_job(bundles, data, reference=options.reference, threads=options.threads, shipment=shipment)
        run_on_devices(device, job, options.output, options.overwrite, eval_table, printing)
        return
    shipment.refuse_unused([])
    with talk(printing) as said:
        result = saten_edge.evaluate(bundles, data, options, progress=said.progress)
    show(result, evaluation_table, printing)
