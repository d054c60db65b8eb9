"""What a board says is bounded and checked; each hostile board ends in one error, soon."""

from __future__ import annotations

import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from saten_edge.devices.board import Board, Hello
from saten_edge.devices.channel import Channel, Disconnected
from saten_runtime.errors import DeviceError

# What a hostile board knows: the source it was sent, and in its last line the mark.
LISTEN = """
import sys, time
source = sys.stdin.buffer.read(int(sys.stdin.buffer.readline())).decode()
mark = source.splitlines()[-1].partition("'")[2].partition("'")[0]
out = sys.stdout.buffer
def say(content, body=b"", size=None):
    out.write(f"{mark} {len(content) if size is None else size} {len(body)}\\n".encode() + content + body)
    out.flush()
"""
HELLO = b'{"ok": {"protocol": 1}}'


def channel(code: str, hello_s: float = 10.0) -> Channel:
    return Channel("board", [sys.executable, "-c", LISTEN + code], hello_s=hello_s)


def test_a_banner_is_passed_over():
    noise = "Welcome!\n\x1b[2J\x1b]0;title\x07 0123456789abcdef 1 1\n" * 100
    with channel(f"out.write({noise.encode()!r}); say({HELLO!r})") as found:
        assert found.hello == {"ok": {"protocol": 1}}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("[out.write(b'y' * 65536) for _ in range(16384)]", "bytes instead of an answer"),
        ("say(b'', size=10 ** 12)", "more than the"),
        ("out.write(f'{mark} 5 9999999999\\n'.encode()); out.flush(); time.sleep(9)", "more than the"),
        ("out.write((mark + ' ' * 100).encode()); out.flush(); time.sleep(9)", "expected an answer"),
        ("out.write((mark + ' -1 0\\n').encode()); out.flush(); time.sleep(9)", "expected an answer"),
        ("say(b'[1]')", "expected a JSON object, found list"),
        ("say(b'{\"a\": NaN}')", "not JSON"),
        ('say(b\'{"a": 1, "a": 2}\')', "not JSON"),
        ("say(b'[' * 100000 + b']' * 100000)", "not JSON"),
        ("say(b'\\xff\\xfe')", "not JSON"),
    ],
    ids=["1 GB", "length", "body length", "no line end", "negative", "list", "NaN", "twice", "deep", "no text"],
)
def test_hostile_first_words(code: str, words: str):
    with pytest.raises(DeviceError, match=words) as caught:
        channel(code)
    assert not isinstance(caught.value, Disconnected)
    assert str(caught.value).isprintable()


def test_a_flood_is_refused_before_it_fills_the_memory():
    tracemalloc.start()
    try:
        flood = f"say({HELLO!r}); [out.write(b'y' * 65536) for _ in range(16384)]"
        with channel(flood) as found, pytest.raises(DeviceError, match="expected an answer, found 'yyyy"):
            found.receive(20)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "code", ["time.sleep(60)", "[(out.write(b'.'), out.flush(), time.sleep(.1)) for _ in range(600)]"]
)
def test_a_board_that_hangs_or_dribbles(code: str):
    started = time.monotonic()
    with pytest.raises(Disconnected, match="no answer in time"):
        channel(code, hello_s=0.7)
    assert time.monotonic() - started < 5


def test_a_frame_that_never_ends_is_given_up():
    dribble = "while True: out.write(b'.'); out.flush(); time.sleep(.1)"
    code = f"say({HELLO!r}); out.write(f'{{mark}} 100 0\\n'.encode())\n{dribble}"
    started = time.monotonic()
    with channel(code) as found, pytest.raises(Disconnected, match="no answer in time"):
        found.receive(1.0)
    assert time.monotonic() - started < 8


def test_success_with_nothing_is_no_success():
    with pytest.raises(Disconnected, match="the connection ended") as caught:
        channel("sys.exit(0)")
    assert caught.value.ending == (0, "")


def test_last_words_are_kept_and_bounded():
    with pytest.raises(Disconnected) as caught:
        channel("sys.stderr.write('x' * 10_000_000 + '\\nno such thing'); sys.exit(3)")
    code, words = caught.value.ending
    assert code == 3
    assert words.endswith("\nno such thing")
    assert len(words) <= 4096


def test_a_board_that_reads_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("saten_edge.devices.channel._REPLY_S", 1.0)
    with channel(f"say({HELLO!r}); time.sleep(60)") as found, pytest.raises(Disconnected, match="no answer in time"):
        found.send({"do": "write"}, b"x" * (10 << 20))


@pytest.mark.parametrize("ending", ["os.close(0); time.sleep(9)", "sys.exit(0)"])
def test_what_a_board_says_before_it_stops_listening_is_read(ending: str):
    with channel(f"import os; say({HELLO!r}); out.write(b'y' * 30000); out.flush(); {ending}") as found:
        found.send({"do": "write"}, b"x" * (10 << 20))
        with pytest.raises(DeviceError, match="expected an answer, found 'yyy") as caught:
            found.receive()
    assert not isinstance(caught.value, Disconnected)


def test_a_board_that_goes_away_while_it_is_sent_something():
    with channel(f"say({HELLO!r}); sys.exit(7)") as found:
        found.send({"do": "write"}, b"x" * (10 << 20))
        with pytest.raises(Disconnected, match="the connection ended") as caught:
            found.receive()
    assert caught.value.ending == (7, "")


GOOD = {"protocol": 1, "python": [3, 11, 2], "machine": "aarch64", "bits": 64, "libc": ["glibc", "2.36"]}
GOOD["implementation"] = "CPython"


class TestHello:
    def test_what_a_board_says_first_is_read(self):
        hello = Hello.read("board", GOOD)
        assert (hello.python, hello.glibc) == ((3, 11), (2, 36))
        hello.refuse_unfit("board")

    @pytest.mark.parametrize(
        "change",
        [
            {"protocol": 2},
            {"python": "3.11"},
            {"python": [3]},
            {"libc": ["glibc", "new"]},
            {"libc": None},
            {"bits": "x"},
        ],
        ids=str,
    )
    def test_not_what_an_agent_says(self, change: dict[str, object]):
        with pytest.raises(DeviceError, match="expected the agent to describe the board"):
            Hello.read("board", {**GOOD, **change})

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"python": [3, 9, 2]}, "has CPython 3.9, CPython 3.10 or newer is needed"),
            ({"implementation": "PyPy"}, "has PyPy 3.11"),
            ({"bits": 32}, "a 32-bit Python on aarch64, expected 64 bits"),
            ({"machine": "armv7l"}, "on armv7l"),
            ({"libc": ["glibc", "2.27"]}, "has glibc 2.27, onnxruntime needs glibc 2.28"),
            ({"libc": ["", ""]}, "has another C library"),
        ],
        ids=str,
    )
    def test_no_wheel_would_run_there(self, change: dict[str, object], words: str):
        with pytest.raises(DeviceError, match=words):
            Hello.read("board", {**GOOD, **change}).refuse_unfit("board")


def test_why_a_board_cannot_be_reached_is_the_transports_to_say(tmp_path: Path, make_stand):
    stand = make_stand("gone")
    stand.command = lambda bootstrap: ["sh", "-c", "echo no route >&2; exit 7"]
    with pytest.raises(DeviceError, match=r"^gone: ended with 7: no route$"):
        Board(stand, "token")
