"""The packages a board needs, fetched here for its Python, C library and processor: it needs no internet."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import saten_runtime
from saten_edge.devices.board import Hello
from saten_runtime.errors import DeviceError
from saten_runtime.records.files import key_of, write_json
from saten_runtime.records.folders import new_folder
from saten_runtime.records.system import user_cache

__all__ = ["fetch_wheels", "runtime_wheel", "wheel_cache", "wheel_tags"]

_OLDEST_MANYLINUX = 17
_PIP_LIMIT_S = 1200
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip can hold, so that equal sources give equal bytes
_DONE = "complete.json"


def fetch_wheels(hello: Hello) -> list[Path]:
    """Wheels of the runtime and all it needs, from the cache of this user or the package index.

    Raises:
        DeviceError: pip finds no wheels for that board, or no network.
    """
    needed = _requirements()
    key = key_of([needed, wheel_tags(hello)])
    folder = wheel_cache() / f"py{hello.python[0]}{hello.python[1]}-{hello.machine}-{key}"
    if not (folder / _DONE).is_file():
        with new_folder(folder, overwrite=True) as aside:
            _download(needed, hello, aside)
            write_json(aside / _DONE, needed)
    return [*sorted(folder.glob("*.whl")), runtime_wheel(wheel_cache())]


def wheel_tags(hello: Hello) -> list[str]:
    """Platform tags whose wheels load with that C library, newest first."""
    _, minor = hello.glibc or (2, _OLDEST_MANYLINUX)
    tags = [f"manylinux_2_{number}_{hello.machine}" for number in range(minor, _OLDEST_MANYLINUX - 1, -1)]
    return [*tags, f"manylinux2014_{hello.machine}"]


def runtime_wheel(folder: Path) -> Path:
    """`saten_runtime` as it is imported here, packed as a wheel below `folder`; the same bytes for the same sources."""
    package = Path(saten_runtime.__file__).parent
    name = f"saten_runtime-{saten_runtime.__version__}"
    info = f"{name}.dist-info"
    contents = {
        f"saten_runtime/{path.relative_to(package)}": path.read_bytes() for path in sorted(package.rglob("*.py"))
    }
    contents[f"{info}/METADATA"] = _metadata().encode()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: saten-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/RECORD"] = _record(contents, info).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-py3-none-any.whl"
    aside = wheel.with_name(f".{wheel.name}.partial-{os.getpid()}")
    with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), content)
    os.replace(aside, wheel)
    return wheel


def _requirements() -> list[str]:
    entries = importlib.metadata.requires("saten-runtime") or []
    return sorted(entry for entry in entries if "extra ==" not in entry)


def _metadata() -> str:
    head = f"Metadata-Version: 2.1\nName: saten-runtime\nVersion: {saten_runtime.__version__}\n"
    return head + "".join(f"Requires-Dist: {requirement}\n" for requirement in _requirements())


def _record(contents: dict[str, bytes], info: str) -> str:
    def lines() -> Iterator[str]:
        for path, content in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            yield f"{path},sha256={digest},{len(content)}\n"
        yield f"{info}/RECORD,,\n"

    return "".join(lines())


def wheel_cache() -> Path:
    """Where the wheels for boards are kept, and where those of the kernels are looked for."""
    return user_cache("wheels")


def _download(requirements: list[str], hello: Hello, folder: Path) -> None:
    python = f"{hello.python[0]}.{hello.python[1]}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [part for tag in wheel_tags(hello) for part in ("--platform", tag)]
    try:
        done = subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=_PIP_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"pip download: no end after {_PIP_LIMIT_S} s; is the network up?") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or done.stderr.splitlines()
        words = errors[0].removeprefix("ERROR: ") if errors else f"exit code {done.returncode}"
        raise DeviceError(
            f"pip download for Python {python} on {hello.machine}: {words}; once fetched, no network is needed"
        )
