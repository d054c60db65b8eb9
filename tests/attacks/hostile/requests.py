"""Hostile posts to the page's server (H), and hostile boards and names of boards (D)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from hostile.case import MEBIBYTE, Case, Place, saten_edge

__all__ = ["CASES"]

BENCH = {
    "run": "r1",
    "loaded": {"0": {"model.onnx": "0" * 64}},
    "device": {"cores": 8, "memory_gib": 4.0, "isolated": True, "secure": True, "tick_ns": 5000},
    "hidden": False,
    "starts": [{"bundle": 0, "threads": 1, "round": 0, "cold_load_ms": 9.0, "session_ms": 5.0, "first_run_ms": 2.0}],
    "turns": [
        {"bundle": 0, "threads": 1, "batch": 1, "tokens": 8, "round": 0, "runs_per_sample": 1, "samples_ns": [1000]}
    ],
    "failures": [],
}


def post(body: bytes) -> Callable[[Place], None]:
    def run(place: Place) -> None:
        from saten_edge.phone.schema import Bench, parse_post

        parse_post(Bench, body)

    return run


def nothing(place: Place) -> None:
    """The input is in the arguments."""


def refused(name: str, body: bytes | str, words: str, **options: Any) -> Case:
    content = body.encode() if isinstance(body, str) else body
    return Case("H4", name, nothing, post(content), "DataError", words, **options)


def changed(old: str, new: str) -> str:
    text = json.dumps(BENCH)
    assert old in text
    return text.replace(old, new, 1)


POSTS = [
    Case("H4", "a sound post, which is taken", nothing, post(json.dumps(BENCH).encode()), None, "", code=0),
    refused("nothing", b"", "body: not JSON"),
    refused("half a post", json.dumps(BENCH)[:-1], "body: not JSON"),
    refused("a list", b"[]", "body: "),
    refused("lists in lists", b"[" * 400_000, "body: not JSON"),
    refused("no UTF-8", b"\xff\xfe\x00", "body: not JSON"),
    refused("NaN", changed("9.0", "NaN"), "body: not JSON"),
    refused("1e999", changed("9.0", "1e999"), "body: not JSON"),
    refused("a key twice", changed('"hidden": false', '"hidden": false, "hidden": true'), "a key occurs twice"),
    refused("a number of 5000 digits", changed("1000", "9" * 5000), "body: not JSON"),
    refused("a latency below zero", changed("9.0", "-1.0"), r"starts\[0\]\.cold_load_ms"),
    refused("a latency of a string", changed("9.0", '"9"'), r"starts\[0\]\.cold_load_ms"),
    refused("a sample of a fraction", changed("[1000]", "[1.5]"), r"turns\[0\]\.samples_ns\[0\]"),
    refused("a sample of true", changed("[1000]", "[true]"), r"turns\[0\]\.samples_ns\[0\]"),
    refused("no samples", changed("[1000]", "[]"), r"turns\[0\]\.samples_ns"),
    refused(
        "a hundred thousand samples",
        changed("[1000]", json.dumps([1] * 100_000)),
        r"turns\[0\]\.samples_ns",
        seconds=10,
    ),
    refused("an unknown key", changed('"hidden"', '"hook": 1, "hidden"'), "body: found the unknown 'hook'"),
    refused("no run", changed('"run": "r1", ', ""), "body: run is missing"),
    refused("a hash that is none", changed("0" * 64, "g" * 64), r"loaded\.0\.model\.onnx"),
]

NOISE = {
    "a banner without end": "import sys\nwhile True: sys.stdout.write('welcome ' * 4096)",
    "silence": "import time; time.sleep(60)",
    "an end without a word": "",
    "an answer of a gigabyte": (
        "import sys; n = int(sys.stdin.buffer.readline()); s = sys.stdin.buffer.read(n).decode()\n"
        'mark = s.rsplit("main(\'", 1)[1].split("\'")[0]; print(mark, 10**9, 0, flush=True)\n'
        "import time; time.sleep(60)"
    ),
    "an answer of nonsense": (
        "import sys; n = int(sys.stdin.buffer.readline()); s = sys.stdin.buffer.read(n).decode()\n"
        "mark = s.rsplit(\"main('\", 1)[1].split(\"'\")[0]; print(mark, 3, 0); print('{{{', flush=True)\n"
        "import time; time.sleep(60)"
    ),
    "an answer of escapes": "print('\\x1b[2J' * 20000)",
}
WORDS = {
    "a banner without end": r"board: printed \d+ bytes instead of an answer|board: sends more than",
    "silence": "board: no answer in time",
    "an end without a word": "board: the connection ended",
    "an answer of a gigabyte": "board: an answer of 1000000000 bytes",
    "an answer of nonsense": "board: an answer: not JSON",
    "an answer of escapes": "board: ",
}
KINDS = {"silence": "Disconnected", "an end without a word": "Disconnected"}


def talk(program: str) -> Callable[[Place], None]:
    """Connect to a board that runs `program` instead of the agent."""

    def run(place: Place) -> None:
        from saten_edge.devices.channel import Channel

        with Channel("board", [sys.executable, "-S", "-c", program], hello_s=3.0):
            pass

    return run


def doctor(url: str) -> Callable[[Place], int]:
    return lambda place: saten_edge("devices", "doctor", "--", url)


URLS = {
    "an option for a host": "ssh://-oProxyCommand=touch${IFS}ran",
    "an option for a user": "ssh://-l@board",
    "a command for a host": "ssh://board;touch ran",
    "a command in a user": "ssh://$(touch ran)@board",
    "a newline in a host": "ssh://board\nProxyCommand touch ran",
    "a space in a host": "ssh://bo ard",
    "a port of 99999": "ssh://board:99999",
    "a port of letters": "ssh://board:22a",
    "a password": "ssh://pi:secret@board",
    "a host of a look-alike": "ssh://bоard",
    "nothing for a host": "ssh://",
    "a host of 300 letters": "ssh://" + "a" * 300,
}
FOLDERS = {
    "a folder with a command": "ssh://board/$(touch ran)",
    "a folder with a quote": "ssh://board/it's",
    "a folder with a space": "ssh://board/a b",
    "a folder with ..": "ssh://board/../etc",
    "a folder with a leading -": "ssh://board/-rf",
    "a folder with a newline": "ssh://board/a\nb",
}

BOARDS = [
    *(
        Case("D1", name, nothing, doctor(url), "UsageError", "^saten-edge: error: --device ")
        for name, url in URLS.items()
    ),
    *(
        Case("D2", name, nothing, doctor(url), "UsageError", "--device .*: expected ssh://")
        for name, url in FOLDERS.items()
    ),
    *(
        Case("D4", name, nothing, talk(program), KINDS.get(name, "DeviceError"), WORDS[name], most_bytes=32 * MEBIBYTE)
        for name, program in NOISE.items()
    ),
]

CASES = [*POSTS, *BOARDS]
