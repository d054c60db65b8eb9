"""The prices that forms are chosen by: those that ship with the exporter, or those measured on a device.

Both are files of one schema, read by one strict reader. A price is nanoseconds per unit of a family of steps at one
precision. `saten-edge devices calibrate` writes such a file; `rates.json` is the one that ships.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from saten_exporters.choice.targets import TARGETS
from saten_exporters.forms import Work
from saten_runtime.bench.results import Verdict
from saten_runtime.bundle.recipe import Option, options_of
from saten_runtime.errors import DataError, UsageError
from saten_runtime.records.files import digest_of, key_of, parse_object, read_json, write_json
from saten_runtime.records.plain_text import printable
from saten_runtime.records.reader import Bound, Natural, Reader

__all__ = [
    "KERNELS",
    "MEASURED",
    "RATES_FILE",
    "MeasuredOn",
    "PriceList",
    "Prices",
    "Rates",
    "prices_for",
    "read_prices",
    "refuse_unfit",
    "shipped_prices",
    "sizes_of",
    "write_prices",
]

RATES_FILE = "rates.json"
SCHEMA_VERSION = 1
KERNELS = "+kernels"
# What was not measured on a target takes this one's prices. They then say which form is cheaper rather than how long it
# takes: a 128-bit unit does a quarter of AVX-512's multiplications and moves memory about as fast, so that
# forms that multiply less gain more there.
MEASURED = "x86-64"
_CALIBRATE = "measure again with saten-edge devices calibrate"
# What no device that runs a model is above: a call of a tenth of a second, and 10 µs for one multiplication.
_MOST_CALL_NS, _MOST_UNIT_NS = 1e8, 1e4

Call = Annotated[float, Bound(f"nanoseconds from 0 to {_MOST_CALL_NS:g}", lambda ns: 0 <= ns <= _MOST_CALL_NS)]
Unit = Annotated[float, Bound(f"nanoseconds from 0 to {_MOST_UNIT_NS:g}", lambda ns: 0 <= ns <= _MOST_UNIT_NS)]


@dataclass(frozen=True)
class Rates:
    """Nanoseconds for a call, a weight value, a multiply-accumulate, and an activation read or written."""

    call: Call
    weight: Unit
    mac: Unit
    move: Unit

    def __post_init__(self) -> None:
        if not any(vars(self).values()):
            raise ValueError("all four prices are 0, expected one above")

    def time_ns(self, step: Work, rows: int) -> float:
        """Of one step on `rows` rows."""
        per_row = step.macs * self.mac + step.moved * self.move
        return step.calls * self.call + step.weights * self.weight + rows * per_row


@dataclass(frozen=True)
class MeasuredOn:
    """The device that prices are of. name: what its user calls it; kernels: their state in words."""

    name: str
    machine: str
    cpu: str | None
    board: str | None
    cores: Natural | None
    cpu_flags: list[str]
    emulator: str | None
    onnxruntime: str | None
    kernels: str

    @property
    def key(self) -> str:
        """Equal for devices and installations of one kind, whatever they are called, and for one version of ours."""
        return key_of({**dataclasses.asdict(self), "name": "", "saten_edge": version("saten-edge")})

    @property
    def words(self) -> str:
        """The device in a line."""
        what = self.board or self.cpu or self.machine
        return f"{self.name}: {what}, onnxruntime {self.onnxruntime}, kernels {self.kernels}"


@dataclass(frozen=True)
class PriceList:
    """Content of a file of prices. targets: name of a target → "family precision" → prices.

    saten_edge: the version whose forms were timed. The prices of the native kernels are those of "TARGET+kernels".
    """

    schema_version: int
    saten_edge: str
    device: MeasuredOn
    verdict: Verdict
    targets: dict[str, dict[str, Rates]]


@dataclass(frozen=True)
class Prices:
    """By "family precision", what each costs on a target; source: whose they are, for the recipe."""

    table: Mapping[str, Rates]
    source: Mapping[str, Option] = field(default_factory=dict)
    notice: str = ""

    def rates_of(self, family: str, precision: str) -> Rates:
        """The prices of a family; of blocks, those of the largest measured size that is no larger."""
        stem, _, size = family.rpartition("-")
        if stem and size.isdigit():
            sizes = sorted(sizes_of(stem, precision, self.table))
            family = f"{stem}-{max((each for each in sizes if each <= int(size)), default=sizes[0])}"
        return self.table[f"{family} {precision}"]


def sizes_of(stem: str, precision: str, prices: Iterable[str]) -> set[int]:
    """The sizes of blocks that there are prices for."""
    found = (re.fullmatch(rf"{stem}-(\d+) {re.escape(precision)}", key) for key in prices)
    return {int(match[1]) for match in found if match}


def prices_for(target: str, path: str | Path | None, *, emulated: bool = False) -> Prices:
    """Those of a file, or the ones that ship where there is none; as `read_prices`."""
    if path is not None:
        return read_prices(Path(path), target, emulated=emulated)
    if emulated:
        raise UsageError("--emulated: the prices that ship are of a real machine; name others, or leave it out")
    return shipped_prices(target)


@cache
def shipped_prices(target: str) -> Prices:
    """The target's own where they were measured there, those of x86-64 in place of all others."""
    table = _shipped()
    sources = (MEASURED, *((MEASURED + KERNELS,) if target.endswith(KERNELS) else ()), target)
    merged = {key: rates for source in sources for key, rates in table.targets.get(source, {}).items()}
    return Prices(merged, _source(RATES_FILE, table))


