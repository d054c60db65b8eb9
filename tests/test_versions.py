"""constraints.txt, both pyproject.toml files and this environment name the same versions."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import saten_runtime

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parent.parent
FILES = ("pyproject.toml", "runtime/pyproject.toml", "runtime/kernels/pyproject.toml")
OURS = {"saten-edge", "saten-runtime", "saten-kernels"}


def project(file: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / file).read_text("utf-8"))["project"]


def direct_dependencies() -> list[tuple[str, Requirement]]:
    """(file, requirement) of everything that a distribution or one of its extras asks for."""
    lists = [
        (file, entries)
        for file in FILES
        for entries in (project(file)["dependencies"], *project(file).get("optional-dependencies", {}).values())
    ]
    return [(file, Requirement(entry)) for file, entries in lists for entry in entries]


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement}: expected one exact version"
    return specifier.version


DIRECT = [(file, entry) for file, entry in direct_dependencies() if canonicalize_name(entry.name) not in OURS]


def test_both_files_were_read():
    names = {(file, entry.name) for file, entry in DIRECT}
    assert {("pyproject.toml", "torch"), ("pyproject.toml", "mypy"), ("runtime/pyproject.toml", "psutil")} <= names


@pytest.mark.parametrize(("file", "wanted"), DIRECT, ids=lambda value: str(getattr(value, "name", value)))
def test_every_direct_dependency_has_a_pin_inside_its_range(file: str, wanted: Requirement):
    versions = [pinned_version(pin) for pin in pins() if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    assert versions, f"{file} asks for {wanted.name}, constraints.txt has no line for it"
    for version in versions:
        assert wanted.specifier.contains(version), f"{file}: {wanted} leaves out the tested {version}"


@pytest.mark.parametrize("pin", pins(), ids=str)
def test_a_pin_is_of_a_direct_dependency(pin: Requirement):
    assert canonicalize_name(pin.name) in {canonicalize_name(entry.name) for _, entry in DIRECT}


PINS_FOR_THIS_PYTHON = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate()]


@pytest.mark.parametrize("pin", PINS_FOR_THIS_PYTHON, ids=str)
def test_what_is_installed_is_what_is_pinned(pin: Requirement):
    try:
        installed = metadata.version(pin.name)
    except metadata.PackageNotFoundError:
        pytest.skip("not installed here")
    assert installed.partition("+")[0] == pinned_version(pin)


@pytest.mark.parametrize("name", sorted({canonicalize_name(pin.name) for pin in pins()}))
def test_exactly_one_pin_holds_on_every_supported_python(name: str):
    lines = [pin for pin in pins() if canonicalize_name(pin.name) == name]
    for minor in range(10, 15):
        python = {"python_version": f"3.{minor}"}
        holding = [pin for pin in lines if pin.marker is None or pin.marker.evaluate(python)]
        assert len(holding) == 1, f"{name} on Python 3.{minor}: {len(holding)} lines"


def test_the_three_distributions_and_their_packages_agree_on_their_version():
    import saten_edge
    import saten_runtime

    (runtime,) = [entry for _, entry in direct_dependencies() if entry.name == "saten-runtime"]
    (kernels,) = [entry for _, entry in direct_dependencies() if entry.name == "saten-kernels"]
    assert saten_edge.__version__ == saten_runtime.__version__ == pinned_version(runtime) == pinned_version(kernels)
    assert {project(file)["version"] for file in FILES} == {saten_edge.__version__}


def test_the_runtime_asks_for_kernels_of_its_own_version():
    """`--device` looks for a wheel of that version."""
    runtime, kernels = project("runtime/pyproject.toml"), project("runtime/kernels/pyproject.toml")
    assert runtime["version"] == kernels["version"] == saten_runtime.__version__
    assert runtime["optional-dependencies"]["kernels"] == [f"saten-kernels=={runtime['version']}"]
