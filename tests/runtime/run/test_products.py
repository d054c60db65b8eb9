"""Products of 8 bits are exact in our sessions, also where ONNX Runtime's own choice saturates."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from saten_runtime.run.products import EXACT_BYTES, exact_bytes, probe_products, product_model

# With and without what ONNX Runtime has for it, each with and without its optimizations.
EVERY = """
import json
from saten_runtime.run.products import EXACT_BYTES, exact_bytes
name, value = EXACT_BYTES
print(json.dumps([exact_bytes(optimized=o, entry=(name, v)) for v in (value, "0") for o in (True, False)]))
"""


def emulated(processor: str, *command: str) -> subprocess.CompletedProcess[str]:
    if platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None:
        pytest.skip("needs an x86-64 machine with qemu-x86_64 (Debian: qemu-user)")
    emulator = ["qemu-x86_64", "-cpu", processor, sys.executable]
    return subprocess.run([*emulator, *command], capture_output=True, text=True, timeout=300)


def test_they_are_exact_here() -> None:
    assert exact_bytes()
    assert probe_products()["ONNX Runtime"]


@pytest.mark.parametrize(
    ("processor", "found"),
    [
        ("SandyBridge", [True, True, True, True]),  # no AVX2: other instructions, which do not saturate
        ("Haswell", [True, False, False, False]),  # AVX2 without VNNI: the last three are this test's twins
        ("EPYC", [True, False, False, False]),
    ],
)
def test_they_are_exact_without_vnni(processor: str, found: list[bool]) -> None:
    done = emulated(processor, "-c", EVERY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == found


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_a_model_of_one_product(kind: str) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 9, (3, 5)), rng.integers(-9, 9, (5, 4))
    if kind == "float32":
        model = product_model("MatMul", {"w": w.astype(np.float32)})
    else:
        model = product_model("MatMulInteger", {"w": w.astype(np.int8)}, x="uint8", y="int32")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert (session.run(["y"], {"x": x.astype(kind)})[0] == x @ w).all()
    assert (session.run(["y"], {"x": (x + 1).astype(kind)})[0] != x @ w).any()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONNX Runtime has the entry on x86-64 alone")
def test_the_entry_is_one_that_onnxruntime_knows() -> None:
    """A name that it does not know would be taken without a word."""
    name = EXACT_BYTES[0].encode()
    folder = Path(onnxruntime.__file__).parent / "capi"
    assert any(name in library.read_bytes() for library in folder.glob("*.so*"))
