"""Interleaved latency, start and memory measurements of several bundles.

For each setup (threads, memory mode) every bundle first runs alone, for its memory. Then follow the
rounds: in each, every bundle is started in a fresh process, and, size by size, the bundles take
turns, in an order that changes with the round. Fresh processes, because where a process happens to
place its memory moves its latency by a few percent for as long as it lives: two processes of the
same bundle would otherwise differ, with intervals that deny it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saten_runtime.bundle import Bundle, open_bundles
from saten_runtime.child import Child
from saten_runtime.device import State, environment
from saten_runtime.errors import SatenError, UsageError
from saten_runtime.kernels import probe
from saten_runtime.memory import AnonPeak, Memory
from saten_runtime.plan import Key, Plan, Setup, Size, turns
from saten_runtime.results import BenchResult, Journal, LoadMemory
from saten_runtime.session import MEMORY_MODES
from saten_runtime.summary import Measured, Start, summary
from saten_runtime.text import Encoder
from saten_runtime.verdict import MIN_SAMPLES

__all__ = ["Interrupted", "Plan", "Progress", "bench"]

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what comes next

_WARMUP_RUNS = 3
_STEADY_RUNS = 3


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a benchmark; `result` is what had been measured, marked invalid."""

    def __init__(self, result: BenchResult) -> None:
        super().__init__()
        self.result = result


def bench(
    bundles: Sequence[Bundle | str | Path],
    plan: Plan,
    *,
    baseline: Bundle | str | Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    root: Path = Path("/"),
) -> BenchResult:
    """Measure `bundles` by `plan`; with a baseline, also the paired ratio of each to it.

    output: folder for `samples.jsonl` and `bench.json`; root: see `device`. A cell that fails says
    so in the result and the rest goes on.

    Raises:
        UsageError: the output exists, or an input is longer than a bundle takes.
        BundleError: a bundle that cannot be opened.
        Interrupted: Ctrl-C, after what was measured was written.
    """
    named, base = _with_baseline(bundles, baseline)
    _check_lengths(named, plan)
    vocabulary = min(Encoder(bundle).vocabulary for bundle in named.values())
    with Journal(output, overwrite=overwrite) as journal:
        state = State.read(root)
        measured = Measured(plan, named, base, _describe(plan, named, state, root), [state])
        run = _Run(measured, vocabulary, journal, progress, root)
        try:
            run.measure()
        except KeyboardInterrupt:
            raise Interrupted(run.finish(["interrupted"])) from None
        return run.finish([])


def _with_baseline(
    bundles: Sequence[Bundle | str | Path], baseline: Bundle | str | Path | None
) -> tuple[dict[str, Bundle], str | None]:
    named = open_bundles(bundles)
    if baseline is None:
        return named, None
    path = (baseline.path if isinstance(baseline, Bundle) else Path(baseline)).resolve()
    for name, bundle in named.items():
        if bundle.path.resolve() == path:
            return named, name
    named = open_bundles([baseline, *named.values()])
    return named, next(iter(named))


def _check_lengths(named: dict[str, Bundle], plan: Plan) -> None:
    for name, bundle in named.items():
        longest = bundle.manifest.tokenizer.max_length
        if max(plan.tokens) > longest:
            raise UsageError(f"{name}: takes at most {longest} tokens, found {max(plan.tokens)}")


def _describe(plan: Plan, named: dict[str, Bundle], before: State, root: Path) -> dict[str, Any]:
    return {
        **environment(root),
        "kernels": dataclasses.asdict(probe()),
        "before": dataclasses.asdict(before),
        "plan": plan.to_json(),
        "session_options": {mode: dataclasses.asdict(MEMORY_MODES[mode]) for mode in plan.memory_modes},
        "models": {
            name: {file: entry.sha256 for file, entry in bundle.manifest.files.items()}
            for name, bundle in named.items()
        },
    }


