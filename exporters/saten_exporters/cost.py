"""How long a layer is predicted to take, and which way of writing it is taken for that.

    time = Σ over the steps of a form   calls · call + weights · weight + rows · (macs · mac + moved · move)

The four prices of a family of steps at one precision are measured: `rates.json`, which benchmarks/cost_model.py writes
and where it says on what machine. They are sums, not the larger of two, because they are fitted over rows from 1 to
512, and between the ends both count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from saten_exporters.choices import Choices
from saten_exporters.forms import LOWERINGS, Form, Lowering, Work
from saten_exporters.parts import LayerParts
from saten_exporters.quantize import PRECISIONS
from saten_runtime.errors import ExportError

__all__ = ["FALLBACKS", "Candidate", "Rates", "choose", "predicted_us", "rates_of", "steps_of"]

# Targets that were not measured take the prices of one that was: they say which form is cheaper, not how long it takes.
# A 128-bit unit does a quarter of AVX-512's multiplications and moves memory as fast, so that forms with
# fewer of them gain; the order of the forms below does not change.
FALLBACKS = {"cpu": "x86-64", "arm64": "x86-64", "web": "x86-64", "mobile": "x86-64"}
KERNELS = "+kernels"


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
    predicted_us: float


def choose(parts: LayerParts, choices: Choices, asked: str | None) -> tuple[Candidate, list[Candidate]]:
    """The way to write a layer, and the other ways there are.

    `asked`, if given; else the fastest that keeps the layer in parts, or the dense matrix where that is
    faster yet and takes no more bytes.

    Raises:
        ExportError: `asked` cannot write this layer, or the layer is empty.
    """
    fitting = [lowering for lowering in LOWERINGS.values() if not lowering.refusal(parts)]
    candidates = {each.name: _candidate(each, parts, choices) for each in fitting}
    if asked is not None and asked not in candidates:
        raise ExportError(
            f"{parts.name}: --lowering {asked} does not apply, {LOWERINGS[asked].refusal(parts)}; "
            f"this layer can be written as {', '.join(candidates)}"
        )
    chosen = candidates[asked] if asked else _cheapest(list(candidates.values()), parts)
    return chosen, [each for each in candidates.values() if each is not chosen]


def predicted_us(form: Form, parts: LayerParts, rows: int, target: str) -> float:
    """Microseconds of one call with `rows` rows, on the target's machine and one thread."""
    return (
        sum(rates_of(step.family, form.precision, target).time_ns(step, rows) for step in steps_of(form, parts, target))
        / 1e3
    )


def steps_of(form: Form, parts: LayerParts, target: str) -> tuple[Work, ...]:
    """What is computed on a target: by the form's kernel where the target has one."""
    return (form.native if form.native and target.endswith(KERNELS) else form.work)(parts)


def rates_of(family: str, precision: str, target: str) -> Rates:
    """The measured prices of a family; of blocks, those of the largest measured size that is no larger."""
    measured = _measured()[FALLBACKS.get(target, target)]
    stem, _, size = family.rpartition("-")
    if stem and size.isdigit():
        sizes = sorted(int(key.split()[0].rpartition("-")[2]) for key in measured if _is_of(key, stem, precision))
        family = f"{stem}-{max((each for each in sizes if each <= int(size)), default=sizes[0])}"
    return measured[f"{family} {precision}"]


def _is_of(key: str, stem: str, precision: str) -> bool:
    family, _, at = key.partition(" ")
    head, _, size = family.rpartition("-")
    return head == stem and size.isdigit() and at == precision


@cache
def _measured() -> dict[str, dict[str, Rates]]:
    """Target → "family precision" → prices."""
    table = json.loads(files("saten_exporters").joinpath("rates.json").read_text(encoding="utf-8"))
    return {target: {key: Rates(**prices) for key, prices in rows.items()} for target, rows in table["targets"].items()}


def _candidate(lowering: Lowering, parts: LayerParts, choices: Choices) -> Candidate:
    form = lowering.form(parts, choices.precision)
    return Candidate(lowering.name, form, predicted_us(form, parts, choices.rows, choices.target))


def _cheapest(candidates: list[Candidate], parts: LayerParts) -> Candidate:
    *structured, dense = candidates
    best = min(structured, key=lambda each: each.predicted_us)
    if dense.predicted_us < best.predicted_us and _no_larger(dense.form, best.form, parts):
        return dense
    return best


def _no_larger(dense: Form, structured: Form, parts: LayerParts) -> bool:
    """Whether the whole matrix takes no more bytes; it is only built where it might not."""
    stored = _stored_bytes(structured, parts)
    at_least = parts.shape[0] * parts.shape[1] * PRECISIONS[dense.precision].bits // 8
    return at_least <= stored and _stored_bytes(dense, parts) <= stored


def _stored_bytes(form: Form, parts: LayerParts) -> int:
    return sum(array.nbytes for array in form.pack(parts).values())
