"""The methods of `compress`, a table: one row and one file for each."""

from __future__ import annotations

from saten_edge.methods.flat import FLAT
from saten_edge.methods.method import Method
from saten_edge.methods.ptnn import PTNN
from saten_edge.methods.saten import SATEN

__all__ = ["METHODS"]

# --method → what it does; the names are those of `saten_edge.options.METHODS`.
METHODS: dict[str, Method] = {"saten": SATEN, "flat": FLAT, "ptnn": PTNN}
