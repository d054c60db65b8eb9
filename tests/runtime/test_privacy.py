"""Nothing of ours reports to anybody: ONNX Runtime's telemetry is off, and no run writes or connects elsewhere."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SWITCH = "ORT_DISABLE_TELEMETRY"
# ONNX Runtime keeps quiet in continuous integration and in its own tests; here it shall speak where it may.
QUIET = ("CI", "ORT_RUNNING_UNIT_TESTS", SWITCH)
# It looks up its collector's address about nine seconds after the import.
LOOKS_UP_S = 14
PREDICT = "from saten_runtime import Runner; Runner.load({bundle!r}).predict(['w1 w2']); import time; time.sleep({s})"


def environment(home: Path, **added: str) -> dict[str, str]:
    """That of a user who just came."""
    dropped = {*QUIET, *(name for name in os.environ if name.startswith("XDG_"))}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "HOME": str(home), "TMPDIR": str(home), **added}


def written(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize(
    "arguments",
    [["predict", "{}", "w1"], ["doctor", "{}"], ["bench", "{}", "-s", "8", "--min-time", "0.01", "--rounds", "1"]],
)
def test_a_command_leaves_no_file(
    arguments: list[str], tiny: Path, home: Path, saten_run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = saten_run(*(each.format(tiny) for each in arguments), env=environment(home))
    assert done.returncode in (0, 4), done.stderr  # 4: too few samples, or a machine that does something else
    ours = ("saten-", ".cache/saten-edge/")  # the lock that keeps runs apart, and that the kernels were loaded once
    assert [name for name in written(home) if not name.startswith(ours)] == []


def test_telemetry_that_is_on_leaves_files(tiny: Path, home: Path) -> None:
    """The twin: what the test above looks for is there where a user asks for it."""
    command = [*without_network(), sys.executable, "-c", PREDICT.format(bundle=str(tiny), s=0)]
    subprocess.run(command, check=True, env=environment(home, **{SWITCH: "0"}))
    assert any("onnxruntime" in name for name in written(home)), "this ONNX Runtime has no telemetry: drop the test"


def without_network() -> list[str]:
    """A command that runs another where there is no network."""
    command = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    return command


def test_a_prediction_connects_to_nothing(tiny: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    code = PREDICT.format(bundle=str(tiny), s=LOOKS_UP_S)
    children = {}
    for state in ("off", "on"):
        (tmp_path / state).mkdir()
        trace = ["strace", "-f", "-qq", "-e", "trace=%network", "-o", str(tmp_path / f"{state}.trace")]
        added = {SWITCH: "0"} if state == "on" else {}
        command = [*without_network(), *trace, sys.executable, "-c", code]
        children[state] = subprocess.Popen(command, env=environment(tmp_path / state, **added))
    assert [child.wait(timeout=120) for child in children.values()] == [0, 0]
    calls = {state: (tmp_path / f"{state}.trace").read_text() for state in children}
    assert "AF_INET" in calls["on"], "the twin: telemetry that is on is seen"
    assert "socket(" not in calls["off"]
    assert "connect(" not in calls["off"]


def sources() -> Iterator[Path]:
    for folder in ("saten_edge", "exporters/saten_exporters", "runtime/saten_runtime", "benchmarks", "tools"):
        yield from (ROOT / folder).rglob("*.py")


def imported(statements: list[ast.stmt]) -> set[str]:
    """Top-level names of the packages that a module's own statements import."""
    plain = (alias.name for each in statements if isinstance(each, ast.Import) for alias in each.names)
    from_ = (each.module or "" for each in statements if isinstance(each, ast.ImportFrom))
    return {name.partition(".")[0] for name in (*plain, *from_)}


def test_onnxruntime_is_imported_late_and_after_us() -> None:
    """So that the one line in `saten_runtime/__init__.py` always comes first, however imports are sorted."""
    late = []
    for path in sources():
        tree = ast.parse(path.read_text("utf-8"))
        assert "onnxruntime" not in imported(tree.body), f"{path}: import onnxruntime in a function"
        everywhere = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
        if "onnxruntime" in imported(everywhere):
            late.append(path)
            ours = path.is_relative_to(ROOT / "runtime") or {"saten_runtime", "saten_exporters"} & imported(tree.body)
            assert ours, f"{path}: import saten_runtime at the top, which turns telemetry off"
    assert len(late) >= 5  # the walk saw them


@pytest.mark.parametrize(("given", "kept"), [({}, "1"), ({SWITCH: "0"}, "0"), ({SWITCH: "1"}, "1")])
def test_who_sets_the_variable_decides(given: dict[str, str], kept: str, home: Path) -> None:
    code = f"import os, saten_runtime; print(os.environ[{SWITCH!r}])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(home, **given))
    assert done.stdout.strip() == kept
