"""Every hostile input, in the order of docs/security.md."""

from __future__ import annotations

from hostile import bundles, containers, exports, gguf_files, layers, libraries, measurements, requests
from hostile.case import Case

__all__ = ["CASES"]

CASES: list[Case] = [
    *containers.CASES,
    *gguf_files.CASES,
    *layers.CASES,
    *exports.CASES,
    *bundles.CASES,
    *libraries.CASES,
    *measurements.CASES,
    *requests.CASES,
]
