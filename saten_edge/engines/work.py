"""The worker's side of every engine: a request that names its work, answered by a word of JSON."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saten_runtime.errors import SatenError, system_refusal
from saten_runtime.machine.child import answer_requests

__all__ = ["answer", "perform", "serve"]

# "do" of a request → the function that does it, given the folder of all files and the rest of the request.
WORK: Mapping[str, str] = {
    "layer": "saten_edge.checkpoints.layers:decompose_file",
    "task": "saten_edge.optimize.tasks:perform",
}


def perform(do: str, folder: str, threads: int, **request: Any) -> dict[str, Any]:
    """Do what is asked for, with so many threads.

    Raises:
        SatenError: something stood in the way that is not the work's own, such as a full disk.
    """
    import torch

    if not Path(folder).is_dir():
        raise SatenError(
            f"{platform.node()}: {folder} is not there; the engine's machines need the folder of the output in common"
        )
    torch.set_num_threads(threads)  # sums are rounded in another order by another number of them
    module, _, function = WORK[do].partition(":")
    try:
        found: dict[str, Any] = getattr(importlib.import_module(module), function)(Path(folder), **request)
    except OSError as cause:
        raise SatenError(system_refusal(cause)) from None
    return found


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """{"ok": …}, or {"error": …} where `perform` raises a `SatenError`; what a cluster's worker calls."""
    try:
        return {"ok": perform(**request)}
    except SatenError as cause:
        return {"error": str(cause)}


def serve() -> None:
    """Answer in a process of its own, as its parent asks, until that ends."""
    answer_requests(lambda: {"perform": lambda request: perform(**request)})
