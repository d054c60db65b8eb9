"""Ray Core: the workers of a Ray cluster, or of one that is started on this machine.

A Ray cluster runs whatever is sent to it, and whoever reaches its ports can send: see docs/security.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from saten_edge.engines.pool import ANSWER_S, Pool, Request, given, imported, within
from saten_edge.engines.work import answer
from saten_runtime.errors import DeviceError, UsageError
from saten_runtime.records.plain_text import one_line

__all__ = ["Ray"]

# Requests and answers are short; what they are about lies in files.
STORE_BYTES = 100 << 20


class Ray(Pool):
    """Tasks of Ray Core. address: host:port of a cluster, or "auto" for that of this machine; None starts one."""

    def __init__(self, folder: Path, workers: int = 0, threads: int = 0, address: str | None = None) -> None:
        super().__init__(folder, workers, threads)
        self._ray = imported("ray", "ray")
        if self._ray.is_initialized():
            raise UsageError("--engine ray: this process is connected to Ray already; call ray.shutdown() first")
        try:
            if address is None:  # starting one takes longer than asking one
                cores = self.workers * self.threads
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # our programs report nothing to anybody
                self._ray.init(
                    num_cpus=cores, include_dashboard=False, object_store_memory=STORE_BYTES, log_to_driver=False
                )
            else:
                within(ANSWER_S, f"--address {address}", lambda: self._ray.init(address, log_to_driver=False))
        except DeviceError:
            raise
        except Exception as cause:  # Ray has no error of its own for a cluster of another version, or for none
            raise DeviceError(f"--engine ray: {_refusal(cause, address)}") from None
        environment = {"env_vars": {"OMP_NUM_THREADS": str(self.threads)}}
        self._answer = self._ray.remote(num_cpus=self.threads, max_retries=0, runtime_env=environment)(answer)

    def _ask(self, request: Request) -> dict[str, Any]:
        try:
            return given(self._ray.get(self._answer.remote(dict(request))))
        except self._ray.exceptions.RayError as cause:
            raise DeviceError(f"a worker of Ray was lost ({one_line(cause, 200)})") from None

    def _end(self) -> None:
        self._ray.shutdown()


def _refusal(cause: Exception, address: str | None) -> str:
    words = one_line(cause, 200)
    if "ersion mismatch" in words:
        return f"{words}; install the cluster's versions here, or these there"
    return f"no cluster at {address}: {words}" if address else f"Ray did not start here: {words}"
