"""What `saten_runtime` writes, as dataclasses: bench.json, eval.json and a fine-tune history.

The dataclasses are the schema. Fields they do not name are left alone, so that a newer runtime may
record more; a field that is missing, of another type or out of range is refused with its path.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any

from saten_edge.reports.text import printable
from saten_runtime.bench.profiling import ProfileRow
from saten_runtime.errors import DataError

__all__ = [
    "SCHEMA_VERSION",
    "Bench",
    "Cell",
    "Evaluation",
    "EvaluationData",
    "EvaluationRow",
    "Load",
    "Memory",
    "MemoryPoint",
    "Profile",
    "Ratio",
    "Step",
    "Timeline",
    "Verdict",
    "read_bench",
    "read_evaluation",
    "read_history",
    "read_profile",
]

SCHEMA_VERSION = 1

_RULES: dict[str, typing.Callable[[float], bool]] = {
    "above 0": lambda value: value > 0,
    "0 or more": lambda value: value >= 0,
}
Positive = Annotated[float, "above 0"]
Natural = Annotated[int, "above 0"]
Count = Annotated[int, "0 or more"]


@dataclass(frozen=True)
class Ratio:
    """Paired time ratio to the bundle `to` with its 95 % interval; below 1 is faster."""

    to: str
    value: Positive
    low: Positive
    high: Positive


@dataclass(frozen=True)
class Floor:
    """The time no program could beat on this machine, and which of compute and memory it is."""

    ms: Positive
    bound: str


@dataclass(frozen=True)
class Energy:
    """Joules of one run, of the machine part a sensor watches."""

    sensor: str
    joules: float


@dataclass(frozen=True)
class Cell:
    """Latency of one bundle in one setting: `count` samples, milliseconds, or why it failed.

    phase: "run", or for decoders "prompt" and "generate", after `depth` tokens that were read
    before. quantiles_ms: the percentiles 0, 5 … 100, or empty.
    """

    bundle: str
    threads: Natural
    batch: Natural
    tokens: Natural
    memory_mode: str
    count: Count = 0
    p50_ms: Positive | None = None
    p90_ms: Positive | None = None
    p99_ms: Positive | None = None
    mean_ms: Positive | None = None
    phase: str = "run"
    depth: Count = 0
    p95_ms: Positive | None = None
    trimmed_mean_ms: Positive | None = None
    quantiles_ms: list[Positive] = field(default_factory=list)
    tokens_per_s: Positive | None = None
    ttft_ms: Positive | None = None
    energy: list[Energy] = field(default_factory=list)
    floor: Floor | None = None
    ratio: Ratio | None = None
    failed: str | None = None

    def __post_init__(self) -> None:
        if self.failed is None and self.p50_ms is None:
            raise ValueError("found neither p50_ms nor failed; expected one of them")


@dataclass(frozen=True)
class MemoryPoint:
    """A process's memory at one moment, bytes; None where the system does not tell."""

    rss_anon_bytes: Count | None = None
    rss_file_bytes: Count | None = None
    pss_bytes: Count | None = None
    hwm_bytes: Count | None = None


@dataclass(frozen=True)
class Timeline:
    """Memory over time: milliseconds since the start of the process, bytes."""

    times_ms: list[float] = field(default_factory=list)
    rss_anon_bytes: list[Count] = field(default_factory=list)
    rss_file_bytes: list[Count] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.times_ms) == len(self.rss_anon_bytes) == len(self.rss_file_bytes):
            raise ValueError("found lists of different lengths, expected one value per moment in each")


@dataclass(frozen=True)
class Memory:
    """Memory before the bundle was loaded, after, and at rest after the runs; the peaks between."""

    base: MemoryPoint
    loaded: MemoryPoint
    steady: MemoryPoint
    peak_anon_bytes: Count | None = None
    peak_rss_bytes: Count | None = None
    interpreter_anon_bytes: Count | None = None
    peak: MemoryPoint | None = None
    timeline: Timeline = field(default_factory=Timeline)


@dataclass(frozen=True)
class Profile:
    """What `saten-run profile` wrote for one bundle."""

    schema_version: int
    bundle: str
    runs: Natural
    ms: float
    rows: list[ProfileRow]


