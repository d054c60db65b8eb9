"""A pool of processes on this machine."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from saten_edge.engines.pool import Pool, Request
from saten_runtime.errors import DeviceError
from saten_runtime.machine.child import Child

__all__ = ["Local"]

_WORKER = "from saten_edge.engines.work import serve; serve()"


class Local(Pool):
    """Processes that share the cores; each is started when there is something for it, and keeps its libraries."""

    def __init__(self, folder: Path, workers: int = 0, threads: int = 0, address: str | None = None) -> None:
        super().__init__(folder, workers, threads)
        self._own, self._children = threading.local(), set[Child]()

    def _ask(self, request: Request) -> dict[str, Any]:
        try:
            return self._child().ask("perform", request=dict(request))
        except DeviceError:
            self._own.child = None
            raise

    def _child(self) -> Child:
        child: Child | None = getattr(self._own, "child", None)
        if child is None:
            with self._lock:  # whoever ends the pool has to see every process
                if self._ended:
                    raise DeviceError("the work has ended; --resume goes on with it")
                child = self._own.child = Child(_WORKER, {"OMP_NUM_THREADS": str(self.threads)})
                self._children.add(child)
        return child

    def _end(self) -> None:
        for child in self._children:
            child.__exit__(None, None, None)
