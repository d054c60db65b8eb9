"""What all engines have in common: some requests under way at once, in the order of their numbers."""

from __future__ import annotations

import importlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from saten_runtime.errors import DeviceError, SatenError, UsageError

__all__ = ["ANSWER_S", "MOST_WORKERS", "TRIES", "Pool", "Request", "default_workers", "given", "imported", "within"]

MOST_WORKERS = 4
# A worker that dies takes its request with it, which is begun again so many times.
TRIES = 2
# A cluster that does not answer within these seconds is not there.
ANSWER_S = 10.0
# As `saten_edge.engines.work.perform` has it: what to do, and what that takes.
Request = Mapping[str, Any]


def default_workers() -> int:
    """One for each core of this machine, up to `MOST_WORKERS`."""
    return min(_cores(), MOST_WORKERS)


def _cores() -> int:
    # Of this process; what other systems than Linux do not say.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool(ABC):
    """Answers requests that do not wait for each other; a `with` block ends what it started."""

    def __init__(self, folder: Path, workers: int = 0, threads: int = 0, address: str | None = None) -> None:
        """folder: of all files. workers: 0 is `default_workers`. threads: of each; 0 is its share of the cores.

        address: of a cluster.
        """
        self.folder = folder.resolve()
        self.workers = workers or default_workers()
        self.threads = threads or max(1, _cores() // self.workers)
        self._pool = ThreadPoolExecutor(self.workers)  # each of its threads waits for one request
        self._lock = threading.Lock()
        self._ended = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended = True
        self._end()
        self._pool.shutdown(cancel_futures=True)

    def run(self, requests: Iterable[Request], done: Callable[[int], None]) -> list[dict[str, Any]]:
        """The answers, in the order of the requests; done: called with how many there are.

        requests: one more is taken than there are workers, so that what is made for them does not pile up.

        Raises:
            SatenError: something stood in the way of a request that is not its own.
            DeviceError: a worker was lost twice with the same request.
        """
        found: dict[int, dict[str, Any]] = {}
        waiting: dict[Future[dict[str, Any]], int] = {}

        def harvest(most: int) -> None:
            while len(waiting) > most:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    found[waiting.pop(future)] = future.result()
                    done(len(found))

        same = {"folder": str(self.folder), "threads": self.threads}
        try:
            for number, request in enumerate(requests):
                waiting[self._pool.submit(self._outcome, {**request, **same})] = number
                harvest(self.workers)
            harvest(0)
        except BaseException:
            self.__exit__(None, None, None)  # a thread that waits for its process would keep us here
            raise
        return [found[number] for number in sorted(found)]

    def _outcome(self, request: Request) -> dict[str, Any]:
        for left in range(TRIES - 1, -1, -1):
            try:
                return self._ask(request)
            except DeviceError:
                if self._ended or not left:
                    raise
        raise AssertionError("unreachable")

    @abstractmethod
    def _ask(self, request: Request) -> dict[str, Any]:
        """One answer; called by several threads at once.

        Raises:
            SatenError: that the answer is.
            DeviceError: the worker was lost.
        """

    @abstractmethod
    def _end(self) -> None:
        """End what was started; what is waited for comes back with an error."""


def imported(module: str, extra: str) -> Any:
    """A module that only an engine needs.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(f"--engine {extra} needs {module}: pip install 'saten-edge[{extra}]'") from None


def within(seconds: float, what: str, connect: Callable[[], Any]) -> Any:
    """What `connect` returns.

    Raises:
        DeviceError: it did not return in time.
    """
    found: Future[Any] = Future()

    def call() -> None:
        try:
            found.set_result(connect())
        except BaseException as cause:
            found.set_exception(cause)

    threading.Thread(target=call, daemon=True).start()  # it may never come back
    if not wait([found], seconds).done:
        raise DeviceError(f"{what} gave no answer within {seconds:g} s")
    return found.result()


def given(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What a cluster's worker answered.

    Raises:
        SatenError: its error.
    """
    if "error" in answer:
        raise SatenError(answer["error"])
    found: dict[str, Any] = answer["ok"]
    return found
