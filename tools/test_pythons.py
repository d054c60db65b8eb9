"""Run the runtime's tests on every Python it supports, each in an environment that holds nothing else.

    python tools/test_pythons.py [3.10 3.11 …]

For each version a new virtual environment gets `pip install ./runtime` and nothing more. Then what it
promises is checked: few direct dependencies, a quick import, no heavy package. Then come pytest and
what builds the tests' small graphs, and tests/runtime runs. Interpreters are looked for on the PATH
and among those of pyenv. Exit code 1 when a version fails or is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
MOST_DEPENDENCIES = 4
LONGEST_IMPORT_S = 0.25
TEST_PACKAGES = ("pytest", "hypothesis", "onnx-ir")
HEAVY = {"torch", "transformers", "onnx", "onnx-ir"}

# Prints what is declared, what is installed, and the least of five imports in seconds of the processor.
EXAMINE = """
import importlib.metadata as metadata, json, re, subprocess, sys
code = "import time; start = time.process_time(); import saten_runtime; print(time.process_time() - start)"
runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(5)]
declared = [entry for entry in metadata.requires("saten-runtime") if "extra ==" not in entry]
installed = sorted(one.metadata["Name"].lower() for one in metadata.distributions())
print(json.dumps({"declared": declared, "installed": installed, "import_s": min(float(run.stdout) for run in runs)}))
"""


class Failed(Exception):
    """One line that says what went wrong with a version."""


def main(versions: list[str]) -> int:
    """Try each version; exit code 0 when all of them passed."""
    failures = 0
    for version in versions or VERSIONS:
        start = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="saten-python-") as folder:
                line = try_version(version, Path(folder))
        except Failed as failure:
            failures += 1
            line = f"FAILED, {failure}"
        print(f"Python {version}: {line} ({time.monotonic() - start:.0f} s)", flush=True)
    return 1 if failures else 0


def try_version(version: str, folder: Path) -> str:
    """What passed, as a line.

    Raises:
        Failed: no such Python, a promise that is not kept, a test that fails.
    """
    run([interpreter(version), "-m", "venv", str(folder / "venv")], folder)
    python = str(folder / "venv/bin/python")
    install(python, folder, str(ROOT / "runtime"))
    found = json.loads(run([python, "-c", EXAMINE], folder))
    check(found["declared"], found["installed"], found["import_s"])
    install(python, folder, *TEST_PACKAGES)
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    said = run([python, "-m", "pytest", *options, str(ROOT / "tests/runtime")], folder)
    summary = said.strip().splitlines()[-1]
    return f"{summary}; {len(found['declared'])} dependencies, import {found['import_s']:.3f} s"


def check(declared: list[str], installed: list[str], import_s: float) -> None:
    """Compare what is there with what is promised."""
    if len(declared) > MOST_DEPENDENCIES:
        raise Failed(f"{len(declared)} direct dependencies, at most {MOST_DEPENDENCIES} are promised: {declared}")
    if heavy := HEAVY & set(installed):
        raise Failed(f"installing saten-runtime brought {', '.join(sorted(heavy))}")
    if import_s > LONGEST_IMPORT_S:
        raise Failed(f"import saten_runtime took {import_s:.3f} s, at most {LONGEST_IMPORT_S} s are promised")


def install(python: str, folder: Path, *packages: str) -> None:
    """Install at the tested versions."""
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, "--constraint", str(ROOT / "constraints.txt"), *packages], folder)


def interpreter(version: str) -> str:
    """The first interpreter that is of the version."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in candidates(version):
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return path
    raise Failed("it is not installed; install it (pyenv install), or name the versions to try")


def candidates(version: str) -> Iterator[str]:
    """Paths where an interpreter of the version may be."""
    if found := shutil.which(f"python{version}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True))


def run(command: list[str], folder: Path) -> str:
    """The stdout of a command, run where nothing of ours can be imported by accident."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise Failed(f"{' '.join(command[1:4])} … ended with exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
