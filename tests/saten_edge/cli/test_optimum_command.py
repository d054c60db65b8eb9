"""`optimum-cli export saten`: there, from sources and from a wheel, and the same as `saten-edge export`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer

from saten_edge.cli.commands import app
from saten_runtime.bundle.folder import Bundle

ROOT = Path(__file__).parents[3]
REGISTRATION = "optimum/commands/register/register_saten.py"
WHERE = "import optimum.commands.register.register_saten as it; print(it.__file__)"

SOURCES = (ROOT, ROOT / "exporters", ROOT / "runtime")

Done = subprocess.CompletedProcess[str]


def run(command: Sequence[object], ours: Sequence[Path] = SOURCES) -> Done:
    """Run Python with our code from these folders alone: with -S no editable install is seen besides them."""
    path = os.pathsep.join(map(str, (*ours, sysconfig.get_path("purelib"))))
    return subprocess.run(
        [sys.executable, "-S", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd="/",
        env={**os.environ, "PYTHONPATH": path},
    )


def optimum(*arguments: object, ours: Sequence[Path] = SOURCES) -> Done:
    return run(["-m", "optimum.commands.optimum_cli", *arguments], ours)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return tmp_path / done.stdout.strip()


def test_help_names_every_option_of_the_export():
    done = optimum("export", "saten", "--help")
    assert done.returncode == 0, done.stderr
    command = typer.main.get_command(app).commands["export"]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")} - {"--help"}
    assert {"--output", "--precision", "--target", "--layout", "--push-to-hub"} <= options
    for name in (*options, "-m MODEL, --model MODEL"):
        assert name in done.stdout


def test_it_exports(tiny_saten: Path, tmp_path: Path):
    out = tmp_path / "out"
    options = ["--precision", "int8", "--target=web", "--name", "mine", "--quiet"]
    done = optimum("export", "saten", "-m", tiny_saten, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: ")
    manifest = Bundle.open(out).manifest
    assert (manifest.name, manifest.precision, bool(manifest.layers)) == ("mine", "int8", True)


def test_it_refuses_as_the_export_does(tiny_bert: Path, tmp_path: Path):
    done = optimum("export", "saten", "-m", tiny_bert, "-o", tmp_path / "out", "--layout", "round", "--quiet")
    assert done.returncode == 2
    assert "--layout round: there are bundle, transformersjs" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_brings_the_command(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as files:
        brought = [name for name in files.namelist() if name.startswith("optimum/")]
        files.extractall(tmp_path / "site")
    assert brought == [REGISTRATION]  # and no __init__.py, which would hide optimum itself
    ours = (tmp_path / "site", ROOT / "runtime")
    assert run(["-c", WHERE], ours).stdout.strip() == str(tmp_path / "site" / REGISTRATION)
    done = optimum("export", "saten", "--help", ours=ours)
    assert done.returncode == 0, done.stderr
    assert "--precision" in done.stdout
