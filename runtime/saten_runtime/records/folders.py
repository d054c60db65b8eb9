"""Folders that appear whole or not at all, and that replace nothing but what was written here before.

What is written goes aside first and into place by one rename. Each folder carries a list of the files that were
written; one that has no such list, or holds anything that is not on it, is somebody else's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from saten_runtime.errors import UsageError
from saten_runtime.records.files import (
    aside_of,
    open_regular,
    parse_json,
    refuse_existing,
    refuse_home,
    remove,
    sync_folder,
    system_errors,
)

__all__ = ["MARK", "check_output", "new_folder"]

MARK = ".saten-edge-wrote"
"""In each folder written here: a JSON list of the names of its other files."""

_RENAME_EXCHANGE = 2
_MOST_MARK_BYTES = 1 << 20


def check_output(path: Path, *, overwrite: bool, inputs: Iterable[str | Path | None] = ()) -> None:
    """Say early that `path` cannot be written, before minutes of work are spent on it.

    inputs: what the work reads; names of the hub among them are no paths and are passed over.

    Raises:
        UsageError: there is something at `path` and `overwrite` is false; or what is there is the current folder,
            holds an input, or was not written here.
    """
    refuse_home(path, UsageError)
    if not overwrite:
        refuse_existing(path)
    for parent in path.parents:
        if parent.is_file():
            raise UsageError(f"{path}: {parent} is a file, not a folder; choose another output path")
    here = os.path.realpath(path)
    if _holds(here, "."):
        raise UsageError(f"{path}: is the current folder or one around it; choose another output path")
    for each in inputs:
        if each is not None and os.path.exists(each) and _holds(here, each):
            what = "is what is read" if os.path.samefile(here, each) else f"holds {each}, which is read"
            raise UsageError(f"{path}: {what}; choose another output path")
    _refuse_foreign(path)


def _holds(folder: str, path: str | Path) -> bool:
    """Whether a path is the real path `folder`, or below it."""
    return Path(os.path.realpath(path)).is_relative_to(folder)


def _refuse_foreign(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise UsageError(f"{path}: is not a folder, and --overwrite replaces nothing else; choose another output path")
    there = _files(path)
    written = _written(path) if MARK in there else set()
    for strange in sorted(there - written):
        if not written:
            raise UsageError(
                f"{path}: was not written by saten-edge, so that --overwrite leaves it alone; "
                "choose another output path, or remove it yourself"
            )
        raise UsageError(
            f"{path}: holds {strange}, which saten-edge did not write, so that --overwrite leaves it alone; "
            "move that file, or choose another output path"
        )


def _files(folder: Path) -> set[str]:
    """Everything in a folder that is not a folder itself, by its path from there; links are not followed."""
    entries = [(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)]
    paths = [Path(root, name) for root, name in entries]
    return {path.relative_to(folder).as_posix() for path in paths if path.is_symlink() or not path.is_dir()}


def _written(folder: Path) -> set[str]:
    """What the list in a folder names, and the list; nothing where it is none of ours."""
    with open_regular(folder / MARK, UsageError) as file:
        content = file.read(_MOST_MARK_BYTES)
    try:
        names = parse_json(content)
    except (ValueError, RecursionError):
        return set()
    return {*names, MARK} if isinstance(names, list) and all(isinstance(name, str) for name in names) else set()


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears at `path` complete, or not at all.

    Yields a sibling folder to write into. When the block ends, everything in it is listed and synced and the
    folder is renamed to `path`; when it raises (Ctrl-C too), the folder is removed, with the parents that were
    made for it, and `path` is as it was.

    Raises:
        UsageError: as `check_output` has it.
    """
    check_output(path, overwrite=overwrite)
    parents = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(path)
    aside.mkdir()
    try:
        with system_errors(path):
            yield aside
            written = json.dumps(sorted(_files(aside)), indent=0, allow_nan=False) + "\n"
            (aside / MARK).write_text(written, encoding="utf-8")
        _sync_tree(aside)
        check_output(path, overwrite=overwrite)  # it may have come there meanwhile
        _move_into_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in parents:
            with contextlib.suppress(OSError):  # it holds the new folder
                parent.rmdir()


def _move_into_place(aside: Path, path: Path) -> None:
    """Rename a folder to `path`; what was there goes."""
    if not path.exists():
        os.replace(aside, path)
    elif not _exchange(aside, path):
        _move_in_two_steps(aside, path)
    sync_folder(path.parent)
    remove(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step; False where the system or its file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here = -100  # AT_FDCWD: both paths are as the process sees them
    return renameat2 is not None and not renameat2(here, bytes(first), here, bytes(second), _RENAME_EXCHANGE)


def _move_in_two_steps(aside: Path, path: Path) -> None:
    """As `_move_into_place`; who is killed in between leaves the old one for `aside_of` to put back."""
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    os.replace(path, old)
    try:
        os.replace(aside, path)
    except OSError:
        os.replace(old, path)
        raise
    remove(old)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))
