"""Plain text: tables, and what others said on one line."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["align", "last_line", "one_line", "printable"]


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


def one_line(said: object, most: int | None = None) -> str:
    """What an error or a text says, on one line of at most `most` characters; of an error without words, its type."""
    words = " ".join(str(said).split())[:most]
    return words or (type(said).__name__ if isinstance(said, BaseException) else "")


def last_line(text: str, otherwise: str = "") -> str:
    """The last line that is not blank, without blanks around it; `otherwise` where there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), otherwise)
