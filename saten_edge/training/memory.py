"""Memory that a training freed, and the C library keeps."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

__all__ = ["STEPS_BETWEEN", "give_back"]

# Batches of many lengths leave the heap full of holes, of which glibc gives none back but those at its end: after 20
# steps a MiniLM holds a gigabyte that it does not use, and after a long training several.
STEPS_BETWEEN = 10


def give_back() -> bool:
    """Hand unused pages of the heap back to the system, where the C library can; whether there were any."""
    release = _release()
    return release is not None and bool(release(0))


@functools.cache
def _release() -> Callable[[int], int] | None:
    """`malloc_trim` of glibc; other C libraries have none, or give pages back by themselves."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library without a name
        return None
