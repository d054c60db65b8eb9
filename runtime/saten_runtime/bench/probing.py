"""How long single nodes take on this device: what `saten-edge devices calibrate` fits the prices of forms to.

A file of probes is a zip archive of small ONNX models and of `PROBES_FILE`, which lists them. In each round a fresh
process loads all of them, with the native kernels or without, and for each number of rows they take turns.
"""

from __future__ import annotations

import dataclasses
import time
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saten_runtime.bench.plan import turns
from saten_runtime.bench.results import Verdict
from saten_runtime.bench.stats import summarize
from saten_runtime.bench.verdict import Timed, emulation_reasons, judge
from saten_runtime.errors import DataError, RuntimeMismatch
from saten_runtime.machine.child import Child, answer_requests
from saten_runtime.machine.device import State, environment
from saten_runtime.machine.load import Disturbance, LoadMeter, involuntary_switches
from saten_runtime.machine.lock import machine_lock
from saten_runtime.records.files import parse_object, sha256_file
from saten_runtime.records.plain_text import printable
from saten_runtime.records.reader import Count, Natural, Positive, Reader, read_result
from saten_runtime.run import kernels
from saten_runtime.run.memory_modes import MEMORY_MODES
from saten_runtime.run.session import ort_errors, session_options

__all__ = [
    "IDLE",
    "PROBES_FILE",
    "SCHEMA_VERSION",
    "Probe",
    "ProbeTime",
    "Probes",
    "ProbingResult",
    "device_facts",
    "few",
    "read_probing",
    "time_probes",
]

SCHEMA_VERSION = 1
PROBES_FILE = "probes.json"
IDLE = "idle"  # the probe that computes nothing

_ROUNDS = 5
_LEAST_RUNS = 4
_TURN_S = 2e-3
_LIMIT_S = 150.0  # no round begins that would end later, beyond the first; two more minutes are for loading
_ANSWER_LIMIT_S = 1800.0
_MOST_PROBE_BYTES = 64 << 20
_MOST_REASONS = 5
_WORKER = "from saten_runtime.bench.probing import _main; _main()"


@dataclass(frozen=True)
class Probe:
    """A model from x to y. name: of its file; width: of a row of x. ids: x (rows) are numbers below this; 0 is none.

    native: the kernels run its node, which is the point of it.
    """

    name: str
    width: Count
    ids: Count = 0
    native: bool = False


@dataclass(frozen=True)
class Probes:
    """What an archive holds, `IDLE` among it; rows: the numbers of rows of x to time each with, one at least."""

    schema_version: int
    rows: list[Natural]
    probes: list[Probe]


@dataclass(frozen=True)
class ProbeTime:
    """The median of `count` runs of a probe on `rows` rows."""

    probe: str
    rows: Natural
    count: Natural
    p50_ns: Positive


@dataclass(frozen=True)
class ProbingResult:
    """Content of `calibrate.json`. probes: sha256 of the archive; idle_ns: what a run costs that computes nothing."""

    schema_version: int
    probes: str
    environment: dict[str, Any]
    verdict: Verdict
    idle_ns: Positive
    times: list[ProbeTime]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return dataclasses.asdict(self)


def read_probing(value: object) -> ProbingResult:
    """The content of `calibrate.json`, its strings made printable.

    Raises:
        DataError: another schema version, or a field missing, of a wrong type or out of range.
    """
    return read_result(ProbingResult, value, "calibrate.json", SCHEMA_VERSION)


def device_facts(root: Path = Path("/")) -> dict[str, Any]:
    """What this device is: `environment`, and the state of the native kernels."""
    return {**environment(root), "kernels": dataclasses.asdict(kernels.probe())}


def time_probes(archive: Path, *, rounds: int = _ROUNDS, limit_s: float = _LIMIT_S) -> ProbingResult:
    """Time every probe of an archive with each of its numbers of rows; native ones where the kernels are active.

    Raises:
        DataError: the archive is damaged.
        RuntimeMismatch: this ONNX Runtime lacks an operator.
        DeviceError: a benchmark runs on this machine, or a process died.
    """
    listed = _listed(archive)
    with machine_lock():
        facts = device_facts()
        active = facts["kernels"]["state"] == "active"
        names = [probe.name for probe in listed.probes if active or not probe.native]
        samples, disturbances, states = _measure(archive, names, listed.rows, rounds, limit_s)
    # Probes that took turns share what disturbed them; told once, the limits for too few readings hold.
    cells = [
        Timed(f"{name}, {rows} rows", found, disturbances=disturbances.pop(rows, ()))
        for (name, rows), found in samples.items()
        if name != IDLE
    ]
    verdict = judge(states, cells, emulation_reasons(facts["emulator"]), cores=facts["cores"])
    times = [_time(name, rows, found) for (name, rows), found in samples.items()]
    idle_ns = min(each.p50_ns for each in times if each.probe == IDLE)
    return ProbingResult(
        SCHEMA_VERSION,
        sha256_file(archive),
        facts,
        Verdict(verdict.valid, few(verdict.reasons)),
        idle_ns,
        [each for each in times if each.probe != IDLE],
    )


