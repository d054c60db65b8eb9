"""The optional native kernels: distribution `saten-kernels`, one library of ONNX Runtime operators.

Without it, or where it cannot be used, ONNX Runtime runs the function bodies that every bundle carries. The library
is looked for where packages are installed, never in the current folder and never where a file says.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import json
import logging
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from saten_runtime.machine.child import how_it_ended, python_command
from saten_runtime.machine.device import cpu_flags, cpu_model
from saten_runtime.records.files import key_of, parse_json
from saten_runtime.records.plain_text import last_line, one_line
from saten_runtime.records.system import user_cache

__all__ = ["SWITCH", "Kernels", "probe", "register"]

SWITCH = "SATEN_KERNELS"  # "0" turns them off
_PACKAGE = "saten_kernels"
_FILE = "libsaten_kernels.so"
_PROBE_LIMIT_S = 120
# What ONNX Runtime puts before a library's own words.
_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
# Machine numbers of ELF files, by the name that Python knows the machine by.
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


@dataclass(frozen=True)
class Kernels:
    """state: "active", "off" (by the switch), "not installed", or "unusable", with the reason in `fault`.

    version, isa: of an active library, the instruction set it chose.
    """

    state: str
    version: str | None = None
    isa: str | None = None
    fault: str = ""

    @property
    def words(self) -> str:
        """The state in a line."""
        return f"{self.version}, {self.isa}" if self.state == "active" else self.fault or self.state


def register(options: Any) -> Kernels:
    """Add the kernels to `options`, an `onnxruntime.SessionOptions`, where they can be used.

    Where they cannot although they are installed, one line says so, once in a process. A library that was never loaded
    on this processor is loaded in a process of its own first: one that it ends there would end this one, too.
    """
    library = _library()
    found = _tried(library)
    if found is None or found.state == "active":
        found = _register(options, library)
    if found.state == "unusable":
        _say(f"native kernels: {found.fault}; the function bodies run instead")
    return found


def probe() -> Kernels:
    """What `register` would do, found out in a process of its own: loading the library is running it."""
    library = _library()
    code = f"from saten_runtime.run.kernels import _main; _main({None if library is None else str(library)!r})"
    try:
        child = subprocess.run(python_command(code), capture_output=True, text=True, timeout=_PROBE_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Kernels("unusable", fault=f"{library}: no answer in {_PROBE_LIMIT_S} s")
    if child.returncode != 0:
        words = last_line(child.stderr)
        return Kernels("unusable", fault=f"{library}: {how_it_ended(child.returncode, words)}")
    found = Kernels(**parse_json(child.stdout.splitlines()[-1].encode()))
    if found.state == "active" and library is not None:
        _note(library)
    return found


def _tried(library: Path | None) -> Kernels | None:
    """What came of loading the library in a process of its own, where it was not loaded here before."""
    if library is None or _fault(library) or os.environ.get(SWITCH) == "0" or _is_known(library):
        return None
    return _probe_once(_key(library))


@functools.cache
def _probe_once(key: str) -> Kernels:
    """Once for each library that a process meets; key: of the library."""
    return probe()


def _is_known(library: Path) -> bool:
    """Whether this very file was loaded on this very processor before, and nothing happened."""
    with contextlib.suppress(OSError):  # no home
        return _mark(library).is_file()
    return False


def _note(library: Path) -> None:
    with contextlib.suppress(OSError):  # no home, or one that takes no file: it is tried again next time
        mark = _mark(library)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(library: Path) -> Path:
    return user_cache("kernels") / _key(library)


def _key(library: Path) -> str:
    """Of this very file on this very processor."""
    try:
        found = library.stat()
        facts = [str(library), found.st_size, found.st_mtime_ns, cpu_model(), sorted(cpu_flags())]
    except OSError:
        facts = [str(library)]
    return key_of(facts)


def _main(library: str | None) -> None:
    import onnxruntime

    found = _register(onnxruntime.SessionOptions(), None if library is None else Path(library))
    sys.stdout.write(json.dumps(dataclasses.asdict(found), allow_nan=False) + "\n")


def _register(options: Any, library: Path | None) -> Kernels:
    if os.environ.get(SWITCH) == "0":
        return Kernels("off")
    if library is None:
        return Kernels("not installed")
    fault = _fault(library)
    if fault:
        return Kernels("unusable", fault=f"{library}: {fault}")
    try:
        options.register_custom_ops_library(str(library))
    except Exception as cause:  # the exception types of ONNX Runtime share no base of their own
        words = _STATUS.sub("", one_line(cause))
        return Kernels("unusable", fault=f"{library}: {words}")
    return Kernels("active", *_version_and_isa(library))


def _library() -> Path | None:
    here = Path.cwd()
    places = [place for place in sys.path if place and Path(place).resolve() != here]
    spec = PathFinder.find_spec(_PACKAGE, places)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().with_name(_FILE)


def _fault(library: Path) -> str:
    """Why the file cannot be loaded here, or "" for no reason that it shows itself."""
    wanted = _ELF_MACHINES.get(platform.machine())
    try:
        with library.open("rb") as file:
            head = file.read(20)
    except OSError as cause:
        return f"cannot be read ({cause.strerror}); install saten-kernels again"
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return "is no library of this system; install saten-kernels again"
    machine = int.from_bytes(head[18:20], "little")
    if machine != wanted:
        names = {number: name for name, number in _ELF_MACHINES.items()}
        return (
            f"was built for {names.get(machine, f'ELF machine {machine}')}, this is {platform.machine()}; "
            "install the saten-kernels of this machine"
        )
    return ""


def _version_and_isa(library: Path) -> tuple[str, str]:
    loaded = ctypes.CDLL(str(library))
    texts = []
    for function in (loaded.saten_kernels_version, loaded.saten_kernels_isa):
        function.restype = ctypes.c_char_p
        texts.append(function().decode())
    return texts[0], texts[1]


@functools.cache
def _say(line: str) -> None:
    logging.getLogger("saten_runtime").warning(line)
