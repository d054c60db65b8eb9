"""What a run costs in energy, where the machine has a sensor.

RAPL counts µJ of the processor package; hwmon and INA chips tell the power of a supply rail, in
µW, or as mV and mA.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Energy", "EnergyMeter", "power_watts"]

_ROOT = Path("/")
_PERIOD_S = 0.05


@dataclass(frozen=True)
class Energy:
    """Joules of the whole machine part that `sensor` watches, not of our process alone."""

    sensor: str
    joules: float


def power_watts(root: Path = _ROOT) -> dict[str, float]:
    """Power now, by sensor; energy counters have no power of a moment."""
    found = {}
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = _text(folder / "name") or folder.name
        for path in sorted(folder.glob("power*_input")) or sorted(folder.glob("power*_average")):
            if (microwatts := _number(path)) is not None:
                found[f"{chip} {path.name.partition('_')[0]}"] = microwatts / 1e6
        if not any(name.startswith(f"{chip} ") for name in found):
            found |= _volts_times_amperes(folder, chip)
    return found


def _volts_times_amperes(folder: Path, chip: str) -> dict[str, float]:
    found = {}
    for path in sorted(folder.glob("curr*_input")):
        channel = path.name.removeprefix("curr").removesuffix("_input")
        milliamperes, millivolts = _number(path), _number(folder / f"in{channel}_input")
        if milliamperes is not None and millivolts is not None:
            found[f"{chip} {channel}"] = milliamperes * millivolts / 1e6
    return found


class EnergyMeter:
    """Energy between entering and leaving: by counter where there is one, else power sampled every 50 ms."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._counters = _counters(root)
        self._watts: list[tuple[float, dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> EnergyMeter:
        self._before = {path: _number(path / "energy_uj") for path in self._counters}
        if not self._counters and power_watts(self._root):
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._watts.append((time.monotonic(), power_watts(self._root)))

    def read(self) -> list[Energy]:
        """One entry per sensor, after leaving; empty where there is none."""
        counted = [Energy(name, joules) for path, name in self._counters.items() if (joules := self._spent(path))]
        return counted or self._integrated()

    def _spent(self, path: Path) -> float | None:
        before, after = self._before[path], _number(path / "energy_uj")
        if before is None or after is None:
            return None
        # The counter begins again at 0 after its largest value.
        turn = (_number(path / "max_energy_range_uj") or 0) if after < before else 0
        return (after - before + turn) / 1e6

    def _integrated(self) -> list[Energy]:
        sums: dict[str, float] = {}
        for (start, before), (end, after) in zip(self._watts, self._watts[1:], strict=False):
            for sensor in before.keys() & after.keys():
                sums[sensor] = sums.get(sensor, 0.0) + (end - start) * (before[sensor] + after[sensor]) / 2
        return [Energy(sensor, joules) for sensor, joules in sorted(sums.items())]

    def _sample(self) -> None:
        while not self._stop.is_set():
            self._watts.append((time.monotonic(), power_watts(self._root)))
            self._stop.wait(_PERIOD_S)


def _counters(root: Path) -> dict[Path, str]:
    """Folders of the packages' energy counters that may be read, with their names; parts of a package left out."""
    folders = sorted((root / "sys/class/powercap").glob("*-rapl:*"))
    return {
        path: f"rapl {_text(path / 'name') or path.name}"
        for path in folders
        if path.name.count(":") == 1 and _number(path / "energy_uj") is not None
    }


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.lstrip("-").isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
