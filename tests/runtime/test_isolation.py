"""The device has no torch: everything must work where importing it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

SatenRun = Callable[..., subprocess.CompletedProcess[str]]


def run_python(code: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)


@pytest.mark.parametrize("name", ["torch", "transformers", "onnx", "onnx_ir"])
def test_the_blocker_blocks(name: str, blocked_env: dict[str, str]) -> None:
    assert f"ImportError: {name} is blocked" in run_python(f"import {name}", blocked_env).stderr


def test_every_module_imports(blocked_env: dict[str, str]) -> None:
    code = (
        "import importlib, pkgutil, saten_runtime\n"
        "modules = pkgutil.walk_packages(saten_runtime.__path__, 'saten_runtime.')\n"
        f"extra = {'saten_runtime.serve.' if find_spec('starlette') is None else '-'!r}\n"
        "names = [m.name for m in modules if not m.name.endswith('__main__') and not m.name.startswith(extra)]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names))"
    )
    done = run_python(code, blocked_env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 40


def test_it_predicts_benches_evaluates_and_examines(
    tiny: Path,
    slow: Path,
    blocked_env: dict[str, str],
    saten_run: SatenRun,
    write_lines: Callable[..., Path],
) -> None:
    data = write_lines([{"query": f"w{k}", "answer": f"w{k} w{k + 1}"} for k in range(12)])
    commands = (
        ["predict", tiny, "w1"],
        ["bench", tiny, slow, "-s", "8", "--min-time", "0.01", "--rounds", "1", "--no-floor", "--json"],
        ["eval", tiny, slow, "--data", data, "--reference", tiny, "--json"],
        ["doctor", tiny, "--json"],
    )
    predicted, benched, evaluated, examined = (saten_run(*command, env=blocked_env) for command in commands)
    for done in (predicted, evaluated, examined):
        assert done.returncode == 0, done.stderr
    assert len(json.loads(predicted.stdout)["embedding"]) == 8
    assert [cell["failed"] for cell in json.loads(benched.stdout)["cells"]] == [None, None]
    assert len(json.loads(evaluated.stdout)["rows"]) == 2
    assert {check["name"]: check["status"] for check in json.loads(examined.stdout)}["run"] == "OK"


def test_import_is_quick_and_leaves_the_heavy_packages_alone() -> None:
    code = (
        "import sys, time; start = time.process_time(); import saten_runtime; took = time.process_time() - start\n"
        "print(took, {'onnxruntime', 'tokenizers', 'psutil'} & set(sys.modules) or '{}')"
    )
    answers = [run_python(code).stdout.split(maxsplit=1) for _ in range(3)]
    assert min(float(took) for took, _ in answers) < 0.25
    assert {heavy.strip() for _, heavy in answers} == {"{}"}


def test_help_is_quick() -> None:
    code = "import sys, time; sys.argv[1:] = ['--help']; from saten_runtime.cli import main; main()"
    timed = f"import atexit, time; atexit.register(lambda: print(time.process_time())); {code}"
    assert min(float(run_python(timed).stdout.splitlines()[-1]) for _ in range(3)) < 0.3


def test_help_loads_no_heavy_package() -> None:
    code = (
        "import sys\nfrom saten_runtime.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'onnxruntime', 'tokenizers', 'psutil'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.splitlines()[-1] == "[]"
