"""What machine this is and what state it is in, read from /proc and /sys.

Every reader takes `root`, the folder that holds `proc`, `sys` and `etc`; None means the machine
does not tell.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saten_runtime.machine.power import power_watts

__all__ = [
    "DECIDING_FLAGS",
    "INT8_FLAGS",
    "State",
    "available_memory_bytes",
    "boot_id",
    "cpu_flags",
    "cpu_model",
    "emulator",
    "environment",
    "package_versions",
]

_ROOT = Path("/")

# Flags that decide how fast matrices of int8 and fp32 are multiplied.
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")
DECIDING_FLAGS = ("avx2", "avx512f", "fma", "f16c", "asimd", "fphp", "asimdhp", "sve", *INT8_FLAGS)

# (implementer, part) of /proc/cpuinfo, from the Main ID Register tables of Arm and its licensees.
_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x61, 0x022): "Apple M1 Icestorm",
    (0x61, 0x023): "Apple M1 Firestorm",
    (0xC0, 0xAC3): "Ampere-1",
}

# Programs that run a foreign processor's instructions.
_EMULATORS = ("qemu-", "rosetta", "FEX", "box64")

# Bits of the Raspberry Pi firmware's get_throttled word: now, and at any time since boot.
_THROTTLE_NOW = 0xF
_THROTTLE_SINCE_BOOT = 0xF0000


@dataclass(frozen=True)
class State:
    """What may change during a run.

    clock_khz: of the fastest core now; temp_milli_c: of the hottest zone; throttle_bits: the
    firmware word of a Raspberry Pi; load: runnable processes averaged over a minute; power_watts:
    by sensor.
    """

    governor: str | None
    clock_khz: int | None
    max_clock_khz: int | None
    temp_milli_c: int | None
    throttle_bits: int | None
    load: float | None
    power_watts: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path = _ROOT) -> State:
        """The state now."""
        cpus = root / "sys/devices/system/cpu"
        load = _text(root / "proc/loadavg")
        return cls(
            governor=_text(cpus / "cpu0/cpufreq/scaling_governor"),
            clock_khz=_largest(cpus, "cpu[0-9]*/cpufreq/scaling_cur_freq"),
            max_clock_khz=_largest(cpus, "cpu[0-9]*/cpufreq/cpuinfo_max_freq"),
            temp_milli_c=_largest(root / "sys/class/thermal", "thermal_zone*/temp"),
            throttle_bits=_throttle_bits(root),
            load=float(load.split()[0]) if load else None,
            power_watts=power_watts(root),
        )

    def throttled_since(self, before: State) -> bool:
        """Whether the firmware slows the machine now, or did between `before` and now."""
        if self.throttle_bits is None:
            return False
        new = self.throttle_bits & ~(before.throttle_bits or 0) & _THROTTLE_SINCE_BOOT
        return bool(self.throttle_bits & _THROTTLE_NOW or new)


def environment(root: Path = _ROOT) -> dict[str, Any]:
    """What stays the same during a run: hardware, system and package versions, as JSON data."""
    import psutil

    flags = cpu_flags(root)
    return {
        "cpu": cpu_model(root),
        "board": (_text(root / "proc/device-tree/model") or "").strip("\0") or None,
        "machine": platform.machine(),
        "emulator": emulator(root),
        "cpu_flags": [flag for flag in DECIDING_FLAGS if flag in flags],
        "cores": len(_cpuinfo(root, "processor")) or None,
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_total_bytes": _meminfo(root, "MemTotal"),
        "memory_available_bytes": available_memory_bytes(root),
        "kernel": _text(root / "proc/sys/kernel/osrelease"),
        "distribution": _distribution(root),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str | None]:
    """Versions of what computes; None for what is not installed."""
    names = ("saten-runtime", "saten-kernels", "onnxruntime", "numpy", "tokenizers")
    return {name: _version(name) for name in names}


def boot_id(root: Path = _ROOT) -> str | None:
    """Changes whenever the machine starts."""
    return _text(root / "proc/sys/kernel/random/boot_id")


def cpu_model(root: Path = _ROOT) -> str | None:
    """The name of the processor, for ARM by implementer and part; several parts joined by " + "."""
    names = _cpuinfo(root, "model name")
    if names:
        return names[0]
    pairs = zip(_cpuinfo(root, "CPU implementer"), _cpuinfo(root, "CPU part"), strict=False)
    return " + ".join(dict.fromkeys(_arm_name(maker, part) for maker, part in pairs)) or None


def cpu_flags(root: Path = _ROOT) -> frozenset[str]:
    """Flags (x86) or features (ARM) of the first core."""
    lines = _cpuinfo(root, "flags") or _cpuinfo(root, "Features") or [""]
    return frozenset(lines[0].split())


def emulator(root: Path = _ROOT, machine: str | None = None) -> str | None:
    """What runs this process in place of a processor of its `machine`, such as "qemu-aarch64-static"; None is nothing.

    qemu-user answers for /proc/self as the emulated program would have to see it; it does not know
    /proc/thread-self, where the kernel tells what really runs. An ARM process on a processor that calls
    itself x86 is emulated too, by whatever it may be.
    """
    try:
        program = os.path.basename(os.readlink(root / "proc/thread-self/exe"))
    except OSError:
        program = ""
    if program.startswith(_EMULATORS):
        return program
    is_arm = (machine or platform.machine()).startswith(("aarch64", "arm"))
    return "unknown" if is_arm and _cpuinfo(root, "vendor_id") and not _cpuinfo(root, "CPU implementer") else None


def available_memory_bytes(root: Path = _ROOT) -> int | None:
    """What a new process may take without swapping (MemAvailable)."""
    found = _meminfo(root, "MemAvailable")
    if found is None and root == _ROOT:  # no Linux
        import psutil

        return int(psutil.virtual_memory().available)
    return found


def _arm_name(maker: str, part: str) -> str:
    try:
        return _ARM_PARTS[int(maker, 0), int(part, 0)]
    except (KeyError, ValueError):
        return f"ARM implementer {maker} part {part}"


def _throttle_bits(root: Path) -> int | None:
    word = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    if word is not None:
        return _hexadecimal(word)
    if root != _ROOT or not shutil.which("vcgencmd"):  # the tool asks this machine, which a fake root is not
        return None
    try:
        answer = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return None
    _, _, word = answer.stdout.strip().partition("=")
    return _hexadecimal(word)


def _hexadecimal(word: str) -> int | None:
    try:
        return int(word, 16)
    except ValueError:
        return None


def _distribution(root: Path) -> str | None:
    for line in (_text(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return None


def _cpuinfo(root: Path, key: str) -> list[str]:
    pairs = (line.partition(":") for line in (_text(root / "proc/cpuinfo") or "").splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _meminfo(root: Path, key: str) -> int | None:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _largest(folder: Path, pattern: str) -> int | None:
    texts = [_text(path) for path in folder.glob(pattern)]
    return max((int(text) for text in texts if text and text.lstrip("-").isdigit()), default=None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