@dataclass(frozen=True)
class Load:
    """What starting one bundle cost in a fresh process, and its bytes on the device by file.

    cold_load_ms: from the start of the process to the first result.
    """

    bundle: str
    threads: Natural
    memory_mode: str
    cold_load_ms: Positive | None = None
    session_ms: Positive | None = None
    first_run_ms: Positive | None = None
    memory: Memory | None = None
    disk_bytes: dict[str, Count] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether the run may be believed, and if not, why."""

    valid: bool
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """bench.json."""

    schema_version: int
    environment: dict[str, Any]
    verdict: Verdict
    cells: list[Cell]
    loads: list[Load]


@dataclass(frozen=True)
class EvaluationData:
    """The file accuracy was measured on: `count` examples."""

    file: str
    sha256: str
    count: Count


@dataclass(frozen=True)
class EvaluationRow:
    """Metrics of one bundle by name; None where a metric does not apply."""

    bundle: str
    metrics: dict[str, float | None]
    seconds: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """eval.json."""

    schema_version: int
    task: str
    data: EvaluationData
    rows: list[EvaluationRow]


@dataclass(frozen=True)
class Step:
    """One point of the fine-tuning: optimizer step and loss."""

    step: Count
    loss: float


def read_bench(value: Any) -> Bench:
    """bench.json's content as `Bench`.

    Raises:
        DataError: another schema version, or a field missing, of a wrong type or out of range.
    """
    return typing.cast(Bench, _versioned(Bench, value, "bench.json"))


def read_evaluation(value: Any) -> Evaluation:
    """eval.json's content as `Evaluation`.

    Raises:
        DataError: another schema version, or a field missing, of a wrong type or out of range.
    """
    return typing.cast(Evaluation, _versioned(Evaluation, value, "eval.json"))


def read_profile(value: Any) -> Profile:
    """A profile's content as `Profile`.

    Raises:
        DataError: another schema version, or a field missing, of a wrong type or out of range.
    """
    return typing.cast(Profile, _versioned(Profile, value, "profile"))


def read_history(value: Any) -> list[Step]:
    """A list of {"step", "loss"} as `Step`s.

    Raises:
        DataError: an item that is missing a field or has one of a wrong type.
    """
    return typing.cast(list[Step], _parse(list[Step], list(value), "history"))


def _versioned(kind: Any, value: Any, where: str) -> Any:
    found = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(value, dict) and (type(found) is not int or found != SCHEMA_VERSION):
        raise DataError(f"{where}: schema_version is {found!r:.60}, expected {SCHEMA_VERSION}; measure again")
    return _parse(kind, value, where)


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, checked recursively; every string made printable on the way.

    Raises:
        DataError: naming the field by its path, what was found and what was expected.
    """
    if kind is Any:
        return _printable_tree(value)
    if dataclasses.is_dataclass(kind):
        return _parse_record(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _parse_ranged(arguments[0], arguments[1], value, where)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _parse(arguments[0], value, where)
    if origin is list and isinstance(value, list):
        return [_parse(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        items = ((printable(str(key)), item) for key, item in value.items())
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in items}
    return _parse_scalar(kind, value, where)


def _parse_record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DataError(f"{where}: found {_found(value)}, expected an object")
    hints = typing.get_type_hints(kind, include_extras=True)
    needed = {one.name for one in dataclasses.fields(kind) if _is_required(one)}
    missing = sorted(needed - set(value))
    if missing:
        raise DataError(f"{where}: {missing[0]} is missing, expected {', '.join(sorted(needed))}")
    known = {name: _parse(hint, value[name], f"{where}.{name}") for name, hint in hints.items() if name in value}
    try:
        return kind(**known)
    except ValueError as cause:
        raise DataError(f"{where}: {cause}") from None


def _is_required(one: dataclasses.Field[Any]) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _parse_ranged(kind: Any, rule: str, value: Any, where: str) -> Any:
    result = _parse(kind, value, where)
    if not _RULES[rule](result):
        raise DataError(f"{where}: found {_found(value)}, expected a number {rule}")
    return result


def _parse_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is str and isinstance(value, str):
        return printable(value)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, bool) and type(value) is kind:
        return value
    expected = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a string"}
    raise DataError(f"{where}: found {_found(value)}, expected {expected.get(kind, 'a list or an object')}")


def _found(value: Any) -> str:
    return printable(f"{value!r:.60}")


def _printable_tree(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(str(key)): _printable_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable_tree(item) for item in value]
    return printable(value) if isinstance(value, str) else value
