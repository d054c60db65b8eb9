"""The table of transports: which file knows how to reach a device of which URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saten_edge.devices.adb import parse_adb
from saten_edge.devices.device import Device
from saten_edge.devices.local import parse_local
from saten_edge.devices.ssh import parse_ssh
from saten_runtime.errors import UsageError
from saten_runtime.records.plain_text import printable

__all__ = ["TRANSPORTS", "parse_devices"]

TRANSPORTS: dict[str, Callable[[str], Device]] = {"ssh": parse_ssh, "adb": parse_adb, "local": parse_local}


def parse_devices(urls: Sequence[str]) -> list[Device]:
    """The devices of `--device` options, each of which may be a list with commas.

    Raises:
        UsageError: a URL of no known form, or two devices that would be one.
    """
    devices = [_parse(url) for text in urls for url in text.split(",")]
    labels = [device.label for device in devices]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--device: {label} is named twice; two runs on one board would disturb each other")
    return devices


def _parse(url: str) -> Device:
    scheme = url.partition(":")[0]
    if scheme not in TRANSPORTS:
        raise UsageError(
            f"--device {printable(url)[:80]}: expected ssh://[user@]host[:port][/folder], adb:SERIAL or local"
        )
    return TRANSPORTS[scheme](url)
