"""One benchmark at a time: two would slow each other, and both results would look right."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from saten_runtime.errors import DeviceError
from saten_runtime.machine.device import boot_id

__all__ = ["machine_lock"]


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Hold this machine while the block runs; the system lets go when the process ends, however it ends.

    Raises:
        DeviceError: another benchmark of this user holds it; the message names its process.
    """
    path = Path(tempfile.gettempdir()) / f"saten-run-{os.getuid()}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(handle, "r+") as file:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeviceError(
                f"{path}: another benchmark runs on this machine ({_holder(file.read())}); wait until it ends"
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "boot": boot_id()}, allow_nan=False))
        file.flush()
        yield


def _holder(content: str) -> str:
    try:
        return f"process {int(json.loads(content)['pid'])}"
    except (ValueError, TypeError, KeyError):
        return "process not known"
