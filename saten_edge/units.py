"""Sizes as people write them."""

from __future__ import annotations

import re

from saten_runtime.errors import UsageError

__all__ = ["UNITS", "megabytes", "size_in_bytes"]

# unit → bytes
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def size_in_bytes(flag: str, text: str) -> int:
    """Bytes from a number with a unit of `UNITS` in small letters or large, such as 8MB or 1.5 KiB.

    Raises:
        UsageError: it is no such thing, or less than a byte; the message begins with the option.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]{1,3})", text)
    unit = next((size for name, size in UNITS.items() if found and name.lower() == found[2].lower()), 0)
    size = int(float(found[1]) * unit) if found else 0
    if not size:
        raise UsageError(f"{flag} {text}: expected a number with a unit, such as 8MB; units are {', '.join(UNITS)}")
    return size


def megabytes(size: float) -> str:
    """Bytes for people: in units of 10⁶, with three digits or more."""
    return f"{size / 1e6:.3g} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"
