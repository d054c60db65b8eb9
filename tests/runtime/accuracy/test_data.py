from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saten_runtime.accuracy.data import KINDS, read_data
from saten_runtime.errors import DataError
from saten_runtime.records.files import sha256_file

WriteLines = Callable[..., Path]
EXAMPLES: dict[str, dict[str, Any]] = {
    "search": {"query": "a", "answer": "b"},
    "pairs": {"text_a": "a", "text_b": "b", "label": 0.5},
    "texts": {"text": "a", "label": 1},
    "questions": {"question": "a", "context": "b", "answers": ["c", "d"]},
    "words": {"words": ["a", "b"], "labels": ["O", "B-X"]},
    "images": {"image": "a.npy", "label": 2},
    "plain": {"text": "a"},
}


def test_every_kind_is_known_by_its_fields(write_lines: WriteLines) -> None:
    assert set(EXAMPLES) == {kind.name for kind in KINDS}
    for name, example in EXAMPLES.items():
        path = write_lines([example, "", {**example, "id": 7}])
        data = read_data(path)
        assert (data.kind, data.count, data.sha256) == (name, 2, sha256_file(path))
        assert data.columns == {field: [value] * 2 for field, value in example.items()}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        pytest.param("{", ":2: not JSON", id="half an object"),
        pytest.param("[1]", ":2: expected a JSON object, found list", id="a list"),
        pytest.param('{"text": "a", "text": "b", "label": 1}', ":2: not JSON (a key occurs twice)", id="a key twice"),
        pytest.param('{"text": "a", "label": NaN}', ":2: not JSON (NaN is not JSON)", id="NaN"),
        pytest.param('{"text": "a", "label": 1e999}', ":2: not JSON (the number 1e999 is too large)", id="overflow"),
        pytest.param({"text": "a", "label": True}, ":2: 'label' is True, expected a finite number", id="boolean"),
        pytest.param({"text": "a", "label": ""}, ":2: 'label' is '', expected a finite number, or", id="no label"),
        pytest.param({"text": 5, "label": 1}, ":2: 'text' is 5, expected a text", id="number as text"),
        pytest.param({"query": "a", "answer": "b"}, ":2: has no field 'text'", id="another kind"),
        pytest.param("[" * 100_000, ":2: not JSON", id="deep nesting"),
    ],
)
def test_bad_line_is_named(write_lines: WriteLines, row: Any, words: str) -> None:
    path = write_lines([{"text": "a", "label": 1}, row])
    with pytest.raises(DataError) as caught:
        read_data(path)
    assert f"{path}{words}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "kind", "columns"),
    [
        ({"sentence": "a", "label": 1}, "texts", {"text": ["a"], "label": [1]}),
        (
            {"premise": "a", "hypothesis": "b", "labels": "no"},
            "pairs",
            {"text_a": ["a"], "text_b": ["b"], "label": ["no"]},
        ),
        ({"img": "a.png", "label": 1}, "images", {"image": ["a.png"], "label": [1]}),
        ({"tokens": ["a"], "ner_tags": ["O"], "id": 1}, "words", {"words": [["a"]], "labels": [["O"]]}),
        (
            {"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": [0]}},
            "questions",
            {"question": ["a"], "context": ["b"], "answers": [["b"]]},
        ),
    ],
)
def test_columns_of_other_usual_names(write_lines: WriteLines, row: Any, kind: str, columns: Any) -> None:
    data = read_data(write_lines([row]))
    assert (data.kind, data.columns) == (kind, columns)


@pytest.mark.parametrize(
    "row", [{"sentence": "a", "review": "b", "label": 1}, {"sentence": "a"}, {"question": "a", "answer": "b"}]
)
def test_columns_that_are_left_open_are_refused(write_lines: WriteLines, row: Any) -> None:
    with pytest.raises(DataError, match="found the fields"):
        read_data(write_lines([row]))


def test_fields_of_no_kind(write_lines: WriteLines) -> None:
    with pytest.raises(DataError, match=r"found the fields 'question', expected \{query, answer\} or"):
        read_data(write_lines([{"question": "a"}]))


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "\xe9", "label": 1}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:1: not JSON"):
        read_data(path)


def test_no_file_and_no_lines(tmp_path: Path, write_lines: WriteLines) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_data(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="Is a directory"):
        read_data(tmp_path)
    with pytest.raises(DataError, match="no examples"):
        read_data(write_lines(["", "  "]))
