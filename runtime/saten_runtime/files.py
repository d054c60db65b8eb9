"""Writing so that a crash leaves the old file or the new one: write aside, sync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from saten_runtime.errors import UsageError

__all__ = [
    "new_folder",
    "parse_json",
    "parse_object",
    "read_json",
    "refuse_existing",
    "replace_file",
    "sha256_file",
    "sync_folder",
    "write_json",
]

_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def refuse_existing(path: Path) -> None:
    """Say early that `path` is taken, before minutes of work are spent on it.

    Raises:
        UsageError: there is something at `path`.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path}: already exists; choose another output path or pass --overwrite")


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that readers see the old bytes or the new ones, never a part."""
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as strict JSON (no NaN), atomically."""
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def parse_json(content: bytes) -> Any:
    """Parse JSON, refusing duplicate keys and NaN.

    Raises:
        ValueError: no JSON, or not strict enough.
    """
    return json.loads(content, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def parse_object(content: bytes, where: str, error: Callable[[str], Exception], advice: str) -> dict[str, Any]:
    """Parse a JSON object as strictly as `parse_json`.

    where: begins the message of an error; advice: ends it.

    Raises:
        whatever `error` builds.
    """
    try:
        value = parse_json(content)
    except (ValueError, RecursionError) as cause:
        raise error(f"{where}: no JSON ({cause}); {advice}") from None
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, found {type(value).__name__}; {advice}")
    return value


def read_json(path: Path, error: Callable[[str], Exception]) -> dict[str, Any]:
    """Read a JSON object, refusing duplicate keys and NaN.

    Raises:
        whatever `error` builds, with a message naming the file.
    """
    advice = "it is damaged or no file of ours"
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause}); {advice}") from None
    return parse_object(content, str(path), error, advice)


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears at `path` complete, or not at all.

    Yields a sibling folder to write into. When the block ends, everything in it is synced and the
    folder is renamed to `path`; when it raises (Ctrl-C too), the folder is removed and `path` is as
    it was.

    Raises:
        UsageError: `path` exists and `overwrite` is false.
    """
    if not overwrite:
        refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        _sync_tree(aside)
        _move_into_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move_into_place(aside: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(aside, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    sync_folder(path.parent)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk: a synced file is lost, too, when its name is."""
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
