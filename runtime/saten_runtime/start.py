"""How a command line begins, so that Ctrl-C is one line from its first moment on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType

__all__ = ["INTERRUPTED", "start"]

INTERRUPTED = 130  # as shells count: 128 and the number of SIGINT


def start(program: str, run: Callable[[], int | None]) -> int | None:
    """What `run` returns, or 130 where Ctrl-C ended it; `run` imports all it needs itself.

    An extension module that imports numpy may lose the interrupt on the way, and then fails in some other way: every
    error after Ctrl-C is Ctrl-C's.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, press)
    try:
        return run()
    except KeyboardInterrupt:
        pass
    except Exception:
        if not pressed:
            raise
    print(f"{program}: interrupted", file=sys.stderr)
    return INTERRUPTED
