"""Everything that could stop a run on this device, each with what to do about it.

The checks stand in the table `CHECKS`; each takes an `Examination` and gives a `Check`.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saten_runtime.bench.plan import Plan, Size
from saten_runtime.bundle.folder import VALIDATION_FOLDER, Bundle
from saten_runtime.bundle.manifest import read_manifest
from saten_runtime.errors import SatenError
from saten_runtime.machine.child import Child, how_it_ended, python_command
from saten_runtime.machine.device import INT8_FLAGS, State, available_memory_bytes, cpu_flags, cpu_model
from saten_runtime.machine.load import busy_programs
from saten_runtime.machine.memory import needed_bytes
from saten_runtime.records.plain_text import last_line
from saten_runtime.run.kernels import SWITCH, probe
from saten_runtime.run.products import probe_products
from saten_runtime.vocabulary.files import MODEL_FILE

__all__ = ["CHECKS", "Check", "Examination", "examine"]

# Oldest C library that the wheels of ONNX Runtime load with (manylinux_2_28).
_OLDEST_GLIBC = (2, 28)
_OLDEST_PYTHON = (3, 10)
_IMPORT_LIMIT_S = 120
_RUN_LIMIT_S = 600
_MOST_NAMED = 5
_LEAST_DISK_BYTES = 200 * 2**20


@dataclass(frozen=True)
class Check:
    """status: "OK", "WARN" (slower or less certain) or "FAIL" (will not run)."""

    name: str
    status: str
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """The check as plain JSON data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Examination:
    """What is examined: a device by its `root` (see `device`), and a bundle folder or None."""

    root: Path = Path("/")
    bundle: Path | None = None

    @property
    def weights_bytes(self) -> int:
        """Size of the graph and its weights on disk, 0 without a bundle that can be read."""
        files = self.bundle.glob(f"{MODEL_FILE}*") if self.bundle is not None else ()
        return sum(file.stat().st_size for file in files)


def examine(bundle: Path | None = None, root: Path = Path("/")) -> list[Check]:
    """Run every check of `CHECKS`."""
    return [check(Examination(root, bundle)) for check in CHECKS]


def _python(_: Examination) -> Check:
    found = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return Check("python", "FAIL", found, "install Python 3.10 or newer")
    if sys.maxsize < 2**32:
        return Check("python", "FAIL", f"{found}, 32 bit", "install a 64-bit system; onnxruntime has no 32-bit wheels")
    return Check("python", "OK", found)


def _glibc(_: Examination) -> Check:
    name, version = platform.libc_ver()
    if name != "glibc":
        return Check("glibc", "FAIL", name or "none", "use a system with glibc; onnxruntime has no musl wheels")
    if tuple(map(int, version.split(".")[:2])) < _OLDEST_GLIBC:
        return Check("glibc", "FAIL", version, "use a system with glibc 2.28 or newer, such as Debian 10")
    return Check("glibc", "OK", version)


def _onnxruntime(_: Examination) -> Check:
    # In a child: some wheels use instructions that older boards lack, which kills the process.
    command = python_command("import onnxruntime; print(onnxruntime.__version__)")
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Check("onnxruntime", "FAIL", f"no answer in {_IMPORT_LIMIT_S} s", "reinstall onnxruntime")
    if child.returncode == 0:
        return Check("onnxruntime", "OK", child.stdout.strip())
    words = last_line(child.stderr)
    advice = "install another version of onnxruntime: pip install --force-reinstall onnxruntime==VERSION"
    return Check("onnxruntime", "FAIL", how_it_ended(child.returncode, words), advice)


def _kernels(_: Examination) -> Check:
    found = probe()
    advice = {
        "unusable": "the function bodies run instead; install the saten-kernels that fits",
        "off": f"unset {SWITCH} to use the native kernels",
    }
    return Check("kernels", "WARN" if found.state in advice else "OK", found.words, advice.get(found.state, ""))


def _cpu(examination: Examination) -> Check:
    name = cpu_model(examination.root) or "unknown processor"
    fast = [flag for flag in INT8_FLAGS if flag in cpu_flags(examination.root)]
    if not fast:
        return Check(
            "cpu", "WARN", name, "no int8 dot product instructions: int8 may be slower than fp32; measure both"
        )
    return Check("cpu", "OK", f"{name}, {' '.join(fast)}")


def _products(_: Examination) -> Check:
    try:
        found = probe_products()
    except SatenError as error:
        return Check("int8 sums", "FAIL", str(error), "see the checks above")
    if wrong := [name for name, exact in found.items() if not exact]:
        advice = "do not use bundles of int8 here; those of int8-block, int4, fp16 and fp32 are right"
        return Check("int8 sums", "WARN", f"{' and '.join(wrong)}: products of 8 bits saturate", advice)
    return Check("int8 sums", "OK", f"exact: {', '.join(found)}")


