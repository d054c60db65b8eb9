"""Bring a board what it lacks: an environment with the runtime, bundles, data. What is there is not sent again."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saten_edge.console import Advance
from saten_edge.devices.board import Board, Item
from saten_edge.devices.device import Device
from saten_edge.devices.kernels import Shipment, find_kernels
from saten_edge.devices.wheels import fetch_wheels
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import MANIFEST_FILE
from saten_runtime.errors import DeviceError
from saten_runtime.records.files import key_of, sha256_file

__all__ = ["Cargo", "bundle_path", "data_path", "deploy"]

# For results, samples and temporary files.
_HEADROOM_BYTES = 32 << 20
_ID = 16


@dataclass(frozen=True)
class Cargo:
    """What a job needs on the board."""

    bundles: Sequence[Bundle]
    data: Path | None = None
    shipment: Shipment = field(default_factory=Shipment)

    @property
    def items(self) -> list[Item]:
        """Every file once, with the place it gets."""
        files = [item for bundle in self.bundles for item in _bundle_items(bundle)]
        if self.data is not None:
            files.append(Item.of(self.data, data_path(self.data)))
        return list({item.path: item for item in files}.values())


def bundle_path(bundle: Bundle) -> str:
    """Where a bundle is kept: by the hash of its manifest, which holds the hashes of all its files."""
    return f"bundles/{sha256_file(bundle.path / MANIFEST_FILE)[:_ID]}"


def data_path(data: Path) -> str:
    """Where a data file is kept, under the name that results give it."""
    return f"data/{sha256_file(data)[:_ID]}/{data.name}"


def deploy(board: Board, device: Device, cargo: Cargo, advance: Advance, say: Callable[[str], None]) -> str | None:
    """Send what is missing; the name of the environment, or None where the device brings its own.

    say: told in a line when the board runs without the native kernels for want of a wheel.

    Raises:
        DeviceError: too little room on the board, or no wheels for it.
        Disconnected: the connection was lost; calling again on a new board goes on.
    """
    items = cargo.items
    env, wheels, unpacked_bytes = (None, [], 0) if device.ready else _environment(board, cargo.shipment, say)
    there = {item: board.begin(item) for item in [*wheels, *items]}
    missing = {item: offset for item, offset in there.items() if offset is not None}
    needed = sum(item.bytes - offset for item, offset in missing.items()) + unpacked_bytes
    _make_room(board, needed, [f"envs/{env}", *("/".join(item.path.split("/")[:2]) for item in there)])
    sent = 0
    total = max(1, needed - unpacked_bytes)

    def count(size: int) -> None:
        nonlocal sent
        sent += size
        advance(sent, total, f"{sent / 1e6:.0f} of {total / 1e6:.0f} MB")

    for item, offset in missing.items():
        board.put(item, offset, count)
    if env is not None:
        advance(total, total, "unpacking")
        board.make_env(env, [item.path for item in wheels])
    return env


def _environment(board: Board, shipment: Shipment, say: Callable[[str], None]) -> tuple[str, list[Item], int]:
    """The environment a board needs: its name, wheels still to be sent, and the room they take unpacked."""
    board.hello.refuse_unfit(board.label)
    kernels, lack = find_kernels(board.hello, shipment)
    if lack:
        say(f"{board.label}: {lack}")
    wheels = [Item.of(path, f"wheels/{path.name}") for path in [*fetch_wheels(board.hello), *kernels]]
    name = key_of([(item.path, item.sha256) for item in wheels], _ID)
    if board.make_env(name, []):
        return name, [], 0
    return name, wheels, sum(_unpacked_bytes(item.source) for item in wheels)


def _unpacked_bytes(wheel: Path) -> int:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        raise DeviceError(f"{wheel}: expected a wheel, found no zip archive; remove it and run again") from None


def _make_room(board: Board, needed: int, keep: list[str]) -> None:
    """Remove what this job does not use when the board has too little room.

    Raises:
        DeviceError: that was not enough.
    """
    needed += _HEADROOM_BYTES
    if board.free_bytes < needed:
        board.free(keep)
    if board.free_bytes < needed:
        raise DeviceError(
            f"{board.label}: {board.free_bytes / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed; "
            "make room, or name a folder on a larger disk after the host"
        )


def _bundle_items(bundle: Bundle) -> list[Item]:
    """The manifest last: a bundle that has one is complete."""
    folder = bundle_path(bundle)
    files = [
        Item(bundle.path / name, f"{folder}/{name}", entry.bytes, entry.sha256)
        for name, entry in bundle.manifest.files.items()
    ]
    return [*files, Item.of(bundle.path / MANIFEST_FILE, f"{folder}/{MANIFEST_FILE}")]
