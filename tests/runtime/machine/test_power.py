"""Power and energy from a fake /sys tree."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saten_runtime.machine.device import State, cpu_model
from saten_runtime.machine.power import Energy, EnergyMeter, power_watts

FakeRoot = Callable[[dict[str, str]], Path]
RAPL = "sys/class/powercap/intel-rapl:0"


def test_a_counter_is_read_before_and_after(fake_root: FakeRoot) -> None:
    files = {f"{RAPL}/name": "package-0", f"{RAPL}/energy_uj": "1000000", f"{RAPL}/max_energy_range_uj": "9000000"}
    root = fake_root({**files, f"{RAPL}:0/energy_uj": "5", f"{RAPL}:0/name": "core"})
    with EnergyMeter(root) as meter:
        (root / RAPL / "energy_uj").write_text("3500000")
    assert meter.read() == [Energy("rapl package-0", 2.5)]
    with EnergyMeter(root) as meter:
        (root / RAPL / "energy_uj").write_text("500000")
    assert meter.read() == [Energy("rapl package-0", 6.0)]


def test_power_is_summed_over_time(fake_root: FakeRoot) -> None:
    root = fake_root({"sys/class/hwmon/hwmon1/name": "ina226", "sys/class/hwmon/hwmon1/power1_input": "4000000"})
    start = time.monotonic()
    with EnergyMeter(root) as meter:
        time.sleep(0.12)
    (energy,) = meter.read()
    assert energy.sensor == "ina226 power1"
    assert 4 * 0.1 < energy.joules <= 4 * (time.monotonic() - start)


def test_volts_and_amperes(fake_root: FakeRoot) -> None:
    chip = "sys/class/hwmon/hwmon2"
    root = fake_root({f"{chip}/name": "ina3221", f"{chip}/in1_input": "5000", f"{chip}/curr1_input": "800"})
    assert power_watts(root) == {"ina3221 1": 4.0}
    assert State.read(root).power_watts == {"ina3221 1": 4.0}


def test_a_machine_without_sensors(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.read() == []
    assert power_watts(tmp_path) == {}


@pytest.mark.parametrize(("part", "name"), [("0xd0b", "Cortex-A76"), ("0xfff", "ARM implementer 0x41 part 0xfff")])
def test_arm_parts(fake_root: FakeRoot, part: str, name: str) -> None:
    root = fake_root({"proc/cpuinfo": f"processor : 0\nCPU implementer : 0x41\nCPU part : {part}\n"})
    assert cpu_model(root) == name
    odd = fake_root({"proc/cpuinfo": "CPU implementer : ?\nCPU part : x\n"})
    assert cpu_model(odd) == "ARM implementer ? part x"
