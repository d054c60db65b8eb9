"""Interleaved latency, start and memory measurements of several bundles.

For each setup (threads, memory mode) every bundle first runs alone, for its memory. Then follow the
rounds: in each, every bundle is started in a fresh process, and, size by size, the bundles take
turns, in an order that changes with the round. Fresh processes, because where a process happens to
place its memory moves its latency by a few percent for as long as it lives: two processes of the
same bundle would otherwise differ, with intervals that deny it.

A run that resumes measures what is missing only; of a size that one bundle lacks in a round, all
bundles take their turn again, so that what is compared was measured together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saten_runtime.bench.floor import Rates, moved_bytes
from saten_runtime.bench.journal import FailedLine, Journal, Line, MemoryLine, SamplesLine, StartLine, StateLine
from saten_runtime.bench.plan import Key, Plan, Setup, Size, turns
from saten_runtime.bench.results import BenchResult, LoadMemory
from saten_runtime.bench.summary import Measured, Start, summary
from saten_runtime.bench.verdict import MIN_SAMPLES
from saten_runtime.bundle.folder import Bundle, open_bundles
from saten_runtime.errors import SatenError, UsageError
from saten_runtime.machine.child import Child
from saten_runtime.machine.device import State, environment
from saten_runtime.machine.load import LoadMeter
from saten_runtime.machine.lock import machine_lock
from saten_runtime.machine.memory import Memory, Watch, check_room
from saten_runtime.machine.power import Energy, EnergyMeter
from saten_runtime.records.files import key_of
from saten_runtime.records.jsonl import Notice, silent
from saten_runtime.run.kernels import probe
from saten_runtime.run.memory_modes import MEMORY_MODES, MemoryMode
from saten_runtime.run.session import session_entries
from saten_runtime.run.text import Encoder
from saten_runtime.vocabulary.tasks import PROMPTS

__all__ = ["Interrupted", "Plan", "Progress", "bench"]

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what comes next

_WARMUP_RUNS = {"run": 3, "prompt": 3, "generate": 1}
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
    resume: bool = False,
    progress: Progress | None = None,
    notice: Notice = silent,
    root: Path = Path("/"),
) -> BenchResult:
    """Measure `bundles` by `plan`; with a baseline, also the paired ratio of each to it.

    output: folder for `samples.jsonl` and `bench.json`; with `resume`, what it holds of the same
    models, options, machine and ONNX Runtime is not measured again. root: see `device`. A cell that
    fails says so in the result and the rest goes on.

    Raises:
        UsageError: the output exists, an input is longer than a bundle takes, or the bundles are of
            tasks that cannot be compared.
        BundleError: a bundle that cannot be opened.
        DeviceError: another benchmark runs on this machine.
        Interrupted: Ctrl-C, after what was measured was written.
    """
    named, base = _with_baseline(bundles, baseline)
    sizes = _sizes(named, plan)
    vocabulary = min((Encoder(bundle).vocabulary for bundle in named.values() if bundle.manifest.tokenizer), default=1)
    with machine_lock(), Journal(output, overwrite=overwrite, resume=resume, notice=notice) as journal:
        state = State.read(root)
        measured = Measured(plan, named, sizes, base, _describe(plan, named, state, root), [state])
        run = _Run(measured, vocabulary, journal, progress, root)
        run.take_over(journal.earlier)
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


def _sizes(named: dict[str, Bundle], plan: Plan) -> list[Size]:
    sizes = {name: plan.sizes(bundle.items) for name, bundle in named.items()}
    first = next(iter(sizes.values()))
    for name, bundle in named.items():
        if sizes[name] != first:
            raise UsageError(f"{', '.join(named)}: have tasks that cannot be compared; measure them separately")
        longest = max(size.longest for size in first)
        if bundle.manifest.tokenizer is not None and longest > bundle.tokenizer.max_length:
            most = bundle.tokenizer.max_length
            lower = "--tokens, --depth or --generate" if bundle.items == PROMPTS else "--tokens"
            raise UsageError(f"{name}: takes at most {most} tokens, found {longest}; lower {lower}")
    return first


def _describe(plan: Plan, named: dict[str, Bundle], before: State, root: Path) -> dict[str, Any]:
    return {
        **environment(root),
        "kernels": dataclasses.asdict(probe()),
        "before": dataclasses.asdict(before),
        "plan": plan.to_json(),
        "session_options": {mode: _session_options(MEMORY_MODES[mode]) for mode in plan.memory_modes},
        "models": {
            name: {file: entry.sha256 for file, entry in bundle.manifest.files.items()}
            for name, bundle in named.items()
        },
    }


def _session_options(mode: MemoryMode) -> dict[str, Any]:
    return {**dataclasses.asdict(mode), "entries": session_entries(mode)}


class _Run:
    """One benchmark under way: workers are asked, `measured` is filled."""

    def __init__(
        self, measured: Measured, vocabulary: int, journal: Journal, progress: Progress | None, root: Path
    ) -> None:
        self._measured, self._plan, self._vocabulary = measured, measured.plan, vocabulary
        self._journal, self._progress, self._root = journal, progress, root
        self._steps = 0
        journal.write("environment", measured.environment)

    def take_over(self, lines: Sequence[Line]) -> None:
        """Fill in what an earlier run measured of the cells of this one; a later line replaces an earlier."""
        measured, known = self._measured, {self._key_of(key): key for key in self._measured.cells()}
        starts = {self._start_key(name, setup): (name, setup) for name, setup in self._starts()}
        for line in lines:
            cell, start = known.get(line.key), starts.get(line.key)
            if isinstance(line, SamplesLine) and cell is not None:
                measured.samples[cell][line.round] = line.samples_ns
                measured.energy[cell][line.round] = line.energy
                if line.disturbance is not None:
                    measured.disturbances[cell][line.round] = line.disturbance
            elif isinstance(line, FailedLine) and cell is not None:
                measured.failed[cell] = line.reason
            elif isinstance(line, StartLine) and start is not None:
                measured.starts[start][line.round] = line.start
            elif isinstance(line, MemoryLine) and start is not None:
                measured.memory[start] = line.memory
            elif isinstance(line, StateLine) and line.key == self._machine_key():
                measured.states.append(line.state)

    def measure(self) -> None:
        if self._plan.floor:
            for threads in self._plan.threads:
                self._measure_rates(threads)
        for setup in self._plan.setups:
            for name in self._measured.bundles:
                self._step(f"{name}: memory")
                with self._failing(self._keys_of(name, setup)):
                    if (name, setup) not in self._measured.memory:
                        self._measure_memory(name, setup)
            for index in range(self._plan.rounds):
                self._measure_round(setup, index)

    def finish(self, reasons: Sequence[str]) -> BenchResult:
        result = summary(self._measured, State.read(self._root), reasons)
        self._journal.finish(result)
        return result

    def _starts(self) -> Iterator[tuple[str, Setup]]:
        return ((name, setup) for setup in self._plan.setups for name in self._measured.bundles)

    def _keys_of(self, name: str, setup: Setup) -> list[Key]:
        """The cells of a bundle that have not failed."""
        keys = (Key(name, setup, size) for size in self._measured.sizes)
        return [key for key in keys if key not in self._measured.failed]

    def _machine_key(self) -> str:
        facts = self._measured.environment
        return key_of({name: facts[name] for name in ("cpu", "board", "machine", "cores", "packages")})

    def _start_key(self, name: str, setup: Setup) -> str:
        return key_of(self._start_parts(name, setup))

    def _start_parts(self, name: str, setup: Setup) -> dict[str, Any]:
        facts = self._measured.environment
        return {
            "machine": self._machine_key(),
            "bundle": name,
            "files": facts["models"][name],
            "threads": setup.threads,
            "options": facts["session_options"][setup.memory_mode],
            "vocabulary": self._vocabulary,
        }

    def _key_of(self, key: Key) -> str:
        plan = {"rounds": self._plan.rounds, "min_time_s": self._plan.min_time_s}
        return key_of({**self._start_parts(key.bundle, key.setup), **dataclasses.asdict(key.size), **plan})

    def _step(self, what: str) -> None:
        if self._progress is not None:
            a_round = len(self._measured.sizes) + 1
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
                self._record("failed", self._key_of(key), key.bundle, key.setup, {"reason": str(error)})

    def _measure_rates(self, threads: int) -> None:
        sizes = sorted({moved_bytes(b, size) for b in self._measured.bundles.values() for size in self._measured.sizes})
        # A machine whose rates cannot be measured has no floor to show; its latencies are as good.
        with contextlib.suppress(SatenError), Child() as child:
            answer = child.ask("rates", timeout_s=self._plan.timeout_s, threads=threads, sizes=sizes)
            self._measured.rates[threads] = Rates(**answer)
            self._journal.write("rates", {"key": self._machine_key(), **answer})

    def _measure_memory(self, name: str, setup: Setup) -> None:
        check_room(name, self._measured.bundles[name].model_bytes, setup.memory_mode, self._root)
        with Child() as child, Watch(child.pid) as watch:
            base = self._memory(child)
            self._load(child, name, setup)
            loaded = self._memory(child)
            self._prepare(child, self._measured.sizes[-1])
            self._ask(child, "run", warmup=0, iterations=_STEADY_RUNS, min_ns=0)
            steady = self._memory(child)
        memory = _load_memory(base, loaded, steady, watch)
        self._measured.memory[name, setup] = memory
        self._record("memory", self._start_key(name, setup), name, setup, {"memory": dataclasses.asdict(memory)})

    def _measure_round(self, setup: Setup, index: int) -> None:
        order = turns(list(self._measured.bundles), index)
        missing = [size for size in self._measured.sizes if self._lacks(setup, size, index)]
        with contextlib.ExitStack() as stack:
            children: dict[str, Child] = {}
            for name in order:
                self._step(f"{name}: start, round {index + 1}")
                keys = self._keys_of(name, setup)
                with self._failing(keys):
                    if missing and keys:
                        children[name] = stack.enter_context(Child())
                        self._measure_start(children[name], name, setup, index)
            for key in (Key(name, setup, size) for size in self._measured.sizes for name in order):
                self._step(f"{key}, round {index + 1}")
                with self._failing([key]):
                    if key.size in missing and key not in self._measured.failed:
                        self._measure_turn(children[key.bundle], key, index)
            # Here and not later: an idle processor lowers its clock.
            if missing:
                self._record_state()

    def _lacks(self, setup: Setup, size: Size, index: int) -> bool:
        """Whether a bundle that still runs has no samples of this size in this round."""
        keys = (Key(name, setup, size) for name in self._measured.bundles)
        return any(index not in self._measured.samples[key] for key in keys if key not in self._measured.failed)

    def _record_state(self) -> None:
        state = State.read(self._root)
        self._measured.states.append(state)
        self._journal.write("state", {"key": self._machine_key(), "state": dataclasses.asdict(state)})

    def _measure_start(self, child: Child, name: str, setup: Setup, index: int) -> None:
        session_ns = self._load(child, name, setup)
        self._prepare(child, self._measured.sizes[0])
        first = self._ask(child, "run", warmup=0, iterations=1, min_ns=0)
        cold_ns = first["finished_ns"] - child.started_ns
        start = Start(cold_ns / 1e6, session_ns / 1e6, first["samples_ns"][0] / 1e6)
        self._measured.starts[name, setup][index] = start
        columns = {"round": index, "start": dataclasses.asdict(start)}
        self._record("start", self._start_key(name, setup), name, setup, columns)

    def _measure_turn(self, child: Child, key: Key, index: int) -> None:
        rounds, warmup = self._plan.rounds, _WARMUP_RUNS[key.size.phase]
        self._prepare(child, key.size)
        with LoadMeter(self._root) as load, EnergyMeter(self._root) as meter:
            answer = self._ask(
                child,
                "run",
                warmup=warmup,
                iterations=math.ceil(MIN_SAMPLES / rounds),
                min_ns=int(self._plan.min_time_s * 1e9 / rounds),
            )
        samples = answer["samples_ns"]
        energy = [Energy(one.sensor, one.joules / (len(samples) + warmup)) for one in meter.read()]
        self._measured.samples[key][index] = samples
        self._measured.energy[key][index] = energy
        disturbance = load.read(answer["elapsed_ns"] / 1e9, answer["switches"])
        self._measured.disturbances[key][index] = disturbance
        columns = {
            **dataclasses.asdict(key.size),
            "round": index,
            "samples_ns": samples,
            "energy": [dataclasses.asdict(one) for one in energy],
            "disturbance": dataclasses.asdict(disturbance),
        }
        self._record("samples", self._key_of(key), key.bundle, key.setup, columns)

    def _record(self, kind: str, key: str, name: str, setup: Setup, columns: dict[str, Any]) -> None:
        self._journal.write(kind, {"key": key, "bundle": name, **dataclasses.asdict(setup), **columns})

    def _ask(self, child: Child, verb: str, **arguments: Any) -> dict[str, Any]:
        expected_s = arguments.get("min_ns", 0) / 1e9
        return child.ask(verb, timeout_s=self._plan.timeout_s + expected_s, **arguments)

    def _load(self, child: Child, name: str, setup: Setup) -> int:
        path = str(self._measured.bundles[name].path.resolve())
        answer = self._ask(child, "load", bundle=path, threads=setup.threads, memory=setup.memory_mode)
        return int(answer["session_ns"])

    def _prepare(self, child: Child, size: Size) -> None:
        self._ask(child, "prepare", size=dataclasses.asdict(size), vocabulary=self._vocabulary)

    def _memory(self, child: Child) -> Memory:
        return Memory(**self._ask(child, "memory"))


def _load_memory(base: Memory, loaded: Memory, steady: Memory, watch: Watch) -> LoadMemory:
    peak = watch.peak(steady)
    return LoadMemory(
        base=base,
        loaded=loaded,
        steady=steady,
        peak=peak,
        peak_anon_bytes=peak.rss_anon_bytes,
        peak_rss_bytes=peak.hwm_bytes,
        interpreter_anon_bytes=base.rss_anon_bytes,
        timeline=watch.timeline(),
    )
