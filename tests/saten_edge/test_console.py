"""Talk goes to stderr, with bars on a terminal only, and nowhere when quiet."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from saten_edge.console import Talk

STAGE = """
import sys
from saten_edge.console import Talk
talk = Talk(quiet=len(sys.argv) > 1)
talk.say("[bold]hello[/bold]")
with talk.stage("a long step") as advance:
    advance(1, 2, "half")
"""


def talk_to_a_terminal(*arguments: str) -> tuple[str, str]:
    """(stdout, stderr) of STAGE with a terminal as its stderr."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", STAGE, *arguments],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # the other end is closed and all is read
        pass
    os.close(ours)
    assert done.returncode == 0, shown
    return done.stdout.decode(), shown.decode()


def test_off_a_terminal_a_stage_is_plain_lines_on_stderr(capfd: pytest.CaptureFixture[str]):
    with Talk().stage("a long step") as advance:
        advance(1, 2, "half")
    out, shown = capfd.readouterr()
    assert out == ""
    assert shown.startswith("a long step\n")
    assert not {"half", "━", "\x1b", "\r"} & {*shown.split(), *shown}


def test_markup_in_a_text_is_text(capfd: pytest.CaptureFixture[str]):
    Talk().say("[bold]hello[/bold]")
    assert capfd.readouterr() == ("", "[bold]hello[/bold]\n")


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]):
    talk = Talk(quiet=True)
    talk.say("hello")
    with talk.stage("a long step") as advance:
        advance(1, 2, "half")
    assert capfd.readouterr() == ("", "")


def test_an_error_inside_a_stage_passes_through(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(KeyboardInterrupt), Talk().stage("a long step"):
        raise KeyboardInterrupt
    assert capfd.readouterr().out == ""


def test_on_a_terminal_there_is_a_bar_with_an_estimate():
    out, shown = talk_to_a_terminal()
    assert out == ""
    assert "a long step" in shown
    assert "left" in shown
    assert "━" in shown


def test_quiet_on_a_terminal_says_nothing():
    assert talk_to_a_terminal("--quiet") == ("", "")
