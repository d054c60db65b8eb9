"""A command of the warm Python is what the same command of a new one is, but sooner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from warm_python import COMMANDS, WarmPython

Done = subprocess.CompletedProcess[str]
# What a command can see of how it was started.
PROGRAM = """
import json, os, sys, tempfile
print(json.dumps([sys.argv, __name__, os.getcwd(), dict(os.environ), sys.stdin.read(), sys.stdout.isatty()]))
print(tempfile.gettempdir(), sys.path[:2])
print("to stderr", file=sys.stderr)
"""
MODULES = ("json", "tempfile")


@pytest.fixture(scope="module")
def python() -> list[str]:
    with WarmPython(MODULES) as python:
        yield python.command


@pytest.fixture
def both(python: list[str], tmp_path: Path) -> Callable[..., tuple[Done, Done]]:
    """both(*arguments, **options) -> what came of `python arguments`, warm and new."""
    environment = {**os.environ, "LETTER": "é", "TMPDIR": str(tmp_path)}

    def run(*arguments: str, **options: str) -> tuple[Done, Done]:
        warm, new = (
            subprocess.run(
                [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, **options
            )
            for command in (python, [sys.executable])
        )
        return warm, new

    return run


@pytest.mark.parametrize("kind", ["code", "module", "script"])
def test_it_runs_as_a_new_one_does(kind: str, both: Callable[..., tuple[Done, Done]], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    first = {"code": ["-c", PROGRAM], "module": ["-m", "program"], "script": ["program.py"]}[kind]
    warm, new = both(*first, "--option", "a b", input="typed")
    assert (warm.returncode, warm.stdout, warm.stderr) == (new.returncode, new.stdout, new.stderr)
    assert "typed" in warm.stdout


@pytest.mark.parametrize(
    "code",
    [
        "",
        "raise SystemExit",
        "raise SystemExit(3)",
        "raise SystemExit('refused')",
        "import os; os._exit(5)",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.kill(os.getpid(), 15)",
        "import atexit; atexit.register(print, 'last words')",
        "import threading, time; threading.Timer(0.1, print, ['a thread']).start()",
    ],
)
def test_it_ends_as_a_new_one_does(code: str, both: Callable[..., tuple[Done, Done]]) -> None:
    warm, new = both("-c", code)
    assert (warm.returncode, warm.stdout, warm.stderr) == (new.returncode, new.stdout, new.stderr)


def test_an_error_is_a_traceback(both: Callable[..., tuple[Done, Done]]) -> None:
    warm, new = both("-c", "1 / 0")
    assert warm.returncode == new.returncode == 1
    for done in (warm, new):
        assert done.stderr.startswith("Traceback")
        assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_commands_share_what_was_imported_and_nothing_else(python: list[str]) -> None:
    code = "import os, sys; print('json' in sys.modules, hasattr(os, 'mark'), os.getpid()); os.mark = 1"
    told = [subprocess.run([*python, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(2)]
    assert [each[:2] for each in told] == [["True", "False"]] * 2
    assert told[0][2] != told[1][2]


@pytest.mark.parametrize(("name", "warm"), [("SOME_OTHER", True), ("PYTHONHASHSEED", False), ("HF_HOME", False)])
def test_another_environment_at_import_makes_a_new_process(name: str, warm: bool, python: list[str]) -> None:
    code = f"import os, sys; print('warm_python' in sys.argv[0] or '--serve' in sys.orig_argv, os.environ['{name}'])"
    environment = {**os.environ, name: "7"}
    done = subprocess.run([*python, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(warm), "7"]


def test_it_dies_with_its_caller(python: list[str], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid()) + ' '); time.sleep(60)"
    client = subprocess.Popen([*python, "-c", code])
    wait_until(lambda: pid.is_file() and pid.read_text().endswith(" "))
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_until(lambda: not Path("/proc", pid.read_text().strip()).exists())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_commands_of_saten_edge_have_torch_from_the_first(warm_python: list[str], offline: dict[str, str]) -> None:
    code = f"import sys; print([name for name in {[*COMMANDS, 'torch']!r} if name not in sys.modules])"
    done = subprocess.run([*warm_python, "-c", code], env=offline, capture_output=True, text=True)
    assert done.stdout == "[]\n"
