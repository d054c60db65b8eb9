"""Every hostile input, in the order of docs/security.md."""

from __future__ import annotations

from hostile import bundles, checkpoints, requests
from hostile.case import Case

__all__ = ["CASES"]

CASES: list[Case] = [*checkpoints.CASES, *bundles.CASES, *requests.CASES]
