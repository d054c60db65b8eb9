"""The native kernels on another processor: the wheel that is cross-compiled here, in the real aarch64 ONNX Runtime."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.kernels import Kernels, probe

KERNELS = Path(__file__).parents[2] / "runtime" / "kernels"
# Instruction set → an emulated processor with little else: a kernel that uses what it has not looked for dies there.
# SME is off for ONNX Runtime's sake too: it multiplies bytes by SMOPA, which QEMU before 8.2.3 computes wrongly
# (gitlab.com/qemu-project/qemu/-/issues/2083).
PROCESSORS = {
    "scalar": "cortex-a72",
    "neon": "cortex-a72",
    "neondot": "cortex-a76",
    "neoni8mm": "max,sve=off,sme=off",
}
PROBE = "import json, dataclasses, saten_runtime.run.kernels as k; print(json.dumps(dataclasses.asdict(k.probe())))"
HIDDEN_STATES = """
import sys, numpy
from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.runner import Runner
from saten_runtime.run.text import Encoder
bundle = Bundle.open(sys.argv[1])
runner, encoder = Runner.load(bundle), Encoder(bundle)
states = [runner.run(encoder.feeds([ids]))["last_hidden_state"][0] for ids in encoder.encode(sys.argv[3:])]
numpy.save(sys.argv[2], numpy.concatenate(states))
"""

HiddenStates = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def site(kernels_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip installs it there. Read-only."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    command += ["--only-binary=:all:", "--platform", "manylinux2014_aarch64", "--python-version", "3.10"]
    subprocess.run([*command, "--target", str(folder), str(kernels_wheel)], check=True)
    return folder


@pytest.fixture(scope="session")
def hidden_states(
    arm_python: Callable[..., subprocess.CompletedProcess[str]], texts: list[str], tmp_path_factory: Any
) -> HiddenStates:
    """hidden_states(bundle, site=…, **environment) -> (tokens, width), of all texts, computed in the user land."""
    folder = tmp_path_factory.mktemp("states")

    @functools.cache
    def run(bundle: Path, **options: Any) -> np.ndarray:
        out = folder / "states.npy"
        done = arm_python("-c", HIDDEN_STATES, bundle, out, *texts[:6], bind=[bundle.parent, folder], **options)
        assert (done.returncode, done.stderr) == (0, "")
        return np.load(out)

    return run


def test_the_wheel_serves_every_python_of_that_machine(kernels_wheel: Path) -> None:
    name, version, *tags = kernels_wheel.stem.split("-")
    assert (name, tags) == ("saten_kernels", ["py3", "none", "manylinux2014_aarch64.manylinux_2_17_aarch64"])
    assert f'version = "{version}"' in (KERNELS / "pyproject.toml").read_text()


def test_pip_finds_all_of_it_for_a_board(kernels_wheel, userland, tmp_path):
    """`saten-runtime[kernels]` from a folder of wheels, the rest from the index: pip of this machine, for that one."""
    dist, site = tmp_path / "dist", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(dist)]
    subprocess.run([*wheel, str(KERNELS.parent)], check=True)
    shutil.copy(kernels_wheel, dist)
    command = [*pip, "install", "--quiet", "--only-binary=:all:", "--find-links", str(dist), "--target", str(site)]
    tags = [f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)] + ["manylinux2014_aarch64"]
    command += ["--python-version", "3.11", *(part for tag in tags for part in ("--platform", tag))]
    done = subprocess.run([*command, "saten-runtime[kernels]"], capture_output=True, text=True)
    if "No matching distribution found for saten" not in done.stderr and done.returncode:
        pytest.skip(f"no wheels for aarch64: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    settings = [f"PYTHONPATH={site}", "OMP_NUM_THREADS=1", "PYTHONDONTWRITEBYTECODE=1"]
    done = userland.run("env", *settings, "python3", "-c", PROBE, bind=[site])
    found = Kernels(**json.loads(done.stdout))
    assert (found.state, found.isa) == ("active", "neondot")


@pytest.mark.parametrize("isa", PROCESSORS)
def test_every_instruction_set_gives_what_the_bodies_give(isa, site, saten_bundle, saten_int8_bundle, hidden_states):
    kernels = {"site": site, "SATEN_KERNELS_ISA": isa, "processor": PROCESSORS[isa]}
    expect_the_same(saten_bundle, saten_int8_bundle, hidden_states, kernels)


def test_the_real_model_gives_the_same_with_and_without(site, arm_python, minilm_saten_bundles, hidden_states):
    found = Kernels(**json.loads(arm_python("-c", PROBE, site=site).stdout))
    assert (found.state, found.isa) == ("active", "neondot")
    expect_the_same(*minilm_saten_bundles, hidden_states, {"site": site})


def expect_the_same(fp32: Path, int8: Path, hidden_states: HiddenStates, kernels: dict[str, Any]) -> None:
    exact, close = hidden_states(fp32), hidden_states(fp32, **kernels)
    # Bodies and kernels each lie within the bundle's bound of what torch computes.
    bound = 2 * Bundle.open(fp32).manifest.tolerance["relative"]
    assert np.linalg.norm(close - exact) <= bound * np.linalg.norm(exact)
    # A row's own range is no wider than the tensor's: the kernels' 8-bit steps are no larger than the bodies'.
    coarse, fine = (np.linalg.norm(hidden_states(int8, **options) - exact) for options in ({}, kernels))
    assert 0 < fine <= 1.25 * coarse
    assert fine != coarse  # the kernels ran


def test_the_library_of_another_machine_is_one_line(site, arm_python, saten_bundle, tmp_path, monkeypatch):
    """Each way round: the aarch64 library here, and this machine's program there."""
    monkeypatch.syspath_prepend(str(site))
    words = f"was built for aarch64, this is {os.uname().machine}; install the saten-kernels of this machine"
    assert probe() == Kernels("unusable", fault=f"{site}/saten_kernels/libsaten_kernels.so: {words}")
    library = tmp_path / "saten_kernels" / "libsaten_kernels.so"
    library.parent.mkdir()
    library.with_name("__init__.py").touch()
    library.write_bytes(Path(sys.executable).resolve().read_bytes())
    code = "import sys, saten_runtime; saten_runtime.Runner.load(sys.argv[1]).predict(['a']); print('done')"
    done = arm_python("-c", code, saten_bundle, bind=[saten_bundle.parent], site=tmp_path)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr == (
        f"native kernels: {library}: was built for {os.uname().machine}, this is aarch64; "
        "install the saten-kernels of this machine; the function bodies run instead\n"
    )