Samples = dict[tuple[str, int], list[list[int]]]


def _measure(
    archive: Path, names: Sequence[str], rows: Sequence[int], rounds: int, limit_s: float
) -> tuple[Samples, dict[int, list[Disturbance]], list[State]]:
    """Samples (ns) by probe and rows, one list per round; as many rounds as fit into the limit, one at least.

    Then what disturbed the turns, by rows, and the states of the machine.
    """
    samples: Samples = defaultdict(list)
    disturbances: dict[int, list[Disturbance]] = defaultdict(list)
    states = [State.read()]
    started = time.monotonic()
    for index in range(rounds):
        if index and (time.monotonic() - started) * (index + 1) / index > limit_s:
            break
        with Child(_WORKER) as child:
            child.ask("load", archive=str(archive.resolve()), names=turns(names, index), timeout_s=_ANSWER_LIMIT_S)
            for count in rows:
                with LoadMeter(Path("/")) as load:
                    answer = child.ask("turn", rows=count, timeout_s=_ANSWER_LIMIT_S)
                disturbances[count].append(load.read(answer["elapsed_ns"] / 1e9, answer["switches"]))
                for name, found in answer["samples_ns"].items():
                    samples[name, count].append(found)
        states.append(State.read())
    return samples, disturbances, [*states, State.read()]


def _time(name: str, rows: int, found: list[list[int]]) -> ProbeTime:
    every = [ns for each in found for ns in each]
    return ProbeTime(name, rows, len(every), summarize(every).p50)


def few(reasons: list[str]) -> list[str]:
    """The first of the reasons, and how many more there are: thousands of cells may have one each."""
    more = len(reasons) - _MOST_REASONS
    return [*reasons[:_MOST_REASONS], *([f"and {more} more of the kind"] if more > 0 else [])]


def _listed(archive: Path) -> Probes:
    """What the archive says it holds.

    Raises:
        DataError: it is damaged.
    """
    content = _member(archive, PROBES_FILE)
    value = parse_object(content, f"{archive}: {PROBES_FILE}", DataError, "send it again")
    probes = Reader(DataError, exact=True, text=printable).read(Probes, value, PROBES_FILE)
    if probes.schema_version != SCHEMA_VERSION:
        raise DataError(f"{archive}: schema_version is {probes.schema_version}, expected {SCHEMA_VERSION}")
    if not probes.rows or IDLE not in {probe.name for probe in probes.probes if not probe.native}:
        raise DataError(f"{archive}: {PROBES_FILE} has no rows, or no probe {IDLE!r}; send it again")
    return probes


def _member(archive: Path, name: str) -> bytes:
    """A file of the archive.

    Raises:
        DataError: it is not there, or damaged, or too large to be a probe.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            if opened.getinfo(name).file_size > _MOST_PROBE_BYTES:
                raise DataError(f"{archive}: {name} is larger than {_MOST_PROBE_BYTES} bytes")
            return opened.read(name)
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as cause:
        raise DataError(f"{archive}: expected an archive of probes ({cause}); send it again") from None


class _Worker:
    """One round: every probe as a session on one thread, in the order of their turns."""

    def __init__(self) -> None:
        self._probes: list[tuple[Probe, Any]] = []

    def load(self, archive: str, names: list[str]) -> dict[str, Any]:
        listed = {probe.name: probe for probe in _listed(Path(archive)).probes}
        for name in names:
            self._probes.append((listed[name], _session(_member(Path(archive), name), listed[name])))
        return {}

    def turn(self, rows: int) -> dict[str, Any]:
        switches, started = involuntary_switches(), time.perf_counter_ns()
        samples = {probe.name: list(_samples(session, _feeds(probe, rows))) for probe, session in self._probes}
        elapsed = time.perf_counter_ns() - started
        return {"samples_ns": samples, "elapsed_ns": elapsed, "switches": involuntary_switches() - switches}


def _session(content: bytes, probe: Probe) -> Any:
    import onnxruntime

    options = session_options(1, MEMORY_MODES["fast"])
    if probe.native:
        kernels.register(options)
    with ort_errors(f"probe {probe.name}", RuntimeMismatch):
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _feeds(probe: Probe, rows: int) -> Mapping[str, Any]:
    chance = np.random.default_rng(rows)
    x = chance.integers(0, probe.ids, rows) if probe.ids else chance.standard_normal((rows, probe.width), np.float32)
    return {"x": x}


def _samples(session: Any, feeds: Mapping[str, Any]) -> Iterator[int]:
    """Nanoseconds of runs that take `_TURN_S` together, `_LEAST_RUNS` at least; the first, untimed, warms up."""
    session.run(None, feeds)
    count, end = 0, time.perf_counter_ns() + _TURN_S * 1e9
    now = time.perf_counter_ns()
    while count < _LEAST_RUNS or now < end:
        session.run(None, feeds)
        now, before = time.perf_counter_ns(), now
        count += 1
        yield now - before


def _main() -> None:
    answer_requests(_verbs)


def _verbs() -> dict[str, Callable[..., dict[str, Any]]]:
    worker = _Worker()
    return {verb.__name__: verb for verb in (worker.load, worker.turn)}
