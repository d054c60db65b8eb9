"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["align", "printable"]


def align(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as a table with columns of equal width; the first row is as long as any."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    r"""`text` on one line, with everything invisible spelled out: ESC becomes `\x1b`, a bidi override `\u202e`.

    What comes from elsewhere must not steer a terminal, reorder a line or break an SVG.
    """
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)
