"""The files of onnxruntime-web that the page runs on: fetched by `make web`, not kept in the repository."""

from __future__ import annotations

import hashlib
from pathlib import Path

from saten_runtime.errors import RuntimeMismatch

__all__ = ["FILES", "FOLDER", "MODULE", "VERSION", "WASM", "read_files"]

VERSION = "1.30.0"
MODULE = "ort.wasm.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.wasm"

FILES = {  # sha256 of `dist/<name>` in the npm package onnxruntime-web@VERSION
    MODULE: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}

FOLDER = Path(__file__).parent / "static" / "ort"


def read_files(folder: Path = FOLDER) -> dict[str, bytes]:
    """Every file by name.

    Raises:
        RuntimeMismatch: a file is missing or of another version.
    """
    contents = {}
    for name, sha256 in FILES.items():
        path = folder / name
        contents[name] = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(contents[name]).hexdigest() != sha256:
            found = "another version" if contents[name] else "no such file"
            raise RuntimeMismatch(
                f"{path}: {found}, expected the one of onnxruntime-web {VERSION}; "
                "run `make web` in the sources, or install the wheel"
            )
    return contents
