"""`saten-edge devices`, and how bench and eval run on devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saten_edge.cli.options import Output, Overwrite
from saten_edge.cli.phone import page_address
from saten_edge.cli.printing import show, talk
from saten_edge.devices.kernels import Shipment
from saten_edge.options import PageOptions
from saten_runtime.errors import InvalidRun, SatenError, UsageError
from saten_runtime.options import Printing, options_of
from saten_runtime.records.files import refuse_existing

if TYPE_CHECKING:
    from saten_edge.console import Talk
    from saten_edge.devices.jobs import Job
    from saten_runtime.bench.results import Verdict

    Priced = tuple[str, tuple[Path, Verdict]]  # of what, the file, and whether its times may be believed

__all__ = ["android", "calibrate", "clean", "doctor", "refuse_on_devices", "run_on_devices"]

_PAGE = "page"
Url = Annotated[str, typer.Argument(metavar="DEVICE", help="ssh://[user@]host[:port][/folder], adb:SERIAL or local")]


def doctor(
    url: Url,
    shipment: Shipment,
    printing: Printing,
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to try on the device")] = None,
) -> None:
    """Check what could stop a run on a device; exit code 2 when something will."""
    from saten_edge.devices.jobs import examine
    from saten_edge.devices.transports import parse_devices
    from saten_runtime.records.plain_text import align

    (device,) = parse_devices([url])
    checks = examine(device, bundle, talk(printing), shipment)
    rows = [(check["status"], check["name"], check["found"], check["advice"]) for check in checks]
    show(checks, lambda _: align(rows), printing)
    if any(check["status"] == "FAIL" for check in checks):
        raise typer.Exit(SatenError.exit_code)


def calibrate(
    url: Annotated[
        str,
        typer.Argument(
            metavar="DEVICE", help="ssh://[user@]host[:port][/folder], adb:SERIAL, local, or page: any browser"
        ),
    ],
    shipment: Shipment,
    listening: PageOptions,
    printing: Printing,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, for export --prices; by default that of export --device"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists")] = False,
) -> None:
    """Measure on a device the prices that export chooses forms by; takes up to three minutes."""
    if output is not None and not overwrite:
        refuse_existing(output)
    measure = _page_prices if url == _PAGE else _device_prices
    label, (path, verdict) = measure(url, output, shipment, listening, talk(printing))
    result = {"output": str(path), "valid": verdict.valid, "reasons": verdict.reasons}
    show(result, lambda _: f"{path}: prices of {label}, {_words(verdict)}", printing)
    if not verdict.valid:
        raise InvalidRun("; ".join(verdict.reasons))


def _device_prices(url: str, output: Path | None, shipment: Shipment, listening: PageOptions, told: Talk) -> Priced:
    from saten_edge.devices.calibrate import calibrate as measure
    from saten_edge.devices.transports import parse_devices

    _refuse_given(listening, f"only for {_PAGE}, which browsers open; leave it out")
    (device,) = parse_devices([url])
    return device.label, measure(device, output, told, shipment)


def _page_prices(url: str, output: Path | None, shipment: Shipment, listening: PageOptions, told: Talk) -> Priced:
    from saten_edge.phone import prices, show_link

    _refuse_given(shipment, f"nothing is sent to a {url} but the page; leave it out")
    address = page_address(listening)
    with told.stage("probes: write"):
        job = prices.make_price_job()
    return url, prices.calibrate_page(job, address, output, show_link, told)


def _refuse_given(options: Shipment | PageOptions, why: str) -> None:
    """Refuse options that a kind of device does not honour.

    Raises:
        UsageError: one of them was given.
    """
    for field, each in options_of(type(options)):
        if getattr(options, field.name) != field.default:
            raise UsageError(f"{each.flags[0]}: {why}")


def _words(verdict: Verdict) -> str:
    return "VALID" if verdict.valid else "INVALID"


def clean(url: Url, printing: Printing) -> None:
    """Remove everything that saten-edge ever put on a device."""
    from saten_edge.devices.board import Board
    from saten_edge.devices.transports import parse_devices

    (device,) = parse_devices([url])
    with Board(device, "clean") as board:
        board.clean()
    if printing.as_json:
        show({"cleaned": device.label}, str, printing)


def android(
    bundle: Annotated[Path, typer.Argument(help="Bundle to write")],
    output: Output,
    printing: Printing,
    overwrite: Overwrite = False,
) -> None:
    """Write a bundle as files and commands for ONNX Runtime's Android packages."""
    from saten_edge.devices.android import write_android
    from saten_runtime.bundle.folder import Bundle

    write_android(Bundle.open(bundle), output, overwrite=overwrite)
    show({"output": str(output)}, lambda result: f"{result['output']}: see README.md there", printing)


def run_on_devices(
    urls: list[str],
    job: Job,
    output: Path | None,
    overwrite: bool,
    table: Callable[[dict[str, Any]], str],
    printing: Printing,
) -> dict[str, Any]:
    """Do a job on each device and print the results by label; then raise what failed first."""
    from saten_edge.devices.jobs import run_jobs
    from saten_edge.devices.transports import parse_devices

    devices = parse_devices(urls)
    results, failures = run_jobs(devices, job, output=output, overwrite=overwrite, talk=talk(printing))
    if results:
        show(results, table, printing)
    if failures:
        raise failures[0]
    return results


def refuse_on_devices(**given: object) -> None:
    """Refuse options that a run on a device does not honour.

    Raises:
        UsageError: one of them was given.
    """
    for name, value in given.items():
        if value:
            raise UsageError(f"--{name}: only on this machine; leave it out, or leave out --device")
