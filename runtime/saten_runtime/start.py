"""How a command line begins, so that Ctrl-C is one line from its first moment on, and no text is a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

__all__ = ["INTERRUPTED", "start"]

UNUSABLE = 2
INTERRUPTED = 130  # as shells count: 128 and the number of SIGINT


def start(program: str, run: Callable[[], int | None]) -> int | None:
    """What `run` returns, 130 where Ctrl-C ended it, or 2 for arguments that are no text.

    `run` imports all it needs itself.

    An extension module that imports numpy may lose the interrupt on the way, and then fails in some other way: every
    error after Ctrl-C is Ctrl-C's. The process then ends at once, so that no native thread still runs in what the
    interpreter takes down.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # one that cannot show a character shows its number
            with contextlib.suppress(OSError):  # of a stream that was opened in some other way
                stream.reconfigure(errors="backslashreplace")
    for argument in sys.argv[1:]:
        if not _is_text(argument):
            print(f"{program}: error: {argument}: is not UTF-8; rename it", file=sys.stderr)
            return UNUSABLE
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, press)
    try:
        code = run()
    except KeyboardInterrupt:
        code = _said(program)
    except Exception:
        if not pressed:
            raise
        code = _said(program)
    except SystemExit as ended:  # it said itself what there was to say
        if not pressed or isinstance(ended.code, str):
            raise
        code = ended.code
    if pressed:
        _end(code)
    return code


def _said(program: str) -> int:
    print(f"{program}: interrupted", file=sys.stderr)
    return INTERRUPTED


def _end(code: int | None) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader went away
            stream.flush()
    os._exit(code or 0)


def _is_text(argument: str) -> bool:
    """Whether an argument can be written into a file; the system passes any bytes."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True
