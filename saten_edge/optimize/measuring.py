"""Times of bundles where they will run: on devices, or on this machine where none is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import saten_edge
from saten_edge.console import Progress, Talk, told
from saten_edge.devices.device import Device
from saten_edge.devices.jobs import bench_job, device_facts, run_job
from saten_edge.devices.transports import parse_devices
from saten_edge.reports import join_benches
from saten_runtime.bench.plan import Plan
from saten_runtime.bench.results import BenchResult, read_bench
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import DataError
from saten_runtime.records.files import read_json

__all__ = ["Times", "measure", "reach"]

RESULT = "bench.json"


@dataclass(frozen=True)
class Times:
    """Results of bench by device; that of this machine has no name."""

    by_device: Mapping[str, BenchResult] = field(default_factory=dict)

    def of(self, bundle: str) -> dict[str, float | None]:
        """Milliseconds of the median run of a bundle by device; None where it failed."""
        return {device: _median_ms(result, bundle) for device, result in self.by_device.items()}

    @property
    def joined(self) -> dict[str, Any]:
        """All of them as one, as JSON data for a report."""
        return dict(join_benches([_named(device, result) for device, result in self.by_device.items()]) or {})

    @property
    def reasons(self) -> list[str]:
        """Why times must not be believed, each with its device."""
        told = [(device, why) for device, result in self.by_device.items() for why in result.verdict.reasons]
        return [": ".join(filter(None, pair)) for pair in told]


def reach(urls: Sequence[str], progress: Progress | None) -> list[Device]:
    """The devices of `--device` options; each is asked what it is, so that a search does not end at a wrong address.

    Raises:
        UsageError: a URL of no known form.
        DeviceError: a device cannot be used.
    """
    devices = parse_devices(urls)
    for device in devices:
        with told(progress, f"reach {device.label}"):
            device_facts(device, Talk(quiet=True))
    return devices


def measure(
    bundles: Sequence[Path], plan: Plan, devices: Sequence[Device], folder: Path, progress: Progress | None
) -> Times:
    """Measure bundles in turns, the first as baseline, on one device after the other.

    folder: where results are kept. A device whose result is there is not asked again; on this machine a run that was
    killed is gone on with.

    Raises:
        DeviceError: a device was lost; what others measured is kept.
    """
    if not devices:
        here = saten_edge.bench(bundles, plan, baseline=bundles[0], output=folder, resume=True, progress=progress)
        return Times({"": here})
    return Times({device.label: _on(device, bundles, plan, folder / device.label, progress) for device in devices})


def _on(device: Device, bundles: Sequence[Path], plan: Plan, folder: Path, progress: Progress | None) -> BenchResult:
    if (folder / RESULT).is_file():
        kept = read_bench(read_json(folder / RESULT, DataError))
        if {Bundle.open(path).name for path in bundles} <= {cell.bundle for cell in kept.cells}:
            return kept  # whole, and not that of a run which Ctrl-C ended
    with told(progress, f"measure {len(bundles)} bundles on {device.label}"):
        return read_bench(run_job(device, bench_job(bundles, plan, bundles[0]), folder=folder, talk=Talk(quiet=True)))


def _named(device: str, result: BenchResult) -> dict[str, Any]:
    return {**result.to_json(), **({"device": {"label": device}} if device else {})}


def _median_ms(result: BenchResult, bundle: str) -> float | None:
    return next((cell.p50_ms for cell in result.cells if cell.bundle == bundle and cell.failed is None), None)
