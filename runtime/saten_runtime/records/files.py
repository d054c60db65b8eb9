"""Reading files that may be anything, and writing so that a crash leaves the old file or the new one.

What is written goes aside first, under a name that says whose process it is, then to the disk, then into place by
one rename. What a killed process left aside is swept by the next one that writes to the same place.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from saten_runtime.errors import SatenError, UsageError
from saten_runtime.records.system import NO_LINK, WINDOWS, is_dead, is_followed_link

__all__ = [
    "aside_of",
    "digest_of",
    "key_of",
    "open_regular",
    "parse_json",
    "parse_object",
    "read_json",
    "read_regular_json",
    "refuse_existing",
    "refuse_home",
    "remove",
    "replace_file",
    "replacing",
    "sha256_file",
    "sha256_of",
    "sync_folder",
    "system_errors",
    "write_json",
]

_CHUNK_BYTES = 1 << 20
_MOST_JSON_BYTES = 64 << 20
_DAMAGED = "it is damaged or no file of ours"


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in chunks of 1 MiB."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Hex digest of what an open file holds from here on."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Hex sha256 of JSON data, however it is written down."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def key_of(value: Any, length: int = 16) -> str:
    """A short name of JSON data, hexadecimal: equal data have equal keys, and no others do."""
    return digest_of(value)[:length]


def open_regular(path: Path, error: Callable[[str], Exception]) -> BinaryIO:
    """Open a file of a folder that comes from elsewhere, to read.

    What was opened is looked at, not what the name stood for a moment before, and opening a pipe does not wait.

    Raises:
        whatever `error` builds: the path is missing, or a link, folder, pipe or device.
    """
    if is_followed_link(path):
        raise error(f"{path}: is no regular file (a link); copy it again")
    try:
        handle = os.open(path, os.O_RDONLY | NO_LINK)
    except OSError as cause:
        why = "a link" if cause.errno == errno.ELOOP else cause.strerror
        raise error(f"{path}: is no regular file ({why}); copy it again") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise error(f"{path}: is no regular file; copy it again")
    return open(handle, "rb")


def refuse_existing(path: Path) -> None:
    """Say early that `path` is taken, before minutes of work are spent on it.

    Raises:
        UsageError: there is something at `path`, or it is below `~`.
    """
    refuse_home(path, UsageError)
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path}: already exists; choose another output path or pass --overwrite")


def refuse_home(path: Path, error: type[SatenError]) -> None:
    """Refuse a path below `~`, which a shell leaves as it is in quotes and behind `=`.

    Raises:
        SatenError: of that class; it would be a folder of that name.
    """
    if path.parts[:1] == ("~",):
        raise error(
            f"{path}: the shell did not put your home folder in the place of ~; write {os.path.expanduser(path)}"
        )


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that readers see the old bytes or the new ones, never a part.

    Raises:
        OSError: the system refuses, or there is a folder at `path`.
    """
    with replacing(path) as aside:
        aside.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where the block writes what shall be `path`: readers see the old file or the whole new one.

    Raises:
        OSError: the system refuses, or there is a folder at `path`.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    aside = aside_of(path)
    try:
        yield aside
        with aside.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as strict JSON (no NaN), atomically."""
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def parse_json(content: bytes) -> Any:
    """Parse JSON, refusing duplicate keys, NaN, and numbers that are infinite as float64, such as 1e999.

    Raises:
        ValueError: not JSON, or not strict enough.
    """
    return json.loads(
        content, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite_number
    )


def parse_object(content: bytes, where: str, error: Callable[[str], Exception], advice: str) -> dict[str, Any]:
    """Parse a JSON object as strictly as `parse_json`.

    where: begins the message of an error; advice: ends it.

    Raises:
        whatever `error` builds.
    """
    try:
        value = parse_json(content)
    except (ValueError, RecursionError) as cause:
        raise error(f"{where}: not JSON ({cause}); {advice}") from None
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, found {type(value).__name__}; {advice}")
    return value


def read_json(path: Path, error: Callable[[str], Exception]) -> dict[str, Any]:
    """Read the JSON object in a file that the user named, as strictly as `parse_json`.

    Raises:
        whatever `error` builds, with a message naming the file.
    """
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror})") from None
    return parse_object(content, str(path), error, _DAMAGED)


def read_regular_json(path: Path, error: Callable[[str], Exception]) -> dict[str, Any]:
    """Read the JSON object in a file of a folder that comes from elsewhere, as strictly as `parse_json`.

    Raises:
        whatever `error` builds: not JSON object, no regular file, or one above 64 MiB.
    """
    with open_regular(path, error) as file:
        content = file.read(_MOST_JSON_BYTES + 1)
    if len(content) > _MOST_JSON_BYTES:
        raise error(f"{path}: has more than {_MOST_JSON_BYTES} bytes; {_DAMAGED}")
    return parse_object(content, str(path), error, _DAMAGED)


@contextlib.contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """What libraries raise when the system refuses, as an `OSError` that names a place and a reason.

    Rust's have the system's number in their words; NumPy counts what it could not write and does not say why.

    path: what the block writes, for the error; its parent exists.
    """
    free = shutil.disk_usage(path.parent).free // 2**20
    try:
        yield
    except SatenError:
        raise
    except OSError as cause:
        if type(cause) is OSError and cause.errno is None:  # a subclass knows its own words, as those of a connection
            raise OSError(errno.EIO, f"{cause}; {free} MiB were free", str(path)) from None
        cause.filename = cause.filename or str(path)
        raise
    except Exception as cause:
        number = re.search(r"\(os error ([0-9]{1,3})\)", str(cause))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def aside_of(path: Path) -> Path:
    """Where this process writes what shall be `path`; what dead ones left there is gone."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*-*"):
        kind, _, process = left.name.rpartition(".")[2].partition("-")
        if process == str(os.getpid()) or not _is_dead(process):
            continue
        if kind == "old" and not path.exists():
            os.replace(left, path)
        elif kind in ("old", "partial"):
            remove(left)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    remove(aside)
    return aside


def _is_dead(process: str) -> bool:
    try:
        return is_dead(int(process))
    except (ValueError, OSError, OverflowError):
        return False


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk: a synced file is lost, too, when its name is."""
    if WINDOWS:  # it opens no folder, and does this by itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