def _memory(examination: Examination) -> Check:
    available = available_memory_bytes(examination.root)
    if available is None:
        return Check("memory", "WARN", "unknown", "the system has no MemAvailable; watch it yourself")
    least, need = (needed_bytes(examination.weights_bytes, mode) for mode in ("small", "fast"))
    found = f"{available // 2**20} MiB available, about {need // 2**20} MiB needed"
    if available < least:
        return Check("memory", "FAIL", found, "stop other programs, or take a smaller bundle")
    if available < need:
        return Check("memory", "WARN", found, "use --memory small")
    return Check("memory", "OK", found)


def _governor(examination: Examination) -> Check:
    governor = State.read(examination.root).governor
    if governor is None:
        return Check("governor", "OK", "not controlled here")
    if governor != "performance":
        return Check("governor", "WARN", governor, "for stable numbers: sudo cpupower frequency-set -g performance")
    return Check("governor", "OK", governor)


def _throttling(examination: Examination) -> Check:
    state = State.read(examination.root)
    if state.throttle_bits:
        return Check("throttling", "WARN", f"{state.throttle_bits:#x}", "cool the board, or use a stronger supply")
    heat = "" if state.temp_milli_c is None else f"{state.temp_milli_c / 1000:.0f} °C"
    return Check("throttling", "OK", heat or "not reported here")


def _programs(examination: Examination) -> Check:
    if examination.root != Path("/"):
        return Check("other programs", "OK", "not this machine")
    busy = busy_programs()
    found = ", ".join(f"{one.name} ({one.pid}) {one.share:.0%}" for one in busy[:_MOST_NAMED])
    if busy:
        return Check("other programs", "WARN", f"{found} of a core", "stop them before you measure")
    return Check("other programs", "OK", "none takes a tenth of a core")


def _disk(_: Examination) -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free // 2**20} MiB free in this folder"
    if free < _LEAST_DISK_BYTES:
        return Check("disk", "WARN", found, "make room; results and samples need up to 200 MiB")
    return Check("disk", "OK", found)


def _bundle(examination: Examination) -> Check:
    if examination.bundle is None:
        return Check("bundle", "OK", "none given")
    try:
        bundle = Bundle.open(examination.bundle)
    except SatenError as error:
        return Check("bundle", "FAIL", str(error), "copy or export the bundle again")
    return Check("bundle", "OK", f"{bundle.name}: {len(bundle.manifest.files)} files, every sha256 as it should be")


def _smallest(folder: Path) -> Size:
    return Plan(tokens=(2,), generate=(1,)).sizes(Bundle(folder, read_manifest(folder)).items)[0]


def _runs(examination: Examination) -> Check:
    if examination.bundle is None:
        return Check("run", "OK", "no bundle given")
    try:
        with Child() as child:
            child.ask(
                "load", bundle=str(examination.bundle.resolve()), threads=1, memory="small", timeout_s=_RUN_LIMIT_S
            )
            child.ask("prepare", size=dataclasses.asdict(_smallest(examination.bundle)), vocabulary=1)
            child.ask("run", warmup=0, iterations=1, min_ns=0, timeout_s=_RUN_LIMIT_S)
    except SatenError as error:
        return Check("run", "FAIL", str(error), "see the checks above")
    return Check("run", "OK", "the bundle gave a finite result")


def _replay(examination: Examination) -> Check:
    """Whether the bundle gives here what torch gave where it was exported; a tampered one does not."""
    if examination.bundle is None:
        return Check("validation", "OK", "no bundle given")
    try:
        manifest = read_manifest(examination.bundle)
        bound = manifest.tolerance.get("relative")
        if not any(name.startswith(f"{VALIDATION_FOLDER}/") and name.endswith(".npy") for name in manifest.files):
            return Check("validation", "WARN", "nothing to compare with", "export the bundle again")
        with Child() as child:
            answer = child.ask("replay", bundle=str(examination.bundle.resolve()), timeout_s=_RUN_LIMIT_S)
    except SatenError as error:
        return Check("validation", "FAIL", str(error), "copy or export the bundle again, or take another precision")
    found = f"{answer['comparisons']} outputs as in torch, the worst {answer['worst']:.1e} apart"
    if bound is None:
        return Check("validation", "WARN", f"{found}; the bundle allows any", "export the bundle again")
    return Check("validation", "OK", f"{found}; allowed are {bound:.1e}")


CHECKS: tuple[Callable[[Examination], Check], ...] = (
    _python,
    _glibc,
    _onnxruntime,
    _kernels,
    _cpu,
    _products,
    _memory,
    _governor,
    _throttling,
    _programs,
    _disk,
    _bundle,
    _runs,
    _replay,
)
