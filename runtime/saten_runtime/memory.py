"""Memory of a process as the kernel counts it, in bytes.

rss_anon: private pages without a file, what an out-of-memory killer counts. rss_file: mapped file
pages, which the kernel may drop and read again. pss: all of it, shared pages divided by their
users. hwm: highest rss (anonymous and file) since the process started.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = ["PERIOD_S", "AnonPeak", "Memory", "snapshot"]

# The kernel keeps no high-water mark of anonymous memory alone, so it is sampled: a peak shorter
# than this is missed. One reading costs about 0.05 ms.
PERIOD_S = 0.002


@dataclass(frozen=True)
class Memory:
    """One reading; None is what the kernel does not tell (see the module for the meaning)."""

    rss_anon_bytes: int | None
    rss_file_bytes: int | None
    pss_bytes: int | None
    hwm_bytes: int | None


def snapshot(pid: int | str = "self", root: Path = Path("/")) -> Memory:
    """Read `root`/proc/`pid` now."""
    folder = root / "proc" / str(pid)
    status = _kibibytes(folder / "status")
    return Memory(
        rss_anon_bytes=status.get("RssAnon"),
        rss_file_bytes=status.get("RssFile"),
        pss_bytes=_kibibytes(folder / "smaps_rollup").get("Pss"),
        hwm_bytes=status.get("VmHWM"),
    )


class AnonPeak:
    """Highest RssAnon of another process between entering and leaving, sampled every `PERIOD_S`.

    The sampling thread runs here, in the process that waits, so that the measured one has no
    thread more than it has in use.
    """

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        self._status = root / "proc" / str(pid) / "status"
        self._peak: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> AnonPeak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def bytes(self) -> int | None:
        """The peak so far; None before the first reading."""
        return self._peak

    def _sample(self) -> None:
        while not self._stop.is_set():
            now = _kibibytes(self._status).get("RssAnon")
            if now is not None:
                self._peak = max(self._peak or 0, now)
            self._stop.wait(PERIOD_S)


def _kibibytes(path: Path) -> dict[str, int]:
    """The "Name:   123 kB" lines of a /proc file, in bytes; nothing when it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in fields if len(parts) == 3 and parts[2] == "kB"}
