"""The methods of `compress`, a table: one row and one file for each."""

from __future__ import annotations

from collections.abc import Sequence

from saten_edge.methods.flat import FLAT
from saten_edge.methods.gptq import GPTQ
from saten_edge.methods.method import Job, Method
from saten_edge.methods.ptnn import PTNN
from saten_edge.methods.saten import SATEN
from saten_edge.ranks import Ranks
from saten_runtime.errors import UsageError

__all__ = ["METHODS", "check_shared", "follow"]

# --method → what it does; the names are those of `saten_edge.options.METHODS`.
METHODS: dict[str, Method] = {"saten": SATEN, "flat": FLAT, "ptnn": PTNN, "gptq": GPTQ}


def check_shared(ranks: Ranks, names: Sequence[str], calibrated: bool) -> None:
    """Refuse several processes where there is nothing that they could share.

    Raises:
        UsageError: saying why.
    """
    if ranks.count == 1:
        return
    alone = [name for name in names if METHODS[name].follow is None]
    if alone:
        raise UsageError(f"--method {alone[0]}: is run by one process, and torchrun started {ranks.count}")
    if not calibrated:
        raise UsageError(
            f"torchrun started {ranks.count} processes, which share the texts of --calibration; there are none. "
            "--workers decomposes layers side by side"
        )


def follow(job: Job) -> dict[str, object]:
    """What a process does that does not lead; it has nothing to tell."""
    for name in job.options.methods:
        if (share := METHODS[name].follow) is not None:
            share(job)
    return {}
