#!/usr/bin/env python3
"""Cycles per multiply-accumulate of the NEON kernels' inner loops on cores that are not here, by llvm-mca.

    scripts/simulate_arm.py            prints the table of docs/kernels.md

A simulation: llvm-mca schedules the instructions of a loop by LLVM's model of a core, with every load in the nearest
cache and every branch predicted. The peak of a core is that of the same model for multiply-adds that wait for nothing.
LLVM has no models of Cortex-A76 and X1, and gives them A57's; their server siblings Neoverse N1 and V1 stand in.
Needs Debian's g++-aarch64-linux-gnu and llvm-19 (LLVM 16 is the first with these models).
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"
COMPILER, FILTER = "aarch64-linux-gnu-g++", "c++filt"
SIMULATORS = ("llvm-mca-19", "llvm-mca-18", "llvm-mca-17", "llvm-mca-16")
# Core → the processor whose model stands for it.
CORES = {
    "cortex-a53": "cortex-a53",
    "cortex-a72": "cortex-a72",
    "cortex-a76": "neoverse-n1",
    "cortex-x1": "neoverse-v1",
}
WITH_DOT = ("cortex-a76", "cortex-x1")
# Products that one instruction adds up.
MACS = {"fmla": 4, "smlal": 4, "smlal2": 4, "sdot": 16}
TIMES = 200


@dataclass(frozen=True)
class Kernel:
    """The loops of the functions whose name `pattern` matches; `mac` is what they multiply with."""

    name: str
    file: str
    flags: tuple[str, ...]
    pattern: str
    mac: str


NEON: tuple[str, ...] = ()
DOT = ("-march=armv8.2-a+dotprod",)
GROUPS = (4, 8, 16, 32)
KERNELS = (
    Kernel("dense fp32", "isa_neon.cc", NEON, r"dense(_step)?<.*Neon", "fmla"),
    *(
        Kernel(
            f"blocks of {group} {name}",
            "isa_neon.cc",
            NEON,
            rf"(row_step|many_rows|blocks)<.*Neon, {group}ul, {stored}, unsigned short",
            "fmla",
        )
        for name, stored in (("fp32", "float"), ("int8", "signed char"))
        for group in GROUPS
    ),
    Kernel("CSR fp32", "isa_neon.cc", NEON, r"single\w*<.*Neon, float, unsigned short", "fmla"),
    Kernel("dense int8, widened", "isa_neon.cc", NEON, r"quantized(_rows|_row|_step|\()", "smlal"),
    Kernel("dense int8, dot products", "isa_neondot.cc", DOT, r"quantized(_rows|_step|\()", "sdot"),
)


@functools.cache
def functions(file: str, flags: tuple[str, ...]) -> dict[str, list[str]]:
    """The instructions and labels of every function of a file, by its full name."""
    command = [COMPILER, "-std=c++17", "-O3", "-DNDEBUG", "-fPIC", *flags, "-S", "-o", "-", str(SOURCES / file)]
    assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    full = subprocess.run([FILTER], input=assembly, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in full.splitlines():
        if line and not line[0].isspace() and line.endswith(":") and not line.startswith("."):
            lines = found.setdefault(line[:-1], [])
        lines.append(line.split("//")[0].strip())
    return found


def loops(lines: list[str]) -> list[list[str]]:
    """The straight bodies that end in a jump back to their beginning."""
    found = []
    for number, line in enumerate(lines):
        jump = re.match(r"(?:b\.?\w+|cbn?z\s+\w+,|tbn?z\s+.*,)\s+(\.L\d+)$", line)
        if jump is None or f"{jump[1]}:" not in lines[:number]:
            continue
        body = lines[lines.index(f"{jump[1]}:") + 1 : number]
        if not any(each.startswith(("b", "cb", "tb")) and not each.startswith("bi") for each in body):
            found.append([each for each in body if each and not each.startswith(".")])
    return found


def macs(body: list[str], mac: str) -> int:
    """How many products one pass adds up."""
    names = (mac, f"{mac}2")
    return sum(MACS[each.split()[0]] for each in body if each.split()[0] in names)


def inner_loop(kernel: Kernel) -> list[str]:
    """The loop with the most products: that of many rows."""
    bodies = [
        body
        for name, lines in functions(kernel.file, kernel.flags).items()
        if re.search(kernel.pattern, name)
        for body in loops(lines)
    ]
    best = max(bodies, key=lambda body: macs(body, kernel.mac), default=[])
    if not macs(best, kernel.mac):
        raise SystemExit(f"{kernel.name}: no loop with {kernel.mac} in {kernel.file}; was a function renamed?")
    return best


def cycles(body: list[str], core: str) -> float:
    """Of one pass."""
    simulator = next((each for each in SIMULATORS if shutil.which(each)), None)
    if simulator is None:
        raise SystemExit("no llvm-mca of LLVM 16 or later here: apt install llvm-19")
    command = [simulator, "-mtriple=aarch64", f"-mcpu={CORES[core]}", f"-iterations={TIMES}"]
    done = subprocess.run(command, input="\n".join(body), capture_output=True, text=True)
    total = re.search(r"Total Cycles: +(\d+)", done.stdout)
    if total is None:
        raise SystemExit(f"{simulator}: {done.stderr.strip()}")
    return int(total[1]) / TIMES


@functools.cache
def peak(mac: str, core: str) -> float:
    """Products per cycle of multiply-adds that wait for nothing."""
    form = {
        "fmla": "fmla v{0}.4s, v28.4s, v29.4s",
        "smlal": "smlal v{0}.4s, v28.4h, v29.4h",
        "sdot": "sdot v{0}.4s, v28.16b, v29.16b",
    }
    count = 24
    return count * MACS[mac] / cycles([form[mac].format(number) for number in range(count)], core)


def cell(kernel: Kernel, core: str) -> str:
    """Cycles per product, and the share of the peak."""
    if kernel.mac == "sdot" and core not in WITH_DOT:
        return "–"
    body = inner_loop(kernel)
    per_mac = cycles(body, core) / macs(body, kernel.mac)
    return f"{per_mac:.3f} ({100 / per_mac / peak(kernel.mac, core):.0f} %)"


def main() -> None:
    """Print the table."""
    for tool in (COMPILER, FILTER):
        if shutil.which(tool) is None:
            raise SystemExit(f"no {tool} here")
    rows = [["inner loop", *CORES], ["---", *("--:" for _ in CORES)]]
    rows += [[kernel.name, *(cell(kernel, core) for core in CORES)] for kernel in KERNELS]
    for name, mac in (("peak, fp32", "fmla"), ("peak, widened int8", "smlal"), ("peak, dot products", "sdot")):
        peaks = ["–" if mac == "sdot" and core not in WITH_DOT else f"{1 / peak(mac, core):.3f}" for core in CORES]
        rows.append([name, *peaks])
    sys.stdout.write("".join(f"| {' | '.join(row)} |\n" for row in rows))


if __name__ == "__main__":
    main()
