"""Memory of a process as the kernel counts it, in bytes.

rss_anon: private pages without a file, what an out-of-memory killer counts. rss_file: mapped file
pages, which the kernel may drop and read again; where it does not tell the two apart, as on macOS and Windows, rss_anon
is all that is resident. pss: all of it, shared pages divided by their
users. hwm: highest rss (anonymous and file) since the process started.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from saten_runtime.errors import DeviceError
from saten_runtime.machine.device import available_memory_bytes
from saten_runtime.records.reader import Count

__all__ = ["MOST_POINTS", "PERIOD_S", "Memory", "Timeline", "Watch", "check_room", "needed_bytes", "snapshot"]

# The kernel keeps no high-water mark of anonymous memory alone, so it is sampled: a peak shorter
# than this is missed. One reading costs about 0.05 ms.
PERIOD_S = 0.002
_PSS_EVERY = 20  # samples: the kernel walks every mapping to sum it up
MOST_POINTS = 200

_INTERPRETER_BYTES = 60 << 20
_WEIGHT_COPIES = {"fast": 2, "small": 1}


@dataclass(frozen=True)
class Memory:
    """One reading; None is what the kernel does not tell (see the module for the meaning)."""

    rss_anon_bytes: Count | None = None
    rss_file_bytes: Count | None = None
    pss_bytes: Count | None = None
    hwm_bytes: Count | None = None


def snapshot(pid: int | str = "self", root: Path = Path("/")) -> Memory:
    """Read `root`/proc/`pid` now."""
    folder = root / "proc" / str(pid)
    status = _kibibytes(folder / "status") or _without_proc(pid, root)
    return Memory(
        rss_anon_bytes=status.get("RssAnon"),
        rss_file_bytes=status.get("RssFile"),
        pss_bytes=_kibibytes(folder / "smaps_rollup").get("Pss"),
        hwm_bytes=status.get("VmHWM"),
    )


def needed_bytes(weights_bytes: int, memory_mode: str) -> int:
    """What a process will take that loads a graph and weights of so many bytes, by the mode of the session.

    Measured: Python with numpy and ONNX Runtime takes 40 to 60 MiB, and loading with prepacking
    holds the weights up to twice.
    """
    return _INTERPRETER_BYTES + weights_bytes * _WEIGHT_COPIES[memory_mode]


def check_room(name: str, weights_bytes: int, memory_mode: str, root: Path = Path("/")) -> None:
    """Refuse what would be killed, before it is started.

    Raises:
        DeviceError: the machine has less memory available than `needed_bytes`.
    """
    available, needed = available_memory_bytes(root), needed_bytes(weights_bytes, memory_mode)
    if available is not None and available < needed:
        raise DeviceError(
            f"{name}: needs about {needed >> 20} MiB of memory in mode {memory_mode}, {available >> 20} MiB are "
            "available; stop other programs, take --memory small, or a smaller bundle"
        )


@dataclass(frozen=True)
class Timeline:
    """Memory over time: milliseconds since the process started, bytes; at most `MOST_POINTS` points."""

    times_ms: list[float] = field(default_factory=list)
    rss_anon_bytes: list[Count] = field(default_factory=list)
    rss_file_bytes: list[Count] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.times_ms) == len(self.rss_anon_bytes) == len(self.rss_file_bytes):
            raise ValueError("found lists of different lengths, expected one value per moment in each")


class Watch:
    """Memory of another process between entering and leaving, sampled every `PERIOD_S`.

    The sampling thread runs here, in the process that waits, so that the measured one has no
    thread more than it has in use.
    """

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        self._root, self._folder = root, root / "proc" / str(pid)
        self._start = time.monotonic()
        self._points: list[tuple[float, int, int]] = []
        self._pss: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def peak(self, last: Memory) -> Memory:
        """The largest of each number so far; `last`: a reading at the end, with the kernel's own high-water mark.

        The sum of the parts exceeds hwm_bytes where they peak at different moments.
        """
        return Memory(
            rss_anon_bytes=_largest([point[1] for point in self._points], last.rss_anon_bytes),
            rss_file_bytes=_largest([point[2] for point in self._points], last.rss_file_bytes),
            pss_bytes=_largest(self._pss, last.pss_bytes),
            hwm_bytes=last.hwm_bytes,
        )

    def timeline(self) -> Timeline:
        """The samples so far; of more than `MOST_POINTS`, the highest of each stretch."""
        size = math.ceil(len(self._points) / MOST_POINTS) or 1
        stretches = [self._points[start : start + size] for start in range(0, len(self._points), size)]
        points = [max(stretch, key=lambda point: point[1]) for stretch in stretches]
        return Timeline([round(ms, 1) for ms, _, _ in points], [anon for _, anon, _ in points], [f for *_, f in points])

    def _sample(self) -> None:
        for turn in itertools.count():
            if self._stop.is_set():
                return
            now = _kibibytes(self._folder / "status") or _without_proc(self._folder.name, self._root)
            if "RssAnon" in now:
                ms = 1000 * (time.monotonic() - self._start)
                self._points.append((ms, now["RssAnon"], now.get("RssFile", 0)))
            if turn % _PSS_EVERY == 0 and (pss := _kibibytes(self._folder / "smaps_rollup").get("Pss")):
                self._pss.append(pss)
            self._stop.wait(PERIOD_S)


def _largest(samples: list[int], last: int | None) -> int | None:
    return max([*samples, *([] if last is None else [last])], default=None)


def _without_proc(pid: int | str, root: Path) -> dict[str, int]:
    """What psutil tells of a process where there is no /proc; nothing of a process that ended."""
    if root != Path("/") or (root / "proc/self").exists():
        return {}
    import psutil

    try:
        found = psutil.Process(None if pid == "self" else int(pid)).memory_info()
    except psutil.Error:
        return {}
    peak = {"VmHWM": int(found.peak_wset)} if hasattr(found, "peak_wset") else {}
    return {"RssAnon": int(found.rss), **peak}


def _kibibytes(path: Path) -> dict[str, int]:
    """The "Name:   123 kB" lines of a /proc file, in bytes; nothing when it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in fields if len(parts) == 3 and parts[2] == "kB"}
