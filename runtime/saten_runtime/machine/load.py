"""What else wants the processor while something is timed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from saten_runtime.records.reader import Count

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

__all__ = ["Disturbance", "LoadMeter", "Program", "busy_programs", "involuntary_switches"]

_ROOT = Path("/")
_STEAL = 7  # place in the `cpu` line of /proc/stat, see proc(5)
_WATCHED_S = 0.5
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Disturbance:
    """While one cell was timed in one round; None is what the machine does not tell.

    seconds: of timing. switches: how often a thread of the worker lost its core although it had more to do
    (involuntary context switches). others: processes and threads that wanted a core just before, ours aside. ticks:
    of all cores together, from the request to the answer; stolen: those of them that a hypervisor gave to others.
    """

    seconds: float
    switches: Count | None = None
    others: Count | None = None
    ticks: Count | None = None
    stolen: Count | None = None


class LoadMeter:
    """Reads the load when entered, while no process of ours has anything to do, and the stolen time until left.

    The number of processes that want a core is that of this moment. The averages that /proc/loadavg also has lag by
    minutes: they hold whatever ran before, and our own threads.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._after: tuple[int, int] | None = None

    def __enter__(self) -> LoadMeter:
        self._others = _others(self._root)
        self._before = _ticks(self._root)
        return self

    def __exit__(self, *_: object) -> None:
        self._after = _ticks(self._root)

    def read(self, seconds: float, switches: int | None) -> Disturbance:
        """After leaving; seconds and switches are what the worker says of itself."""
        if self._before is None or self._after is None:
            return Disturbance(seconds, switches, self._others)
        ticks, stolen = (max(0, after - before) for before, after in zip(self._before, self._after, strict=True))
        return Disturbance(seconds, switches, self._others, ticks, stolen)


def _others(root: Path) -> int | None:
    """The fourth field of /proc/loadavg is "runnable/all"; this reader is one of the runnable."""
    fields = _fields(root / "proc/loadavg")
    if len(fields) < 4 or not fields[3].partition("/")[0].isdigit():
        return None
    return max(0, int(fields[3].partition("/")[0]) - 1)


def _ticks(root: Path) -> tuple[int, int] | None:
    """(all, stolen) of all cores since the machine started; guests' time is counted in that of their processes."""
    name, *counts = _fields(root / "proc/stat")[: _STEAL + 2] or [""]
    if name != "cpu" or len(counts) <= _STEAL or not all(count.isdigit() for count in counts):
        return None
    return sum(map(int, counts)), int(counts[_STEAL])


def _fields(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").split()
    except OSError:
        return []


def involuntary_switches() -> int:
    """How often a thread of this process lost its core so far although it had more to do; 0 where nobody counts."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True)
class Program:
    """share: of one core, so a program of two busy threads has 2."""

    name: str
    pid: int
    share: float


def busy_programs(watched_s: float = _WATCHED_S, least_share: float = _LEAST_SHARE) -> list[Program]:
    """The other programs that take this share of a core or more now, the busiest first."""
    before, start = _cpu_seconds(), time.monotonic()
    time.sleep(watched_s)
    after, elapsed = _cpu_seconds(), time.monotonic() - start
    shares = {who: (seconds - before[who]) / elapsed for who, seconds in after.items() if who in before}
    busy = sorted(((share, who) for who, share in shares.items() if share >= least_share), reverse=True)
    return [Program(name, pid, share) for share, (pid, name) in busy]


def _cpu_seconds() -> dict[tuple[int, str], float]:
    """By (process id, name), this process left out."""
    found = psutil.process_iter(["pid", "name", "cpu_times"])
    rows = ((one.info, one.info["cpu_times"]) for one in found if one.pid != os.getpid())
    return {(info["pid"], info["name"]): times.user + times.system for info, times in rows if times is not None}
