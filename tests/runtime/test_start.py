"""Ctrl-C is one line and exit code 130 from the first moment of a command line on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from saten_runtime.start import INTERRUPTED, start

PRESS = """
import os, signal
from saten_runtime.start import start
def run():
    {code}
raise SystemExit(start("x", run))
"""
PRESSED = "os.kill(os.getpid(), signal.SIGINT)"


def tried(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PRESS.format(code=code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(
    "code",
    [
        f"{PRESSED}; return 0",
        "raise KeyboardInterrupt",
        # as numpy and torch do it to one another
        f"try: {PRESSED}\n    except KeyboardInterrupt: raise ImportError('cannot load twice') from None",
    ],
    ids=["pressed", "raised", "lost on the way"],
)
def test_ctrl_c_is_one_line(code: str) -> None:
    done = tried(code)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "x: interrupted\n")


@pytest.mark.parametrize("code", ["raise KeyboardInterrupt", "return 0", "raise SystemExit(130)", "raise OSError"])
def test_nothing_runs_in_an_interpreter_that_is_taken_down(code: str) -> None:
    """A native thread would; the twin is a command that ends without Ctrl-C."""
    crash = "import atexit; atexit.register(os.abort)"
    pressed = f"try: {PRESSED}\n    except KeyboardInterrupt: pass"
    done = tried(f"{crash}\n    {pressed}\n    print('kept', end='')\n    {code}")
    assert done.returncode == (0 if code == "return 0" else INTERRUPTED)
    assert done.stdout == "kept"
    assert tried(f"{crash}\n    return 0").returncode == -signal.SIGABRT


def test_a_defect_is_no_ctrl_c() -> None:
    done = tried("raise ImportError('cannot load')")
    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: cannot load\n")


@pytest.mark.parametrize("code", [0, 2, None])
def test_what_it_returns_is_handed_on(code: int | None) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        assert start("x", lambda: code) == code
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_shell_that_has_it_ignored_is_obeyed() -> None:
    done = tried(f"{PRESSED}; return 7")
    assert done.returncode == INTERRUPTED
    ignoring = PRESS.format(code=f"{PRESSED}; return 7").replace("def run", "signal.signal(2, signal.SIG_IGN)\ndef run")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", ignoring], timeout=60, env=environment).returncode == 7
