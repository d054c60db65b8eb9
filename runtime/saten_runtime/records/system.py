"""Where systems differ: locks, opening what may be a link, who else is alive, and what is a user's own.

What Linux and macOS have and Windows has not is asked for here alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["NO_LINK", "WINDOWS", "is_dead", "is_followed_link", "lock", "user", "user_cache"]

WINDOWS = os.name == "nt"
# A link is not followed, a pipe is not waited for, and nothing is made of the bytes.
NO_LINK: int = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
# Beyond what anybody writes: on Windows a locked byte cannot be read by others.
_FAR = 1 << 40


def lock(file: IO[Any]) -> None:
    """Hold a file until it is closed or this process ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    windows: Any = msvcrt
    place = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    os.lseek(file.fileno(), _FAR, os.SEEK_SET)
    try:
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)
    except OSError as cause:
        raise BlockingIOError(cause.errno, cause.strerror) from None
    finally:
        os.lseek(file.fileno(), place, os.SEEK_SET)


def is_followed_link(path: Path) -> bool:
    """Whether `path` is a link that the flags of `NO_LINK` do not keep from being followed."""
    return not hasattr(os, "O_NOFOLLOW") and path.is_symlink()


def is_dead(process: int) -> bool:
    """Whether no process has this number.

    Raises:
        OSError, OverflowError: a number that cannot be one of a process.
    """
    if WINDOWS:  # where signal 0 is Ctrl-C
        import psutil

        return not psutil.pid_exists(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def user() -> str:
    """A name of this user that a file name can hold."""
    return str(os.getuid()) if hasattr(os, "getuid") else "".join(filter(str.isalnum, os.environ.get("USERNAME", "")))


def user_cache(name: str) -> Path:
    """The folder for what can be made again, by the XDG Base Directory Specification; ours of this name in it.

    Raises:
        FileNotFoundError: the user has no home, and `XDG_CACHE_HOME` names no folder.
    """
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise FileNotFoundError("this user has no home for a cache; set XDG_CACHE_HOME to a folder") from None
    return Path(cache) / "saten-edge" / name
