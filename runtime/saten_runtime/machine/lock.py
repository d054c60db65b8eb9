"""One benchmark at a time, and one writer of an output: two would spoil each other, and the result would look right."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from saten_runtime.errors import DeviceError, SatenError, UsageError
from saten_runtime.machine.device import boot_id
from saten_runtime.records.files import key_of
from saten_runtime.records.system import NO_LINK, lock, user

__all__ = ["machine_lock", "output_lock"]


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Hold this machine while the block runs; the system lets go when the process ends, however it ends.

    Raises:
        DeviceError: another benchmark of this user holds it; the message names its process.
    """
    path = _lock_file("")
    with _held(
        path, lambda who: DeviceError(f"{path}: another benchmark runs on this machine ({who}); wait until it ends")
    ):
        yield


@contextlib.contextmanager
def output_lock(output: Path) -> Iterator[None]:
    """Keep other processes of this user from writing to the same path while the block runs, however it is spelled.

    Raises:
        UsageError: another one does; the message names it.
    """
    path = _lock_file(f"-{key_of(os.path.realpath(output))}")
    advice = "wait until it ends, or choose another output path"
    with _held(path, lambda who: UsageError(f"{output}: is being written by another run ({who}); {advice}")):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock_file(kind: str) -> Path:
    return Path(tempfile.gettempdir()) / f"saten-run-{user()}{kind}.lock"


@contextlib.contextmanager
def _held(path: Path, refusal: Callable[[str], SatenError]) -> Iterator[None]:
    with _opened(path) as file:
        try:
            lock(file)
        except BlockingIOError:
            raise refusal(_holder(file.read())) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "boot": boot_id()}, allow_nan=False))
        file.flush()
        yield


def _opened(path: Path) -> TextIO:
    return open(os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o600), "r+")


def _holder(content: str) -> str:
    try:
        return f"process {int(json.loads(content)['pid'])}"
    except (ValueError, TypeError, KeyError):
        return "process not known"
