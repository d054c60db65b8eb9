"""Talk goes to stderr, with bars on a terminal only, and nowhere when quiet."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from typing import Any

import pytest

from saten_edge import console
from saten_edge.console import Talk

STAGE = """
import sys, time
from saten_edge.console import Talk
talk = Talk(quiet=len(sys.argv) > 1)
talk.say("[bold]hello[/bold]")
with talk.stage("a long step") as advance:
    advance(1, 2, "half of it, which has a long name of a layer with dots and all that: encoder.layer.0.attention")
    time.sleep(0.5)
"""


def talk_to_a_terminal(*arguments: str, columns: int = 80) -> tuple[str, str]:
    """(stdout, stderr) of STAGE with a terminal as its stderr."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", STAGE, *arguments],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
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


@pytest.mark.parametrize("quiet", [True, False])
def test_a_long_stage_without_a_bar_says_once_how_long(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    now = 100.0
    monkeypatch.setattr("saten_edge.console.time.monotonic", lambda: now)
    with Talk(quiet=quiet).stage("a long step") as advance:
        for seconds, done in ((0, 0), (5, 1), (20, 2), (40, 4), (190, 99)):
            now = 100.0 + seconds
            advance(done, 100, "a layer")
    shown = capfd.readouterr().err.splitlines()
    assert [line for line in shown if "left" in line] == ["a long step: about 16 min left"]
    assert len(shown) == (1 if quiet else 3)


@pytest.mark.parametrize("total", [11, 4])
def test_a_stage_that_is_soon_done_says_no_time(total: int, monkeypatch: pytest.MonkeyPatch, capfd: Any):
    now = 0.0
    monkeypatch.setattr("saten_edge.console.time.monotonic", lambda: now)
    with Talk(quiet=True).stage("a short step") as advance:
        for now in (0.0, 5.0, 12.0):
            advance(now / 4, total, "a layer")
    assert capfd.readouterr().err == ""


def test_an_error_inside_a_stage_passes_through(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(KeyboardInterrupt), Talk().stage("a long step"):
        raise KeyboardInterrupt
    assert capfd.readouterr().out == ""


def test_on_a_terminal_there_is_a_bar_with_an_estimate():
    out, shown = talk_to_a_terminal()
    assert out == ""
    assert "a long step" in shown
    assert re.search(r"━━ 0:00:0. gone, [-0-9:]+ left half of it, which .*…", without_colours(shown))


def test_a_narrow_terminal_cuts_what_comes_next_alone():
    shown = without_colours(talk_to_a_terminal(columns=60)[1])
    assert re.search(r"━━ 0:00:0. gone, [-0-9:]+ left", shown)
    assert max(len(line) for line in re.split(r"[\r\n]+", shown)) <= 60


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_long_stage_off_a_terminal_says_each_minute_how_far_it_is(capfd, monkeypatch):
    monkeypatch.setattr(console, "MINUTE_S", 0.05)
    with Talk().stage("a long step") as advance:
        advance(1, 4, "first")
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "a long step"
    assert set(lines[1:-1]) == {"  0 min gone, 25% done, about 0 min left, first"}
    assert lines[-1].endswith(" s")


def test_the_words_of_a_minute():
    assert console._after(180, 0, 1, "") == "  3 min gone"
    assert console._after(300, 0.25, 1, "step 7") == "  5 min gone, 25% done, about 15 min left, step 7"


def test_a_long_line_stays_one(capfd):
    Talk().say("word " * 40)
    assert capfd.readouterr().err.count("\n") == 1


def test_quiet_on_a_terminal_says_nothing():
    assert talk_to_a_terminal("--quiet") == ("", "")