class _Run:
    """One benchmark under way: workers are asked, `measured` is filled."""

    def __init__(
        self, measured: Measured, vocabulary: int, journal: Journal, progress: Progress | None, root: Path
    ) -> None:
        self._measured, self._plan, self._vocabulary = measured, measured.plan, vocabulary
        self._journal, self._progress, self._root = journal, progress, root
        self._steps = 0
        journal.write("environment", measured.environment)

    def measure(self) -> None:
        for setup in self._plan.setups:
            for name in self._measured.bundles:
                self._step(f"{name}: memory")
                with self._failing(self._keys_of(name, setup)):
                    self._measure_memory(name, setup)
            for index in range(self._plan.rounds):
                self._measure_round(setup, index)

    def finish(self, reasons: Sequence[str]) -> BenchResult:
        result = summary(self._measured, State.read(self._root), reasons)
        self._journal.finish(result)
        return result

    def _keys_of(self, name: str, setup: Setup) -> list[Key]:
        return [Key(name, setup, size) for size in self._plan.sizes]

    def _step(self, what: str) -> None:
        if self._progress is not None:
            a_round = len(self._plan.sizes) + 1
            each = len(self._plan.setups) * (1 + a_round * self._plan.rounds)
            self._progress(self._steps, len(self._measured.bundles) * each, what)
        self._steps += 1

    @contextlib.contextmanager
    def _failing(self, keys: Sequence[Key]) -> Iterator[None]:
        """Mark `keys` failed when the block meets one of our errors, and go on."""
        try:
            yield
        except SatenError as error:
            for key in keys:
                self._measured.failed.setdefault(key, str(error))

    def _measure_memory(self, name: str, setup: Setup) -> None:
        with Child() as child, AnonPeak(child.pid) as peak:
            base = _memory(child)
            self._load(child, name, setup)
            loaded = _memory(child)
            self._prepare(child, self._plan.sizes[-1])
            child.ask("run", warmup=0, iterations=_STEADY_RUNS, min_ns=0)
            steady = _memory(child)
        memory = _load_memory(base, loaded, steady, peak.bytes)
        self._measured.memory[name, setup] = memory
        self._record("memory", name, setup, {"memory": dataclasses.asdict(memory)})

    def _measure_round(self, setup: Setup, index: int) -> None:
        order = turns(list(self._measured.bundles), index)
        with contextlib.ExitStack() as stack:
            children: dict[str, Child] = {}
            for name in order:
                self._step(f"{name}: start, round {index + 1}")
                keys = [key for key in self._keys_of(name, setup) if key not in self._measured.failed]
                with self._failing(keys):
                    if keys:
                        children[name] = stack.enter_context(Child())
                        self._measure_start(children[name], name, setup, index)
            for key in (Key(name, setup, size) for size in self._plan.sizes for name in order):
                self._step(f"{key}, round {index + 1}")
                with self._failing([key]):
                    if key not in self._measured.failed:
                        self._measure_turn(children[key.bundle], key, index)
            # Here and not later: an idle processor lowers its clock.
            self._measured.states.append(State.read(self._root))

    def _measure_start(self, child: Child, name: str, setup: Setup, index: int) -> None:
        session_ns = self._load(child, name, setup)
        self._prepare(child, self._plan.sizes[0])
        first = child.ask("run", warmup=0, iterations=1, min_ns=0)
        cold_ns = first["finished_ns"] - child.started_ns
        start = Start(cold_ns / 1e6, session_ns / 1e6, first["samples_ns"][0] / 1e6)
        self._measured.starts[name, setup].append(start)
        self._record("start", name, setup, {"round": index, **dataclasses.asdict(start)})

    def _measure_turn(self, child: Child, key: Key, index: int) -> None:
        rounds = self._plan.rounds
        self._prepare(child, key.size)
        answer = child.ask(
            "run",
            warmup=_WARMUP_RUNS,
            iterations=math.ceil(MIN_SAMPLES / rounds),
            min_ns=int(self._plan.min_time_s * 1e9 / rounds),
        )
        self._measured.samples[key].append(answer["samples_ns"])
        columns = {**dataclasses.asdict(key.size), "round": index, "samples_ns": answer["samples_ns"]}
        self._record("samples", key.bundle, key.setup, columns)

    def _record(self, kind: str, name: str, setup: Setup, columns: dict[str, Any]) -> None:
        self._journal.write(kind, {"bundle": name, **dataclasses.asdict(setup), **columns})

    def _load(self, child: Child, name: str, setup: Setup) -> int:
        path = str(self._measured.bundles[name].path.resolve())
        answer = child.ask("load", bundle=path, threads=setup.threads, memory=setup.memory_mode)
        return int(answer["session_ns"])

    def _prepare(self, child: Child, size: Size) -> None:
        child.ask("prepare", batch=size.batch, tokens=size.tokens, vocabulary=self._vocabulary)


def _memory(child: Child) -> Memory:
    return Memory(**child.ask("memory"))


def _load_memory(base: Memory, loaded: Memory, steady: Memory, peak_anon_bytes: int | None) -> LoadMemory:
    seen = [reading.rss_anon_bytes for reading in (base, loaded, steady)] + [peak_anon_bytes]
    return LoadMemory(
        base=base,
        loaded=loaded,
        steady=steady,
        peak_anon_bytes=max((size for size in seen if size is not None), default=None),
        peak_rss_bytes=steady.hwm_bytes,
        interpreter_anon_bytes=base.rss_anon_bytes,
    )
