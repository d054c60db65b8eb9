"""`saten-edge bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import saten_edge
from saten_edge.cli.devices import refuse_on_devices, run_on_devices
from saten_edge.cli.options import Devices
from saten_edge.cli.printing import show, talk
from saten_edge.devices.kernels import Shipment
from saten_runtime.bench.plan import BenchFiles, Plan
from saten_runtime.errors import InvalidRun
from saten_runtime.options import Printing


def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to measure")],
    plan: Plan,
    files: BenchFiles,
    shipment: Shipment,
    printing: Printing,
    device: Devices = None,
) -> None:
    """Measure latency, start and memory of bundles, interleaved, on this machine or on devices."""
    if device:
        _on_devices(device, bundles, plan, files, shipment, printing)
        return
    shipment.refuse_unused([])
    from saten_runtime.bench.measure import Interrupted
    from saten_runtime.bench.results import table

    try:
        with talk(printing) as said:
            result = saten_edge.bench(bundles, plan, **vars(files), progress=said.progress)
    except Interrupted as interrupt:
        result = interrupt.result
        show(result.to_json(), lambda _: table(result), printing)
        raise
    show(result.to_json(), lambda _: table(result), printing)
    if not result.verdict.valid:
        raise InvalidRun("; ".join(result.verdict.reasons))


def _on_devices(
    urls: list[str], bundles: list[Path], plan: Plan, files: BenchFiles, shipment: Shipment, printing: Printing
) -> None:
    from saten_edge.devices.jobs import bench_job
    from saten_edge.devices.printing import bench_table, invalid_reasons

    refuse_on_devices(resume=files.resume)
    job = bench_job(bundles, plan, files.baseline, shipment)
    results = run_on_devices(urls, job, files.output, files.overwrite, bench_table, printing)
    if reasons := invalid_reasons(results):
        raise InvalidRun("; ".join(reasons))
