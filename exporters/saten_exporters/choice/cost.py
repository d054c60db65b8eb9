"""How long a layer is predicted to take, and which way of writing it is taken for that.

    time = Σ over the steps of a form   calls · call + weights · weight + rows · (macs · mac + moved · move)

The four prices of a family of steps at one precision are measured, see `saten_exporters.choice.prices`. They are sums,
not the larger of two, because they are fitted over rows from 1 to 512, and between the ends both count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from saten_exporters.choice.prices import KERNELS, Prices, shipped_prices
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.exportable import LayerParts
from saten_exporters.forms import LOWERINGS, Form, Lowering, Weights, head_of
from saten_exporters.quantize import storing
from saten_runtime.errors import ExportError

__all__ = ["Candidate", "choose", "fastest_us", "predicted_us"]


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
        return self.form.stored_bytes(self.parts)


def choose(
    parts: LayerParts,
    settings: ExportSettings,
    asked: str | None = None,
    *,
    with_head: bool = False,
    prices: Prices | None = None,
) -> tuple[Candidate, list[Candidate]]:
    """The way to write a layer, and the other ways there are; with_head: the layer is a table and a head, too.

    `asked`, if given; else the fastest that keeps the layer in parts, or the dense matrix where that is
    faster yet and takes no more bytes. prices: of a device; by default those that ship for the target.

    Raises:
        ExportError: `asked` cannot write this layer, or the layer is empty.
    """
    fitting = [lowering for lowering in LOWERINGS.values() if not lowering.refusal(parts)]
    candidates = {each.name: _candidate(each, parts, settings, with_head, prices) for each in fitting}
    if asked is not None and asked not in candidates:
        raise ExportError(
            f"{parts.name}: --lowering {asked} does not apply, {LOWERINGS[asked].refusal(parts)}; "
            f"this layer can be written as {', '.join(candidates)}"
        )
    chosen = candidates[asked] if asked else _cheapest(list(candidates.values()))
    return chosen, [each for each in candidates.values() if each is not chosen]


def fastest_us(parts: LayerParts, settings: ExportSettings, prices: Prices | None = None) -> float:
    """Of the ways to keep a layer in parts, the asked one where it is among them.

    Raises:
        ExportError: it has neither a train nor a residual.
    """
    names = [name for name, row in LOWERINGS.items() if name != "dense" and not row.refusal(parts)]
    asked = [settings.lowering] if settings.lowering in names else names
    return min(_candidate(LOWERINGS[name], parts, settings, False, prices).predicted_us for name in asked)


def predicted_us(form: Form, parts: LayerParts, rows: int, target: str, prices: Prices | None = None) -> float:
    """Microseconds of one call with `rows` rows, on the target's machine and one thread; prices: as for `choose`."""
    used = prices or shipped_prices(target)
    steps = form.steps(parts, native=target.endswith(KERNELS))
    return sum(used.rates_of(step.family, precision).time_ns(step, rows) for precision, step in steps) / 1e3


def _candidate(
    lowering: Lowering, parts: LayerParts, settings: ExportSettings, with_head: bool, prices: Prices | None
) -> Candidate:
    form = lowering.form(parts, settings.precision)
    called = (form, head_of(form)) if with_head else (form,)
    time = sum(predicted_us(each, parts, settings.rows, settings.target, prices) for each in called)
    return Candidate(lowering.name, form, parts, time)


def _cheapest(candidates: list[Candidate]) -> Candidate:
    *structured, dense = candidates
    best = min(structured, key=lambda each: each.predicted_us)
    if dense.predicted_us < best.predicted_us and dense.bytes <= best.bytes:
        return dense
    return best
