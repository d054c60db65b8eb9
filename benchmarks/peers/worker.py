"""The measured process of one engine, obeying JSON lines as `saten_runtime.bench.worker` does.

Requests and what they answer:

    {"do": "load", "engine": …, "artifact": PATH, "threads": 1}   -> {"load_ns": …}
    {"do": "logits", "inputs": PATH}                              -> {"logits": [[…], …]}
    {"do": "run", "shape": [1, 32], "iterations": 3, "min_ns": 0} -> {"samples_ns": […]}
    {"do": "memory"}                                              -> a `saten_runtime.machine.memory.Memory`

inputs: an .npz of arrays, each run by itself. shape: of random ids (batch, tokens) or pixels (batch, channels,
height, width).
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peers.engines import ENGINES, Classify, Input
from saten_runtime.machine.child import answer_requests
from saten_runtime.machine.memory import snapshot
from saten_runtime.records.plain_text import one_line

WARMUP_RUNS, WARMUP_NS = 3, 200_000_000  # whichever is over first
# Ids that every vocabulary has and that mean nothing to any of them.
IDS = range(100, 1000)


class Worker:
    """One engine with one model."""

    classify: Classify

    def load(self, engine: str, artifact: str, threads: int) -> dict[str, Any]:
        """Start the engine."""
        start = time.perf_counter_ns()
        self.classify = ENGINES[engine](Path(artifact), threads)
        return {"load_ns": time.perf_counter_ns() - start}

    def logits(self, inputs: str) -> dict[str, Any]:
        """What it says of each input, the rows of a batch one after the other."""
        with np.load(inputs) as arrays:
            return {"logits": [row for x in arrays.values() for row in self.classify(x).tolist()]}

    def run(self, shape: Sequence[int], iterations: int, min_ns: int) -> dict[str, Any]:
        """Time it."""
        x = random_input(shape)
        return {"samples_ns": samples(lambda: self.classify(x), iterations, min_ns)}

    def memory(self) -> dict[str, Any]:
        """A reading."""
        return dataclasses.asdict(snapshot())


def samples(work: Callable[[], object], iterations: int, min_ns: int) -> list[int]:
    """Nanoseconds of each of at least so many runs of `work`, for at least so long, after a warm-up."""
    end = time.perf_counter_ns() + WARMUP_NS
    for _ in range(WARMUP_RUNS):
        work()
        if time.perf_counter_ns() > end:
            break
    found: list[int] = []
    first = now = time.perf_counter_ns()
    while len(found) < iterations or now - first < min_ns:
        start = time.perf_counter_ns()
        work()
        now = time.perf_counter_ns()
        found.append(now - start)
    return found


def random_input(shape: Sequence[int]) -> Input:
    """Ids or pixels, the same for the same shape."""
    chance = np.random.default_rng(list(shape))
    if len(shape) == 2:
        return chance.choice(IDS, shape).astype(np.int64)
    return chance.standard_normal(shape, np.float32)


def main() -> None:
    serve(Worker())


def serve(worker: Any) -> None:
    """Answer requests by the methods of `worker` until stdin ends; an engine that cannot is a row that says so."""
    warnings.simplefilter("ignore")
    methods = {name: getattr(worker, name) for name in dir(worker) if not name.startswith("_")}
    verbs = {name: method for name, method in methods.items() if callable(method)}
    answer_requests(lambda: verbs, Exception, lambda error: f"{type(error).__name__}: {one_line(error, 300)}")
