"""Libraries of kernels that the runtime might load (O)."""

from __future__ import annotations

import os
import platform
import struct
import sys

from hostile.bundles import Make
from hostile.case import Case, Place

__all__ = ["CASES"]


def library(content: bytes) -> Make:
    """A package `saten_kernels` with such a library."""

    def make(place: Place) -> None:
        package = place.folder / "site" / "saten_kernels"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "libsaten_kernels.so").write_bytes(content)

    return make


def register(place: Place) -> int:
    """What becomes of a library that is found before any other."""
    import onnxruntime

    from saten_runtime.run import kernels

    sys.path.insert(0, str(place.folder / "site"))
    os.environ.pop(kernels.SWITCH, None)
    found = kernels._register(onnxruntime.SessionOptions(), kernels._library())
    print(f"{found.state}: {found.words}", file=sys.stderr)
    return 2 if found.state == "unusable" else 0


def nothing(place: Place) -> None:
    """The input is in the arguments."""


OTHER_MACHINE = {"x86_64": 183, "aarch64": 62}.get(platform.machine(), 62)
THIS_MACHINE = {"x86_64": 62, "aarch64": 183}.get(platform.machine(), 183)


def elf(machine: int) -> bytes:
    return b"\x7fELF" + bytes(14) + struct.pack("<H", machine) + bytes(100)


def _library_here(place: Place) -> int:
    """A library in the current folder and in the bundle is none that is looked for."""
    from saten_runtime.run import kernels

    for folder in (place.folder / "saten_kernels", place.folder / "bundle" / "saten_kernels"):
        folder.mkdir()
        (folder / "__init__.py").write_text("import os; os.mkdir('ran')")
        (folder / "libsaten_kernels.so").write_bytes(elf(THIS_MACHINE))
    sys.path[:] = ["", *(part for part in sys.path if "saten" not in part)]
    found = kernels._library()
    assert found is None or place.folder not in found.parents
    assert not (place.folder / "ran").exists()
    return 0


CASES = [
    Case("O1", "a library where one stands", lambda place: place.copy("bundle"), _library_here, None, "", code=0),
    *(
        Case("O2", name, library(content), register, "None", words)
        for name, content, words in (
            ("an empty library", b"", "unusable: .*is no library of this system"),
            ("a library of text", b"#!/bin/sh\nreboot\n" * 9, "unusable: .*is no library of this system"),
            ("a library of another machine", elf(OTHER_MACHINE), f"unusable: .*this is {platform.machine()}"),
            ("a library of zeros", elf(THIS_MACHINE), r"unusable: .*libsaten_kernels\.so"),
        )
    ),
]
