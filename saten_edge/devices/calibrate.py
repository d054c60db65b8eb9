"""Prices of forms, measured on a device: what `saten-edge devices calibrate` does, and `export --device` looks for."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saten_edge.console import Talk
from saten_edge.devices.device import Device
from saten_edge.devices.jobs import device_facts, probing_job, run_job
from saten_edge.devices.kernels import Shipment
from saten_exporters.choice.fitting import fitted
from saten_exporters.choice.prices import MeasuredOn, Rates, refuse_unfit, write_prices
from saten_exporters.choice.probes import QUICK, Sizes, samples_of, write_probes
from saten_exporters.choice.targets import Target, target_of
from saten_runtime.bench.probing import ProbingResult, read_probing
from saten_runtime.bench.results import Verdict
from saten_runtime.errors import DeviceError
from saten_runtime.records.reader import RESULTS
from saten_runtime.records.system import user_cache
from saten_runtime.run.kernels import Kernels

__all__ = ["calibrate", "known_prices", "measured_on", "prices_of", "write_known"]

_USUAL = Shipment()
_ODD = re.compile(r"[^A-Za-z0-9_-]")


def calibrate(device: Device, output: Path | None, talk: Talk, shipment: Shipment = _USUAL) -> tuple[Path, Verdict]:
    """Time the steps of forms on a device, and write their prices; where, and whether the times may be believed.

    output: a file; by default that of the device in the cache of this user, where `prices_of` looks.

    Raises:
        UsageError: the shipment has what this device is not sent.
        DeviceError: the device cannot be used, or was lost.
    """
    shipment.refuse_unused([device])
    target = target_of(str(device_facts(device, talk, shipment).get("machine")))
    result, prices = _measured(device, QUICK, target, talk, shipment)
    facts = measured_on(device.label, result.environment)
    return write_known(output, facts, result.verdict, prices)


def prices_of(device: Device, target: str, talk: Talk, *, emulated: bool = False) -> Path:
    """The file of prices of a device as it is now: the one in the cache, or one that is made.

    Raises:
        DeviceError: the device cannot be used, or was lost.
        UsageError: its prices would say nothing of the target; nothing is measured then.
    """
    facts = measured_on(device.label, device_facts(device, talk))
    refuse_unfit(device.label, facts, target, emulated=emulated)
    known = known_prices(facts)
    return known if known.is_file() else calibrate(device, known, talk)[0]


def known_prices(facts: MeasuredOn) -> Path:
    """Where the prices of a device are kept; another device, ONNX Runtime or kernels have another place."""
    return user_cache("prices") / f"{_ODD.sub('-', facts.name)}-{facts.key}.json"


def measured_on(name: str, environment: Mapping[str, Any]) -> MeasuredOn:
    """The device, from what `saten-run device` says of it.

    Raises:
        DeviceError: it says something else.
    """
    try:
        known = {key: environment[key] for key in ("machine", "cpu", "board", "cores", "cpu_flags", "emulator")}
        kernels = Kernels(**environment["kernels"]).words
        own = {"onnxruntime": environment["packages"]["onnxruntime"], "kernels": kernels}
    except (KeyError, TypeError):
        raise DeviceError(f"{name}: expected saten-run to say what the device is, found {environment!r:.80}") from None
    return RESULTS.read(MeasuredOn, {"name": name, **known, **own}, name)


def write_known(
    output: Path | None, facts: MeasuredOn, verdict: Verdict, prices: Mapping[str, Rates]
) -> tuple[Path, Verdict]:
    """Write prices to a file, by default the one of `known_prices`; which, and the verdict."""
    path = output or known_prices(facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_prices(path, facts, verdict, prices)
    return path, verdict


def _measured(
    device: Device, sizes: Sizes, target: Target, talk: Talk, shipment: Shipment
) -> tuple[ProbingResult, dict[str, Rates]]:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "probes.zip"
        with talk.stage("probes: write"):
            subjects = write_probes(archive, sizes, target)
        result = read_probing(run_job(device, probing_job(archive, shipment), folder=None, talk=talk))
    return result, fitted([sample for _, sample in samples_of(subjects, result)])
