"""How long a layer is predicted to take, and which way of writing it is taken for that.

    time = Σ over the steps of a form   calls · call + weights · weight + rows · (macs · mac + moved · move)

The four prices of a family of steps at one precision are measured: `rates.json`, which benchmarks/cost_model.py writes
and where it says on what machine. They are sums, not the larger of two, because they are fitted over rows from 1 to
512, and between the ends both count.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

from saten_exporters.choice.settings import ExportSettings
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import LOWERINGS, Form, Lowering, Weights, Work, head_of
from saten_exporters.quantize import PRECISIONS, storing
from saten_runtime.bundle.recipe import Option, options_of
from saten_runtime.errors import ExportError

__all__ = ["Candidate", "Rates", "choose", "predicted_us", "prices_used", "rates_of"]

RATES_FILE = "rates.json"
KERNELS = "+kernels"
# What was not measured on a target takes this one's prices. They then say which form is cheaper rather than how long it
# takes: a 128-bit unit does a quarter of AVX-512's multiplications and moves memory about as fast, so that
# forms that multiply less gain more there.
MEASURED = "x86-64"


@dataclass(frozen=True)
class Rates:
    """Nanoseconds for a call, a weight value, a multiply-accumulate, and an activation read or written."""

    call: float
    weight: float
    mac: float
    move: float

    def time_ns(self, step: Work, rows: int) -> float:
        """Of one step on `rows` rows."""
        per_row = step.macs * self.mac + step.moved * self.move
        return step.calls * self.call + step.weights * self.weight + rows * per_row


@dataclass(frozen=True)
class Candidate:
    """One way to write a layer and what it is predicted to take."""

    lowering: str
    form: Form
    parts: LayerParts
    predicted_us: float

    @cached_property
    def weights(self) -> Weights:
        """What is stored, packed when it is first asked for, and kept."""
        with storing(self.parts.name):
            return self.form.pack(self.parts)

    @property
    def bytes(self) -> int:
        """Of what is stored."""
        return sum(array.nbytes for array in self.weights.values())


def choose(
    parts: LayerParts, settings: ExportSettings, asked: str | None = None, *, with_head: bool = False
) -> tuple[Candidate, list[Candidate]]:
    """The way to write a layer, and the other ways there are; with_head: the layer is a table and a head, too.

    `asked`, if given; else the fastest that keeps the layer in parts, or the dense matrix where that is
    faster yet and takes no more bytes.

    Raises:
        ExportError: `asked` cannot write this layer, or the layer is empty.
    """
    fitting = [lowering for lowering in LOWERINGS.values() if not lowering.refusal(parts)]
    candidates = {each.name: _candidate(each, parts, settings, with_head) for each in fitting}
    if asked is not None and asked not in candidates:
        raise ExportError(
            f"{parts.name}: --lowering {asked} does not apply, {LOWERINGS[asked].refusal(parts)}; "
            f"this layer can be written as {', '.join(candidates)}"
        )
    chosen = candidates[asked] if asked else _cheapest(list(candidates.values()))
    return chosen, [each for each in candidates.values() if each is not chosen]


def predicted_us(form: Form, parts: LayerParts, rows: int, target: str) -> float:
    """Microseconds of one call with `rows` rows, on the target's machine and one thread."""
    steps = form.steps(parts, native=target.endswith(KERNELS))
    return sum(rates_of(step.family, precision, target).time_ns(step, rows) for precision, step in steps) / 1e3


def rates_of(family: str, precision: str, target: str) -> Rates:
    """The measured prices of a family; of blocks, those of the largest measured size that is no larger."""
    prices = _prices(target)
    stem, _, size = family.rpartition("-")
    if stem and size.isdigit():
        sizes = sorted(sizes_of(stem, precision, prices))
        family = f"{stem}-{max((each for each in sizes if each <= int(size)), default=sizes[0])}"
    return prices[f"{family} {precision}"]


def sizes_of(stem: str, precision: str, prices: Iterable[str]) -> set[int]:
    """The sizes of blocks that there are prices for."""
    found = (re.fullmatch(rf"{stem}-(\d+) {re.escape(precision)}", key) for key in prices)
    return {int(match[1]) for match in found if match}


def prices_used() -> dict[str, Option]:
    """The table that forms are chosen by, for the recipe."""
    return options_of(name=RATES_FILE, sha256=hashlib.sha256(_rates_bytes()).hexdigest())


def _rates_bytes() -> bytes:
    return files("saten_exporters.choice").joinpath(RATES_FILE).read_bytes()


@cache
def _prices(target: str) -> dict[str, Rates]:
    """Prices by "family precision", the target's own where they were measured there."""
    table = json.loads(_rates_bytes())["targets"]
    sources = (MEASURED, *((MEASURED + KERNELS,) if target.endswith(KERNELS) else ()), target)
    return {key: Rates(**prices) for source in sources for key, prices in table.get(source, {}).items()}


def _candidate(lowering: Lowering, parts: LayerParts, settings: ExportSettings, with_head: bool) -> Candidate:
    form = lowering.form(parts, settings.precision)
    called = (form, head_of(form)) if with_head else (form,)
    time = sum(predicted_us(each, parts, settings.rows, settings.target) for each in called)
    return Candidate(lowering.name, form, parts, time)


def _cheapest(candidates: list[Candidate]) -> Candidate:
    *structured, dense = candidates
    best = min(structured, key=lambda each: each.predicted_us)
    if dense.predicted_us < best.predicted_us and _no_larger(dense, best):
        return dense
    return best


def _no_larger(dense: Candidate, structured: Candidate) -> bool:
    """Whether the whole matrix takes no more bytes; it is only built where it might not."""
    at_least = math.prod(dense.parts.shape) * PRECISIONS[dense.form.precision].bits // 8
    return at_least <= structured.bytes and dense.bytes <= structured.bytes
