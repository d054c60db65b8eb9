"""What others said, on one line."""

from __future__ import annotations

import pytest

from saten_runtime.records.plain_text import last_line, one_line


@pytest.mark.parametrize(
    ("said", "most", "line"),
    [
        (ValueError("no\n  such\tthing "), None, "no such thing"),
        ("a b", 1, "a"),
        (KeyError(), None, "KeyError"),
        ("", None, ""),
        (TimeoutError("\n"), 5, "TimeoutError"),
    ],
)
def test_one_line(said: object, most: int | None, line: str) -> None:
    assert one_line(said, most) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nb\n", "b"), (" a \r\n\n  \n", "a"), ("\x1b[2J", "\x1b[2J"), ("", "nothing"), ("\n \n", "nothing")],
)
def test_last_line(text: str, line: str) -> None:
    assert last_line(text, "nothing") == line
