"""Where tasks run, as a table: files in, files out, the same outcomes under every engine and any number of workers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from saten_edge.optimize.tasks import Task
from saten_runtime.errors import DeviceError
from saten_runtime.machine.child import Child

__all__ = ["ENGINES", "Engine", "Local", "default_workers"]

_WORKER = "from saten_edge.optimize.tasks import serve; serve()"
MOST_WORKERS = 4
# A worker that dies takes its task with it, which is begun again so many times.
TRIES = 2


def default_workers() -> int:
    """One for each core of this machine, up to `MOST_WORKERS`."""
    return min(_cores(), MOST_WORKERS)


def _cores() -> int:
    # Of this process; what other systems than Linux do not say.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Engine(Protocol):
    """Runs tasks that do not wait for each other; a `with` block ends what it started. threads: of each process."""

    threads: int

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, tasks: Sequence[Task], done: Callable[[int], None]) -> list[dict[str, Any]]:
        """The outcomes, in the order of the tasks; done: called with how many are.

        Raises:
            SatenError: something stood in the way of a task that is not the task's own.
        """
        ...


class Local:
    """A pool of processes on this machine, which share its cores; each is started when there is something for it."""

    def __init__(self, work: Path, workers: int = 0, threads: int = 0) -> None:
        """work: folder of the tasks. workers: 0 is `default_workers`. threads: of each; 0 is its share of the cores."""
        self.workers = workers or default_workers()
        self.threads = threads or max(1, _cores() // self.workers)
        self._work = work
        self._environment = {"OMP_NUM_THREADS": str(self.threads)}
        # Of one pool, whatever is run: each of its threads has a process, which holds the libraries in memory.
        self._pool = ThreadPoolExecutor(self.workers)
        self._own, self._children, self._lock = threading.local(), set[Child](), threading.Lock()
        self._ended = False

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended = True
        for child in self._children:
            child.__exit__(None, None, None)
        self._pool.shutdown(cancel_futures=True)

    def run(self, tasks: Sequence[Task], done: Callable[[int], None]) -> list[dict[str, Any]]:
        """As `Engine` has it."""
        finished = iter(range(1, len(tasks) + 1))

        def one(task: Task) -> dict[str, Any]:
            found = self._outcome(task)
            with self._lock:
                done(next(finished))
            return found

        try:
            return list(self._pool.map(one, tasks))
        except BaseException:
            self.__exit__(None, None, None)  # a thread that waits for its process would keep us here
            raise

    def _outcome(self, task: Task) -> dict[str, Any]:
        for left in range(TRIES - 1, -1, -1):
            try:
                return self._child().ask("run", task=task.to_json(), work=str(self._work))
            except DeviceError:
                self._own.child = None
                if self._ended or not left:
                    raise
        raise AssertionError("unreachable")

    def _child(self) -> Child:
        child: Child | None = getattr(self._own, "child", None)
        if child is None:
            with self._lock:  # whoever ends the pool has to see every process
                if self._ended:
                    raise DeviceError("the search has ended; --resume goes on with it")
                child = self._own.child = Child(_WORKER, self._environment)
                self._children.add(child)
        return child


# name → engine, from the folder of the tasks, the number of workers, and the threads of each
ENGINES: Mapping[str, Callable[[Path, int, int], Engine]] = {"local": Local}
