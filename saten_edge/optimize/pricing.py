"""Whose prices choose forms and predict times in a search: those of a device, or those that ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saten_edge.console import Talk
from saten_edge.devices.calibrate import known_prices, measured_on
from saten_edge.devices.device import Device
from saten_edge.devices.jobs import device_facts
from saten_edge.optimize.output import PRICES_FILE, STUDY_FILE
from saten_edge.options import OptimizeOptions
from saten_exporters.choice.prices import Prices, prices_for
from saten_runtime.errors import UsageError
from saten_runtime.records.files import replace_file

__all__ = ["Pricing", "planned_words", "prices_in", "pricing_of"]

CALIBRATE = "saten-edge devices calibrate"


@dataclass(frozen=True)
class Pricing:
    """path: the file that they are read from; None of those that ship. beside: why they are not a device's own."""

    prices: Prices
    path: Path | None = None
    beside: str = ""

    @property
    def words(self) -> str:
        """Whose they are, and what is to be known of them."""
        source = self.prices.source
        what = source["board"] or source["cpu"] or source["machine"]
        owner = f"{source['device']} ({what}, ONNX Runtime {source['onnxruntime']}, kernels {source['kernels']})"
        known = f"those of {owner}" if self.path else f"those that ship, of {owner}"
        return "; ".join(filter(None, (known, self.beside, self.prices.notice)))


def pricing_of(options: OptimizeOptions, devices: Sequence[Device]) -> Pricing:
    """The prices in the file of `--prices`; else of the first device, where `devices calibrate` has measured them.

    Raises:
        DataError: a file that holds no prices of this version.
        UsageError: they are an emulator's, or of another processor than the target's.
        DeviceError: the device cannot be used.
    """
    path, beside = options.prices, ""
    if path is None and devices:
        first = devices[0]
        known = known_prices(measured_on(first.label, device_facts(first, Talk(quiet=True))))
        path = known if known.is_file() else None
        beside = "" if path else f"none are known of {first.label}, {CALIBRATE} {first.url} measures them"
    return Pricing(prices_for(options.target, path, emulated=options.emulated), path, beside)


def prices_in(out: Path, found: Pricing, options: OptimizeOptions) -> Pricing:
    """What counts in the folder of a search: what it began with, so that it goes on to the same trials; else `found`.

    Raises:
        UsageError: `--prices` are others than those it began with.
    """
    kept = out / PRICES_FILE
    if not (out / STUDY_FILE).is_file():
        if found.path is None:
            return found
        replace_file(kept, found.path.read_bytes())
        return Pricing(prices_for(options.target, kept, emulated=options.emulated), kept)
    path = kept if kept.is_file() else None
    prices = prices_for(options.target, path, emulated=options.emulated and path is not None)
    other = prices.source["sha256"] != found.prices.source["sha256"]
    if other and options.prices is not None:
        raise UsageError(
            f"--prices {options.prices}: the search in {out} began with those of {prices.source['device']}; leave the "
            "option out, choose another output path, or pass --overwrite without --resume"
        )
    return Pricing(prices, path, "with which this search began" if other else found.beside)


def planned_words(options: OptimizeOptions, device: str | None) -> str:
    """Whose prices will choose, before any device is asked.

    Raises:
        DataError, UsageError: as `pricing_of`, of a file.
    """
    if options.prices is None and device is not None:
        return f"those of {device}, if {CALIBRATE} has measured them; else those that ship"
    return pricing_of(options, ()).words
