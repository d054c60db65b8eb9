"""int8 bundles on an x86-64 processor that has AVX2 and no VNNI, as most of before 2019 do, emulated."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.kernels import SWITCH

# The worst error, in sessions with the entry that makes sums of bytes exact there, and without.
WORST = """
import json, sys
from saten_runtime.run.parity import compare
from saten_runtime.bundle.folder import Bundle
from saten_runtime.run import session
bundle, worst = Bundle.open(sys.argv[1]), []
for session.exact_entries in (session.exact_entries, dict):
    worst.append(max(row.relative_error for row in compare(bundle)))
print(json.dumps(worst))
"""


@pytest.mark.parametrize("precision", ["int8", "int8-block", "int4"])
def test_a_bundle_is_as_right_as_where_it_was_made(
    precision: str, tiny_saten: Path, exported: Callable[..., Path]
) -> None:
    if platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None:
        pytest.skip("needs an x86-64 machine with qemu-x86_64 (Debian: qemu-user)")
    folder = exported(tiny_saten, f"x86-{precision}", precision)
    command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", WORST, str(folder)]
    environment = {**os.environ, SWITCH: "0"}  # native kernels, where they are installed, do not saturate
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    exact, saturated = json.loads(done.stdout)
    bound = Bundle.open(folder).manifest.tolerance["relative"]
    assert exact <= bound
    if precision == "int8":  # the twin; blocks have other kernels, which do not saturate
        assert saturated > bound
