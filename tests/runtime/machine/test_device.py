"""A fake /proc and /sys drive every reader."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saten_runtime.machine.device import State, available_memory_bytes, cpu_flags, cpu_model, emulator, environment

FakeRoot = Callable[[dict[str, str]], Path]

RASPBERRY = {
    "proc/cpuinfo": "".join(
        f"processor\t: {core}\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n"
        for core in range(4)
    ),
    "proc/meminfo": "MemTotal:        8245504 kB\nMemAvailable:    6291456 kB\n",
    "proc/loadavg": "0.25 0.10 0.05 1/200 999\n",
    "proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-2712\n",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2400000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/temp": "51500\n",
    "sys/class/thermal/thermal_zone1/temp": "broken\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
}
INTEL = "processor : 0\nmodel name : Some CPU @ 3 GHz\nflags : fpu avx2 avx512_vnni\n\n"


def test_raspberry(fake_root: FakeRoot) -> None:
    root = fake_root(RASPBERRY)
    assert State.read(root) == State("ondemand", 2_400_000, 2_400_000, 51_500, 0x50000, 0.25)
    found = environment(root)
    expected = {
        "cpu": "Cortex-A76",
        "board": "Raspberry Pi 5 Model B Rev 1.0",
        "cpu_flags": ["asimd", "asimddp"],
        "cores": 4,
        "memory_total_bytes": 8245504 * 1024,
        "memory_available_bytes": 6 * 2**30,
        "kernel": "6.6.31+rpt-rpi-2712",
        "distribution": "Debian GNU/Linux 12 (bookworm)",
    }
    assert {key: found[key] for key in expected} == expected
    assert found["packages"]["onnxruntime"]


@pytest.mark.parametrize(("word", "bits"), [("0x50005\n", 0x50005), ("throttled=0x0\n", None), ("\n", None)])
def test_a_throttle_word_that_is_none_is_not_known(fake_root: FakeRoot, word: str, bits: int | None) -> None:
    root = fake_root({"sys/devices/platform/soc/soc:firmware/get_throttled": word})
    assert State.read(root).throttle_bits == bits


def test_intel(fake_root: FakeRoot) -> None:
    root = fake_root({"proc/cpuinfo": INTEL * 2})
    assert cpu_model(root) == "Some CPU @ 3 GHz"
    assert cpu_flags(root) == {"fpu", "avx2", "avx512_vnni"}


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (["0xd05", "0xd05", "0xd41"], "Cortex-A55 + Cortex-A78"),
        (["0xfff"], "ARM implementer 0x41 part 0xfff"),
        ([], None),
    ],
)
def test_arm_parts(fake_root: FakeRoot, parts: list[str], name: str | None) -> None:
    text = "".join(f"CPU implementer : 0x41\nCPU part : {part}\n" for part in parts)
    assert cpu_model(fake_root({"proc/cpuinfo": text})) == name


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert State.read(tmp_path) == State(None, None, None, None, None, None)
    found = environment(tmp_path)
    for key in ("cpu", "board", "cores", "memory_total_bytes", "memory_available_bytes", "kernel", "distribution"):
        assert found[key] is None
    assert found["cpu_flags"] == []
    assert available_memory_bytes(tmp_path) is None


def state(bits: int | None) -> State:
    return State(None, None, None, None, bits, None)


@pytest.mark.parametrize(
    ("before", "now", "throttled"),
    [
        (None, None, False),
        (0, 0, False),
        (0, 0x1, True),  # under-voltage now
        (0, 0x4, True),  # throttled now
        (0, 0x40000, True),  # throttled meanwhile
        (0x40000, 0x40000, False),  # once, before the run
        (0x40000, 0x50000, True),  # a further kind meanwhile
    ],
)
def test_throttle_bits(before: int | None, now: int | None, throttled: bool) -> None:
    assert state(now).throttled_since(state(before)) is throttled


def test_this_machine() -> None:
    found = environment()
    assert found["cores"] >= 1
    assert found["memory_total_bytes"] > found["memory_available_bytes"] > 0
    assert found["kernel"]


@pytest.mark.parametrize(
    ("program", "cpuinfo", "machine", "found"),
    [
        ("/usr/bin/python3.11", RASPBERRY["proc/cpuinfo"], "aarch64", None),
        ("/usr/bin/python3.11", INTEL, "x86_64", None),
        ("/usr/bin/qemu-aarch64-static", RASPBERRY["proc/cpuinfo"], "aarch64", "qemu-aarch64-static"),
        ("/usr/libexec/qemu-binfmt/aarch64-binfmt-P (deleted)", "vendor_id : GenuineIntel\n", "aarch64", "unknown"),
        ("/run/rosetta/rosetta", "", "x86_64", "rosetta"),
        (None, "vendor_id : AuthenticAMD\n", "aarch64", "unknown"),
        (None, "vendor_id : AuthenticAMD\n", "x86_64", None),
        (None, "", "aarch64", None),
    ],
)
def test_emulators(program, cpuinfo, machine, found, fake_root: FakeRoot) -> None:
    root = fake_root({"proc/cpuinfo": cpuinfo, "proc/thread-self/comm": "python"})
    if program:
        (root / "proc/thread-self/exe").symlink_to(program)
    assert emulator(root, machine) == found


def test_this_process_is_what_it_seems() -> None:
    if emulator() is None:
        assert os.path.samefile("/proc/thread-self/exe", sys.executable)
