"""`saten-edge devices`: what is not a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after boards and phones.")

Url = Annotated[str, typer.Argument(metavar="DEVICE", help="ssh://[user@]host[:port][/folder], adb:SERIAL or local.")]


@app.command("doctor")
def doctor_command(
    url: Url,
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to try there.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check what could stop a run on a device; exit code 2 when something will."""
    from saten_edge.console import Talk
    from saten_edge.devices.jobs import examine
    from saten_edge.devices.transports import parse_devices
    from saten_runtime.errors import SatenError
    from saten_runtime.records.plain_text import align

    (device,) = parse_devices([url])
    checks = examine(device, bundle, Talk(quiet=quiet))
    rows = [(check["status"], check["name"], check["found"], check["advice"]) for check in checks]
    print(json.dumps(checks, indent=2) if as_json else align(rows))
    if any(check["status"] == "FAIL" for check in checks):
        raise typer.Exit(SatenError.exit_code)


@app.command("clean")
def clean_command(url: Url) -> None:
    """Remove everything that saten-edge ever put on a device."""
    from saten_edge.devices.board import Board
    from saten_edge.devices.transports import parse_devices

    (device,) = parse_devices([url])
    with Board(device, "clean") as board:
        board.clean()


@app.command("android")
def android_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Write a bundle as files and commands for ONNX Runtime's Android packages."""
    from saten_edge.devices.android import write_android
    from saten_runtime.bundle.folder import Bundle

    write_android(Bundle.open(bundle), output, overwrite=overwrite)
    print(f"{output}: see README.md there")