def read_prices(path: Path, target: str, *, emulated: bool = False) -> Prices:
    """The prices of a device, for a target that runs on its kind of processor.

    emulated: those of an emulator, too.

    Raises:
        DataError: no file of prices, one of another version, or with a number that is no price.
        UsageError: they are of an emulator, or of another processor than the target's.
    """
    table = _read(read_json(path, DataError), str(path))
    if table.saten_edge != version("saten-edge"):
        raise DataError(
            f"{path}: of the forms of saten-edge {table.saten_edge}, this is {version('saten-edge')}; {_CALIBRATE}"
        )
    refuse_unfit(str(path), table.device, target, emulated=emulated)
    base = _base(table.device.machine)
    wanted = (base, base + KERNELS) if TARGETS[target].kernels else (base,)
    merged = {key: rates for name in wanted for key, rates in table.targets.get(name, {}).items()}
    if missing := sorted(set(shipped_prices(target).table) - set(merged)):
        advice = f"{_CALIBRATE} --wheels, or choose a target without kernels" if TARGETS[target].kernels else _CALIBRATE
        raise DataError(f"{path}: has no prices of {', '.join(missing[:3])} ({len(missing)} in all); {advice}")
    notice = "" if table.verdict.valid else f"prices of {table.device.name}: {'; '.join(table.verdict.reasons)}"
    return Prices(merged, _source(path.name, table), notice)


def write_prices(path: Path, device: MeasuredOn, verdict: Verdict, prices: Mapping[str, Rates]) -> None:
    """Write a file of prices; those whose family begins with "native" are of the kernels."""
    base = _base(device.machine)
    native = {key: rates for key, rates in prices.items() if key.startswith("native")}
    own = {key: rates for key, rates in prices.items() if key not in native}
    targets = {base: own, **({base + KERNELS: native} if native else {})}
    write_json(path, dataclasses.asdict(PriceList(SCHEMA_VERSION, version("saten-edge"), device, verdict, targets)))


def _base(machine: str) -> str:
    """The first target of a processor: others of it are this one with something more."""
    return next((name for name, target in TARGETS.items() if target.machine == machine), machine)


def refuse_unfit(where: str, device: MeasuredOn, target: str, *, emulated: bool) -> None:
    """Refuse a device whose prices would say nothing of the target; where: begins the message.

    Raises:
        UsageError: it is an emulator, or another processor than the target's, or there is no such target.
    """
    if target not in TARGETS:
        raise UsageError(f"--target {target}: there are {', '.join(TARGETS)}")
    if device.emulator and not emulated:
        raise UsageError(
            f"{where}: measured in an emulator ({device.emulator}), whose times are those of no device; "
            "measure on the device, or pass --emulated to choose by them all the same"
        )
    if TARGETS[target].machine != device.machine:
        fitting = [name for name, each in TARGETS.items() if each.machine == device.machine]
        raise UsageError(
            f"{where}: measured on {device.machine} ({device.name}), which --target {target} is not for; "
            f"choose {' or '.join(fitting) or 'another device'}"
        )


def _read(value: dict[str, Any], where: str) -> PriceList:
    found = value.get("schema_version")
    if type(found) is not int or found != SCHEMA_VERSION:
        raise DataError(f"{where}: schema_version is {found!r:.60}, expected {SCHEMA_VERSION}; {_CALIBRATE}")
    return Reader(DataError, exact=True, text=printable).read(PriceList, value, where)


@cache
def _shipped() -> PriceList:
    content = files("saten_exporters.choice").joinpath(RATES_FILE).read_bytes()
    return _read(parse_object(content, RATES_FILE, DataError, "install saten-edge again"), RATES_FILE)


def _source(name: str, table: PriceList) -> dict[str, Option]:
    """For the recipe: which file, and the device it is of."""
    device = table.device
    facts = {"device": device.name, "machine": device.machine, "cpu": device.cpu, "board": device.board}
    versions = {"onnxruntime": device.onnxruntime, "kernels": device.kernels, "emulator": device.emulator}
    return options_of(name=name, sha256=digest_of(dataclasses.asdict(table)), **facts, **versions)
