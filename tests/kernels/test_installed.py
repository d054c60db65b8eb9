"""Bundles with `saten-kernels` installed: active, the same numbers, and one line where it cannot be used."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import saten_runtime
from saten_edge.checkpoints.models import load_model
from saten_exporters import export
from saten_runtime.bundle.folder import Bundle

RunPython = Callable[..., subprocess.CompletedProcess[str]]

PREDICT = """
import numpy, saten_runtime
vectors = saten_runtime.Runner.load({bundle!r}, threads=2).predict({texts!r})
numpy.save({out!r}, vectors)
"""
WHERE = "import saten_runtime.run.kernels as k; print(k._library())"
ACTIVE = "import json, dataclasses, saten_runtime.run.kernels as k; print(json.dumps(dataclasses.asdict(k.probe())))"
TOO_OLD = """
import ctypes
library = ctypes.CDLL({library!r})

NoApi = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
Version = ctypes.CFUNCTYPE(ctypes.c_char_p)
Status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
said = []
status = Status(lambda code, words: said.append(words) or 1)
api = (ctypes.c_void_p * 1)(ctypes.cast(status, ctypes.c_void_p))  # CreateStatus is the first function of every version
get = NoApi(lambda version: ctypes.addressof(api) if version == 1 else None)
version = Version(lambda: b"1.2.3")
base = (ctypes.c_void_p * 2)(ctypes.cast(get, ctypes.c_void_p), ctypes.cast(version, ctypes.c_void_p))
library.RegisterCustomOps.restype = ctypes.c_void_p
assert library.RegisterCustomOps(None, base) == 1
print(said[0].decode())
"""


def test_probe_says_what_is_active(site: Path, run_python: RunPython) -> None:
    found = json.loads(run_python(ACTIVE, site).stdout)
    assert found["state"] == "active"
    assert found["version"] == saten_runtime.__version__
    assert found["isa"]
    assert found["fault"] == ""


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "neon", "neondot", "neoni8mm"])
def test_sums_of_bytes_are_exact(isa: str, site: Path, run_python: RunPython) -> None:
    code = "from saten_runtime.run import products; print(products.exact_kernels(), products._LARGEST)"
    done = run_python(code, site, SATEN_KERNELS_ISA=isa)
    if f"SATEN_KERNELS_ISA={isa}: this processor has" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.stdout == "True 127\n", done.stderr
    # The twin: codes that add up to another sum than is expected.
    wrong = code.replace("print", "products._codes = lambda *s: products.np.full(s, 63, 'int8'); print", 1)
    assert run_python(wrong, site, SATEN_KERNELS_ISA=isa).stdout == "False 127\n"


@pytest.mark.parametrize(("processor", "isa"), [("SandyBridge", "scalar"), ("Haswell", "avx2")])
def test_an_older_processor_loads_and_is_exact(processor: str, isa: str, site: Path, run_python: RunPython) -> None:
    """No instruction of a newer set runs there, not even while the library is loaded."""
    if platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None:
        pytest.skip("needs an x86-64 machine with qemu-x86_64 (Debian: qemu-user)")
    code = "from saten_runtime.run.kernels import _library, _version_and_isa\n"
    code += "from saten_runtime.run.products import exact_kernels\n"
    code += "print(exact_kernels(), _version_and_isa(_library())[1])"
    done = run_python(code, site, emulator=("qemu-x86_64", "-cpu", processor))
    assert done.stdout == f"True {isa}\n", done.stderr


def test_the_switch_turns_them_off(site: Path, run_python: RunPython) -> None:
    assert json.loads(run_python(ACTIVE, site, SATEN_KERNELS="0").stdout)["state"] == "off"


def test_an_instruction_set_can_be_chosen(site: Path, run_python: RunPython) -> None:
    assert json.loads(run_python(ACTIVE, site, SATEN_KERNELS_ISA="scalar").stdout)["isa"] == "scalar"
    found = json.loads(run_python(ACTIVE, site, SATEN_KERNELS_ISA="abacus").stdout)
    assert found["state"] == "unusable"
    assert "SATEN_KERNELS_ISA=abacus: this processor has" in found["fault"]


def test_a_library_in_the_current_folder_is_not_taken(site: Path, run_python: RunPython) -> None:
    """This Python may have one of its own, as after `make demo`."""
    assert str(site) in run_python(WHERE, site).stdout
    for place in (None, site):
        done = run_python(WHERE, place, cwd=site)
        assert (done.returncode, done.stderr) == (0, "")
        assert str(site) not in done.stdout


def test_an_onnxruntime_that_is_too_old(library: Path, run_python: RunPython) -> None:
    done = run_python(TOO_OLD.format(library=str(library)))
    assert done.stdout == f"saten-kernels {saten_runtime.__version__} needs onnxruntime 1.23 or newer, found 1.2.3\n"


@pytest.mark.parametrize("model", ["saten", "unstructured"])
def test_a_bundle_gives_the_same_with_and_without(
    model: str,
    site: Path,
    bundle_of: Callable[[str, str], Bundle],
    run_python: RunPython,
    texts: list[str],
    tmp_path: Path,
) -> None:
    expect_the_same(bundle_of(model, "fp32"), bundle_of(model, "int8"), site, run_python, texts[:12], tmp_path)


def test_the_real_model_gives_the_same_with_and_without(
    minilm_saten: Path, site: Path, run_python: RunPython, texts: list[str], tmp_path: Path
) -> None:
    loaded = load_model(minilm_saten)
    fp32, int8 = (export(loaded, tmp_path / precision, precision=precision) for precision in ("fp32", "int8"))
    expect_the_same(fp32, int8, site, run_python, texts[:12], tmp_path)


def expect_the_same(
    fp32: Bundle, int8: Bundle, site: Path, run_python: RunPython, texts: list[str], folder: Path
) -> None:
    def vectors(bundle: Bundle, place: Path | None) -> np.ndarray:
        out = str(folder / "vectors.npy")
        code, switch = PREDICT.format(bundle=str(bundle.path), texts=texts, out=out), "0" if place is None else "1"
        done = run_python(code, place, SATEN_KERNELS=switch)
        assert (done.returncode, done.stderr) == (0, "")
        return np.load(out)

    exact, close = vectors(fp32, None), vectors(fp32, site)
    # Both lie within the bundle's bound of the same exact vectors, which have length 1.
    bound = 2 * fp32.manifest.tolerance["relative"]
    assert np.linalg.norm(close - exact) <= bound * np.linalg.norm(exact)
    # A row's own range is no wider than the tensor's: the kernels' 8-bit steps are no larger than the bodies'.
    coarse, fine = (np.linalg.norm(vectors(int8, place) - exact) for place in (None, site))
    assert 0 < fine <= 1.25 * coarse
    assert fine != coarse  # the kernels ran


@pytest.mark.parametrize("damage", ["truncated", "missing", "other machine", "text"])
def test_a_library_that_cannot_be_used_is_said_once_and_not_used(
    damage: str,
    site: Path,
    bundle_of: Callable[[str, str], Bundle],
    run_python: RunPython,
    tmp_path: Path,
) -> None:
    broken = shutil.copytree(site, tmp_path / "site")
    file = broken / "saten_kernels" / "libsaten_kernels.so"
    content = bytearray(file.read_bytes())
    content[18:20] = (243).to_bytes(2, "little")  # RISC-V
    file.unlink()
    damaged = {"truncated": bytes(content[:18]), "other machine": bytes(content), "text": b"kernels" * 100}
    if damage in damaged:
        file.write_bytes(damaged[damage])
    bundle = str(bundle_of("saten", "fp32").path)
    code = f"import saten_runtime as s; [s.Runner.load({bundle!r}).predict(['a']) for _ in range(2)]; print('done')"
    done = run_python(code, broken)
    assert (done.returncode, done.stdout) == (0, "done\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"native kernels: {file}: ")
    assert line.endswith("; the function bodies run instead")
    assert "install" in line
