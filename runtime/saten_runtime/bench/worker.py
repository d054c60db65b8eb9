"""The measured process: one session, obeying JSON lines.

    python -m saten_runtime.bench.worker

Requests on stdin, one object a line, each answered by one line on stdout, {"ok": …} or
{"error": …}:

    {"do": "load", "bundle": PATH, "threads": 1, "memory": "fast"}   -> {"session_ns": …}
    {"do": "prepare", "size": {"batch": 1, "tokens": 32, …}, "vocabulary": 30522}  -> {}
    {"do": "run", "warmup": 1, "iterations": 10, "min_ns": 0}
        -> {"samples_ns": […], "finished_ns": …, "elapsed_ns": …, "switches": 3}
    {"do": "rates", "threads": 1, "sizes": [1000000]}                 -> a `floor.Rates`
    {"do": "replay", "bundle": PATH}                                  -> {"comparisons": 12, "worst": 1e-6}
    {"do": "memory"}                                                  -> a `memory.Memory`
    {"do": "quit"}                                                    -> {}, then exit

`run` goes on until there are `iterations` samples and `min_ns` have passed; `finished_ns` is the
system-wide monotonic clock, `switches` counts the involuntary context switches of all threads in `elapsed_ns`.
`replay` compares with torch, see `saten_runtime.run.parity`. The end of
stdin ends the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from saten_runtime.bench.floor import measure_rates
from saten_runtime.bench.plan import Size
from saten_runtime.bench.workload import Workload, make_workload
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import InvalidRun
from saten_runtime.machine.child import answer_requests
from saten_runtime.machine.device import available_memory_bytes
from saten_runtime.machine.load import involuntary_switches
from saten_runtime.machine.memory import snapshot
from saten_runtime.run.session import make_session

__all__ = ["main"]

# Address space beyond what is available: stacks, and arenas that are reserved and never touched.
_SLACK_BYTES = 4 << 30


class _Worker:
    def __init__(self) -> None:
        self._bundle: Bundle
        self._session: Any = None
        self._work: Workload

    def load(self, bundle: str, threads: int, memory: str) -> dict[str, Any]:
        # The process that started this one has just compared the hashes; here they would be timed.
        self._bundle = Bundle.open(bundle, check_content=False)
        _limit_memory()
        start = time.perf_counter_ns()
        self._session = make_session(self._bundle, threads=threads, memory=memory)
        return {"session_ns": time.perf_counter_ns() - start}

    def prepare(self, size: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        self._work = make_workload(self._bundle, self._session, Size(**size), vocabulary)
        return {}

    def run(self, warmup: int, iterations: int, min_ns: int) -> dict[str, Any]:
        begin, run = self._work.begin, self._work.run
        samples: list[int] = []
        outputs: list[Any] = []
        for _ in range(warmup):
            begin()
            run()
        switches = involuntary_switches()
        first = now = time.perf_counter_ns()
        while len(samples) < iterations or now - first < min_ns:
            begin()
            start = time.perf_counter_ns()
            outputs = run()
            now = time.perf_counter_ns()
            samples.append(now - start)
        finished, switches = time.monotonic_ns(), involuntary_switches() - switches
        if not all(np.isfinite(output).all() for output in outputs):
            raise InvalidRun(f"{self._bundle.name}: an output holds NaN or infinity")
        return {"samples_ns": samples, "finished_ns": finished, "elapsed_ns": now - first, "switches": switches}

    def rates(self, threads: int, sizes: list[int]) -> dict[str, Any]:
        return dataclasses.asdict(measure_rates(threads, sizes))

    def replay(self, bundle: str) -> dict[str, Any]:
        from saten_runtime.run.parity import check_parity  # here: nothing that is measured needs it

        _limit_memory()
        rows = check_parity(Bundle.open(bundle))
        return {"comparisons": len(rows), "worst": max(row.relative_error for row in rows)}

    def memory(self) -> dict[str, Any]:
        return dataclasses.asdict(snapshot())

    def quit(self) -> dict[str, Any]:
        return {}


def main() -> None:
    """Serve requests until `quit` or the end of stdin."""
    answer_requests(_verbs)


def _verbs() -> dict[str, Callable[..., dict[str, Any]]]:
    import onnxruntime  # noqa: F401  the reading "base" is taken with it loaded

    worker = _Worker()
    verbs = (worker.load, worker.prepare, worker.run, worker.rates, worker.replay, worker.memory, worker.quit)
    return {verb.__name__: verb for verb in verbs}


def _limit_memory() -> None:
    """Make a graph that folds or expands without end fail to allocate, instead of taking the machine with it."""
    available = available_memory_bytes()
    if available is not None and resource is not None:
        limit = available + _SLACK_BYTES
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
