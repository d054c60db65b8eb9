"""Which pattern a layer can have of the one that was asked for, and what it is called."""

from __future__ import annotations

from saten_edge.decomposition.residual import Pattern, pattern_named

__all__ = ["described", "fitted", "fitting"]

_SMALLEST_BLOCK = 4  # the 4 bytes of its place are one for each value, as a single entry's are


def fitting(name: str, kind: str, *, group: int, width: int) -> tuple[str, int]:
    """The pattern and the outputs per block of a layer with `width` outputs: `name` and `group` where they fit it.

    Where `group` does not divide the outputs, blocks are of the largest size below it that does; where blocks
    would be too small to store their place in fewer bytes than single entries, those are kept instead.
    """
    if name != "grouped" or kind != "linear" or width % group == 0:
        return name, group
    size = max(size for size in range(1, group + 1) if width % size == 0)
    return (name, size) if size >= _SMALLEST_BLOCK else ("unstructured", group)


def fitted(name: str, kind: str, *, group: int, width: int) -> Pattern:
    """That pattern."""
    found, block = fitting(name, kind, group=group, width=width)
    return pattern_named(found, kind, group=block, width=width)


def described(name: str, kind: str, group: int) -> str:
    """A layer's pattern for people: with the outputs per block where there are blocks."""
    if name != "grouped":
        return name
    return f"grouped {group}" if kind == "linear" else "whole rows"
