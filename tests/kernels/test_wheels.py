"""The wheels that `make wheels` makes: true to their tags, and all that pip needs where there is no compiler."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "runtime" / "kernels" / "scripts" / "wheels.sh"
CANNOT = 77
MACHINES = ("x86_64", "aarch64")
# No folder of compilers.
BARE = {name: value for name, value in os.environ.items() if name not in ("PATH", "PYTHONPATH", "CC", "CXX")}
# Older than asked for is as true.
TRUE_TO_2_17 = re.compile(r'is\s+consistent\s+with\s+the\s+following\s+platform\s+tag:\s+"manylinux_2_(5|12|17)_')

pytestmark = pytest.mark.slow


def call(*command: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=3000, **options)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of all three distributions."""
    folder = tmp_path_factory.mktemp("wheels")
    done = call(SCRIPT, folder, *MACHINES, env={**os.environ, "PYTHON": sys.executable})
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    done = call(*pip, ROOT / "runtime", ROOT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment of its own, in which pip found the wheels in their folder and the rest in its index."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--find-links", wheels]
    done = call(*pip, "saten-runtime[kernels]", env={**BARE, "PATH": str(home / "bin")})
    assert done.returncode == 0, done.stderr
    done = call(*pip, "--no-deps", "saten-edge", env={**BARE, "PATH": str(home / "bin")})
    assert done.returncode == 0, done.stderr
    return home / "bin"


def kernels_wheel(wheels: Path, machine: str) -> Path:
    (wheel,) = wheels.glob(f"saten_kernels-*_{machine}.whl")
    return wheel


def policy(wheel: Path) -> str:
    done = call(sys.executable, "-m", "auditwheel", "show", wheel)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("machine", MACHINES)
def test_a_wheel_needs_no_newer_system_than_its_tag_says(machine: str, wheels: Path) -> None:
    wheel = kernels_wheel(wheels, machine)
    assert f"manylinux_2_17_{machine}" in wheel.name
    assert TRUE_TO_2_17.search(policy(wheel)), policy(wheel)


def test_a_library_of_this_systems_compiler_would_be_seen(wheels: Path, library: Path, tmp_path: Path) -> None:
    wheel = kernels_wheel(wheels, os.uname().machine)
    other = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            target.writestr(name, library.read_bytes() if name.endswith(".so") else source.read(name))
    needed = call("readelf", "-V", library).stdout
    if not any(f"GLIBC_2.{minor}" in needed for minor in range(18, 60)):
        pytest.skip("this system's library asks for nothing newer either")
    assert not TRUE_TO_2_17.search(policy(other))


def test_the_descriptions_are_fit_for_an_index(wheels: Path) -> None:
    done = call(sys.executable, "-m", "twine", "check", "--strict", *sorted(wheels.glob("*.whl")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_runtime_finds_its_kernels_without_a_compiler(installed: Path, library: Path) -> None:
    code = "import dataclasses, json, saten_runtime.run.kernels as k; print(json.dumps(dataclasses.asdict(k.probe())))"
    done = call(installed / "python", "-c", code, env={**BARE, "PATH": str(installed)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["state"], found["fault"]) == ("active", "")
    here = call(sys.executable, "-c", f"import ctypes; f = ctypes.CDLL({str(library)!r}).saten_kernels_isa; "
                "f.restype = ctypes.c_char_p; print(f().decode())")  # fmt: skip
    assert found["isa"] == here.stdout.strip()  # what this system's compiler finds too


def test_a_session_that_used_them_ends_in_peace(installed: Path) -> None:
    code = (
        "import onnxruntime, saten_kernels\n"
        "for _ in range(3):\n"
        "    options = onnxruntime.SessionOptions()\n"
        "    options.register_custom_ops_library(str(saten_kernels.library()))\n"
        "    del options\n"
    )
    done = call(installed / "python", "-c", code, env={**BARE, "PATH": str(installed)})
    assert (done.returncode, done.stderr) == (0, "")


def test_saten_edge_is_whole(installed: Path) -> None:
    """Its files, beside packages that this environment has: torch alone would be gigabytes."""
    import torch

    place = str(Path(torch.__file__).parents[1])
    done = call(installed / "saten-edge", "--help", env={**BARE, "PATH": str(installed), "PYTHONPATH": place})
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout
    assert shutil.which("saten-run", path=str(installed))
