"""Texts out of JSON Lines files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saten_edge.texts import read_rows, read_texts, write_lines
from saten_runtime.errors import DataError


def test_every_text_of_every_object_in_order(tmp_path: Path):
    rows = [{"query": "a", "answer": "b", "label": 3, "empty": " "}, {"text": "ü → 中"}]
    write_lines(tmp_path / "data.jsonl", rows)
    assert read_texts(tmp_path / "data.jsonl") == ["a", "b", "ü → 中"]


def test_words_are_a_text_and_their_labels_none(tmp_path: Path):
    rows = [
        {"tokens": ["a", "b"], "ner_tags": ["O", "O"], "answers": ["a"]},
        {"words": ["c"], "labels": ["O"], "n": [1]},
    ]
    write_lines(tmp_path / "data.jsonl", rows)
    assert read_texts(tmp_path / "data.jsonl") == ["a b", "c"]


def test_written_lines_are_json_objects(tmp_path: Path):
    write_lines(tmp_path / "data.jsonl", [{"text": "two\nlines"}, {"text": "ü"}])
    lines = (tmp_path / "data.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "two\nlines"}, {"text": "ü"}]
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0c"])
def test_a_line_ends_at_a_newline_only(tmp_path: Path, separator: str):
    """JSON leaves these characters as they are, so a line may hold them."""
    write_lines(tmp_path / "data.jsonl", [{"text": f"a{separator}b"}])
    assert read_texts(tmp_path / "data.jsonl") == [f"a{separator}b"]


def test_empty_lines_are_passed_over(tmp_path: Path):
    (tmp_path / "data.jsonl").write_text('\n{"text": "a"}\n\n   \n{"text": "b"}')
    assert read_texts(tmp_path / "data.jsonl") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text; expected lines such as"),
        (b'{"label": 1}\n', "holds no text"),
        (b'{"text": "a"}\n{"text": \n', r"data\.jsonl:2: not JSON"),
        (b'["a"]\n', r"data\.jsonl:1: expected a JSON object, found list"),
        (b"\xff\xfe", r"data\.jsonl:1: not JSON"),
    ],
    ids=["empty", "no text", "cut off", "list", "not UTF-8"],
)
def test_what_holds_no_texts_is_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / "data.jsonl")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read"):
        read_texts(tmp_path / "nowhere.jsonl")


def test_a_line_separator_inside_a_cell_ends_no_row(tmp_path: Path) -> None:
    """U+2028 and form feeds are whitespace to `str.splitlines`, and text to CSV."""
    (tmp_path / "texts.csv").write_text('text,label\none\u2028two,1\n"three\x0cfour",0\n', "utf-8")
    rows = [row for _, row in read_rows(tmp_path / "texts.csv")]
    assert rows == [{"text": "one\u2028two", "label": 1}, {"text": "three\x0cfour", "label": 0}]
