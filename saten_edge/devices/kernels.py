"""The native kernels for a board, from a folder of wheels: no package index has them yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import saten_runtime
from saten_runtime.errors import DeviceError, UsageError
from saten_runtime.options import option

if TYPE_CHECKING:
    from saten_edge.devices.board import Hello
    from saten_edge.devices.device import Device

__all__ = ["Shipment", "find_kernels"]

# The extra `kernels` of saten-runtime asks for its own version of them.
_NAME = f"saten_kernels-{saten_runtime.__version__}"


@dataclass(frozen=True)
class Shipment:
    """What a board gets besides the runtime. wheels: a folder; None is the cache of this user."""

    wheels: Path | None = option(
        None,
        "Folder with the saten-kernels wheel for the device, such as the dist/ of `make wheels` "
        "(default: ~/.cache/saten-edge/wheels)",
        "--wheels",
        metavar="DIR",
    )
    kernels: bool = option(True, "Send no native kernels to the device", "--no-kernels", const=False)

    def refuse_unused(self, devices: Sequence[Device]) -> None:
        """Refuse what would not be honoured: no device is no run on one.

        Raises:
            UsageError: an option that has no meaning there, or a folder that is none.
        """
        given = [*(["--wheels"] if self.wheels else []), *([] if self.kernels else ["--no-kernels"])]
        if not given:
            return
        named = " and ".join(given)
        if not devices:
            raise UsageError(f"{named}: only on a device; leave it out, or name a --device")
        for device in devices:
            if device.ready:
                raise UsageError(
                    f"{named}: nothing is sent to {device.label}, which uses what is installed there; "
                    "leave it out, or set SATEN_KERNELS=0 to run without the kernels"
                )
        if len(given) > 1:
            raise UsageError("--wheels and --no-kernels: expected one of the two")
        if self.wheels and not self.wheels.is_dir():
            raise UsageError(f"--wheels {self.wheels}: expected a folder")


def find_kernels(hello: Hello, shipment: Shipment) -> tuple[list[Path], str]:
    """The wheel for that board, at most one, and what to say where there is none.

    Raises:
        DeviceError: the folder that the user named has wheels of the kernels, and none fits.
    """
    from saten_edge.devices.wheels import wheel_cache, wheel_tags

    if not shipment.kernels:
        return [], ""
    folder = shipment.wheels or wheel_cache()
    offered = sorted(folder.glob(f"{_NAME}-*.whl"))
    tags = set(wheel_tags(hello))
    fitting = [wheel for wheel in offered if tags & set(_platforms(wheel))]
    if fitting:
        return fitting[:1], ""
    found = ", ".join(wheel.name for wheel in offered)
    board = f"{hello.machine} with glibc {'.'.join(map(str, hello.glibc or ()))}"
    if shipment.wheels and offered:
        raise DeviceError(
            f"--wheels {folder}: found {found}, expected one for {board}; "
            "`make wheels` builds it, --no-kernels runs without the native kernels"
        )
    return [], (
        f"no native kernels for {board}: found {found or 'no wheel'} of {_NAME} in {folder}; "
        "the function bodies run instead; `make wheels` builds one, --wheels DIR names its folder"
    )


def _platforms(wheel: Path) -> list[str]:
    """Of NAME-VERSION-PYTHON-ABI-PLATFORM.PLATFORM.whl."""
    return wheel.stem.rpartition("-")[2].split(".")
