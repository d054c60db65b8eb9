"""JSON Lines that survive a crash: each line is on the disk before the next is begun, half a line is dropped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from saten_runtime.errors import DataError, UsageError
from saten_runtime.records.files import parse_object, replace_file, sync_folder
from saten_runtime.records.system import lock

__all__ = ["LineWriter", "Notice", "read_lines", "rewrite_lines", "silent"]

Notice = Callable[[str], None]  # takes one line meant for a person


def silent(_: str) -> None:
    """A notice for nobody."""


class LineWriter:
    """Appends lines to a file that nobody else writes meanwhile; a path of None writes nowhere.

    Without `keep`, what the file held is lost; with it, only half a line at its end is.

    Raises:
        UsageError: another process has the file open to write.
    """

    def __init__(self, path: Path | None, *, keep: bool = False, notice: Notice = silent) -> None:
        self._file: TextIO | None = None
        if path is None:
            return
        self._file = path.open("a", encoding="utf-8")
        try:
            lock(self._file)
            content = path.read_bytes() if keep else b""
            whole = content.rfind(b"\n") + 1
            if len(content) > whole:
                notice(_broken(path))
            self._file.truncate(whole)
            sync_folder(path.parent)
        except BlockingIOError:
            self._file.close()
            raise UsageError(f"{path}: another run is writing it; wait for it, or choose another output") from None
        except OSError:
            self._file.close()
            raise

    def write(self, values: dict[str, Any]) -> None:
        """Append one line; on return it is on the disk."""
        self.write_all([values])

    def write_all(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append lines; on return they are on the disk.

        Raises:
            OSError: a full disk; what was written before stays.
        """
        if self._file is None:
            return
        try:
            self._file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as cause:  # writing, unlike opening, does not say where
            raise OSError(cause.errno, cause.strerror, self._file.name) from None

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take was reported when it was written
                self._file.close()

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_lines(path: Path, notice: Notice = silent) -> list[dict[str, Any]]:
    """The objects of a file, one per line; half a line at the end is dropped with a notice.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as cause:
        raise DataError(f"{path}: cannot be read ({cause.strerror})") from None
    if rest:
        notice(_broken(path))
    return [
        parse_object(line, f"{path}:{number}", DataError, "was the file edited?")
        for number, line in enumerate(lines, 1)
    ]


def _broken(path: Path) -> str:
    return f"{path}: the last line is broken and was dropped; whoever wrote it was interrupted"


def rewrite_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the file by `rows`, atomically."""
    replace_file(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
