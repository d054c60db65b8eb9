"""Every hostile input, in the order of docs/security.md."""

from __future__ import annotations

from hostile import bundles, containers, exports, layers, libraries, measurements, requests
from hostile.case import Case

__all__ = ["CASES"]

CASES: list[Case] = [
    *containers.CASES,
    *layers.CASES,
    *exports.CASES,
    *bundles.CASES,
    *libraries.CASES,
    *measurements.CASES,
    *requests.CASES,
]
