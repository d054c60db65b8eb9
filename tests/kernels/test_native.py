"""The native tests: every kernel against loops in float64, under sanitizers, on the other architecture, and fuzzed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Build = Callable[[str], Path]

# Enough to meet every tile border in seconds; the slow tests run a thousand.
FEW, MANY = "40", "1000"
# i8mm without SVE, as Apple's and Ampere's processors: the kernels look for no more.
ARM = ["qemu-aarch64-static", "-cpu", "max,sve=off,sme=off", "-L", "/usr/aarch64-linux-gnu"]


def sweep(folder: Path, cases: str, emulator: list[str] | None = None) -> str:
    command = [*(emulator or []), str(folder / "saten_sweep"), cases]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("all agree\n")
    return done.stdout


def test_every_kernel_agrees_with_float64(build: Build) -> None:
    lines = sweep(build("release"), FEW).splitlines()
    scalar = [line for line in lines if line.partition(":")[0].endswith("-u16__scalar")]
    assert len(scalar) == 3 * 5  # values × group sizes: the table was walked


def test_a_family_is_swept_alone(build: Build) -> None:
    command = [str(build("release") / "saten_sweep"), "5", "scalar"]
    done = subprocess.run([*command, "attention"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "attention" in done.stdout
    assert "linear" not in done.stdout
    odd = subprocess.run([*command, "attentions"], capture_output=True, text=True, timeout=600)
    assert odd.returncode == 2
    assert "no family is named attentions; there are kernels, layers and attention" in odd.stderr


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["release", "asan", "tsan", "zig-x86_64"])
def test_the_long_sweep(preset: str, build: Build) -> None:
    sweep(build(preset), MANY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "tools"), [("aarch64", ("aarch64-linux-gnu-g++", ARM[0])), ("zig-aarch64", ARM[:1])]
)
def test_the_long_sweep_on_aarch64(preset: str, tools: Sequence[str], build: Build) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    output = sweep(build(preset), MANY, ARM)
    for isa in ("neon", "neondot", "neoni8mm"):
        assert f"quantized__{isa}: {MANY} cases" in output


@pytest.mark.slow
def test_a_processor_without_dot_products_has_none(build: Build) -> None:
    """A Raspberry Pi 4's: its sums of bytes are widened, and as exact."""
    for tool in ("aarch64-linux-gnu-g++", ARM[0]):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    output = sweep(build("aarch64"), FEW, [ARM[0], "-cpu", "cortex-a72", *ARM[3:]])
    assert f"quantized__neon: {FEW} cases" in output
    assert "neondot" not in output


@pytest.mark.slow
def test_a_minute_of_fuzzing(build: Build, tmp_path: Path) -> None:
    if shutil.which("clang++") is None:
        pytest.skip("no clang++ here")
    limits = ["-max_total_time=60", "-max_len=4096", "-timeout=20"]
    command = [str(build("fuzz") / "saten_fuzz"), *limits, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_library_needs_nothing_but_the_c_library(library: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf here")
    read = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in read.splitlines() if "(NEEDED)" in line}
    assert {name.split(".")[0] for name in needed} <= {"libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}


def test_the_library_exports_only_what_is_called(library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm here")
    symbols = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert names == {"RegisterCustomOps", "saten_kernels_isa", "saten_kernels_version"}
