"""The native library, built from its sources and installed aside; random layers of the exporter's tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import form_oracle
import onnx_ir as ir
import onnxruntime
import pytest
from filelock import FileLock

TESTS = Path(__file__).parents[1]
SOURCES = TESTS.parent / "runtime" / "kernels"

RunPython = Callable[..., subprocess.CompletedProcess[str]]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kernels_use_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# The layers, graphs and bundles that the exporter's tests make.
_exporters = load(TESTS / "exporters" / "conftest.py")
make_parts, one_form, parse_model = _exporters.make_parts, _exporters.one_form, _exporters.parse_model
loaded_tiny, traced, bundle_of = _exporters.loaded_tiny, _exporters.traced, _exporters.bundle_of


@pytest.fixture(scope="session")
def forms() -> ModuleType:
    """The float64 oracle and the bounds that the exporter's forms are held to."""
    return form_oracle


@pytest.fixture(scope="session")
def heads() -> ModuleType:
    """The float64 oracle and the bounds of `tests/exporters/forms/test_head.py`."""
    return load(TESTS / "exporters" / "forms" / "test_head.py")


@pytest.fixture(scope="session")
def attentions() -> ModuleType:
    """The graph, the float64 oracle and the bounds of `tests/exporters/passes/test_native_attention.py`."""
    return load(TESTS / "exporters" / "passes" / "test_native_attention.py")


@pytest.fixture(scope="session")
def build() -> Callable[[str], Path]:
    """build(preset) -> its folder, brought up to date. Skips where tools or headers cannot be had."""

    def make(preset: str) -> Path:
        for tool in ("cmake", "ninja", "c++"):
            if shutil.which(tool) is None:
                pytest.skip(f"no {tool} here: the native kernels are not built")
        zig = importlib.util.find_spec("ziglang")
        if preset.startswith("zig") and zig is None:
            pytest.skip("no ziglang here; it comes with the extra `wheels`")
        environment = {**os.environ, **({"SATEN_ZIG": str(Path(zig.origin).with_name("zig"))} if zig else {})}
        folder = SOURCES / "build"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / f"{preset}.lock"):  # tests run in several processes, which share the folder
            for step in (["--preset", preset], ["--build", "--preset", preset]):
                done = subprocess.run(
                    ["cmake", *step], cwd=SOURCES, capture_output=True, text=True, timeout=1800, env=environment
                )
                if done.returncode and "fetch_onnxruntime_headers" in done.stderr:
                    pytest.skip("no onnxruntime headers on this system, and none could be fetched")
                assert done.returncode == 0, done.stdout + done.stderr
        return folder / preset

    return make


@pytest.fixture(scope="session")
def library(build: Callable[[str], Path]) -> Path:
    return build("release") / "libsaten_kernels.so"


@pytest.fixture(scope="session")
def site(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `saten_kernels` is installed. Read-only."""
    return install(library, tmp_path_factory.mktemp("site"))


def install(library: Path, folder: Path) -> Path:
    shutil.copytree(SOURCES / "python" / "saten_kernels", folder / "saten_kernels")
    shutil.copy(library, folder / "saten_kernels")
    return folder


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """run_python(code, site, cwd=…, **environment) -> the finished process, with `site` first on its path.

    emulator: the command that runs it as on another processor.
    """

    def run(
        code: str, site: Path | None = None, cwd: Path | None = None, emulator: Sequence[str] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([*([str(site)] if site else []), *(entry for entry in sys.path if entry)])
        env = {**os.environ, "PYTHONPATH": path, **environment}
        command = [*emulator, sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd=cwd)

    return run


@pytest.fixture(scope="session")
def session(library: Path) -> Callable[..., onnxruntime.InferenceSession]:
    """session(model, threads=1, optimized=True) -> a session with the kernels registered."""

    def make(model: ir.Model, threads: int = 1, *, optimized: bool = True) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        options.register_custom_ops_library(str(library))
        return onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    return make
