"""Entities out of the labels of words."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["entities"]


def entities(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first, last) of the entities in labels such as B-PER, I-PER, O.

    An I- label that continues nothing begins an entity, as conlleval has it.
    """
    found: list[tuple[str, int, int]] = []
    for index, label in enumerate(labels):
        prefix, _, kind = label.partition("-")
        if prefix not in ("B", "I") or not kind:
            continue
        continues = prefix == "I" and found and (found[-1][0], found[-1][2]) == (kind, index - 1)
        if continues:
            found[-1] = (kind, found[-1][1], index)
        else:
            found.append((kind, index, index))
    return found
