"""The strict reader: what fits a dataclass comes back as it, everything else is refused by its path."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saten_runtime.errors import DataError
from saten_runtime.records.plain_text import printable
from saten_runtime.records.reader import RESULTS, Bound, Count, Natural, Positive, Reader, read_result


@dataclass(frozen=True)
class Inner:
    to: str
    low: Positive
    high: Positive = 2.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("found an empty interval, expected low <= high")


@dataclass(frozen=True)
class Outer:
    name: str
    many: Natural
    some: Count
    ratio: float
    valid: bool
    inner: Inner | None = None
    inners: list[Inner] = field(default_factory=list)
    sizes: dict[Annotated[str, Bound("a short name", lambda key: len(key) < 5)], Count] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


SOUND: dict[str, Any] = {
    "name": "a",
    "many": 1,
    "some": 0,
    "ratio": 1.5,
    "valid": True,
    "inner": {"to": "b", "low": 1, "high": 2.0},
    "inners": [{"to": "c", "low": 0.5, "high": 0.5}],
    "sizes": {"x": 3},
    "facts": {"deep": [{"er": None}]},
}
LEAST = {name: SOUND[name] for name in ("name", "many", "some", "ratio", "valid")}
STRICT = Reader(DataError, exact=True)


def test_what_was_written_comes_back() -> None:
    read = STRICT.read(Outer, SOUND, "record")
    assert read.inner == Inner("b", 1.0, 2.0)
    assert type(read.inner.low) is float
    assert dataclasses.asdict(read) == SOUND
    assert json.loads(json.dumps(dataclasses.asdict(read))) == SOUND


def test_an_older_record_lacks_what_has_a_default_and_a_newer_one_has_more() -> None:
    assert RESULTS.read(Outer, {**LEAST, "colour": "red"}, "record") == Outer("a", 1, 0, 1.5, True)
    with pytest.raises(DataError, match=r"^record: facts is missing, expected facts, inner, inners, many"):
        STRICT.read(Outer, LEAST, "record")
    with pytest.raises(DataError, match=r"^record\.inner: found the unknown 'colour', expected high, low, to$"):
        STRICT.read(Outer, {**SOUND, "inner": {**SOUND["inner"], "colour": 1}}, "record")


BAD: dict[str, tuple[Any, str]] = {
    "name": (None, r"\.name: found None, expected a string"),
    "many": (0, r"\.many: found 0, expected a number above 0"),
    "some": (-1, r"\.some: found -1, expected a number 0 or more"),
    "ratio": (math.inf, r"\.ratio: found inf, expected a finite number"),
    "valid": (1, r"\.valid: found 1, expected true or false"),
    "inner": ([], r"\.inner: found \[\], expected an object"),
    "inners": ([{"to": "c"}], r"\.inners\[0\]: low is missing, expected low, to"),
    "sizes": ({"x": 1.0}, r"\.sizes\.x: found 1\.0, expected a whole number"),
    "facts": ([1], r"\.facts: found \[1\], expected a list or an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_value_is_refused_by_its_path(name: str) -> None:
    value, words = BAD[name]
    RESULTS.read(Outer, SOUND, "record")
    with pytest.raises(DataError, match=f"^record{words}"):
        RESULTS.read(Outer, {**SOUND, name: value}, "record")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"many": True}, r"many: found True, expected a whole number"),
        ({"ratio": False}, r"ratio: found False, expected a finite number"),
        ({"ratio": 10**400}, r"ratio: found 1000+, expected a finite number"),
        ({"some": 2**63}, r"some: found 9223372036854775808, expected a whole number"),
        ({"sizes": {"longer": 1}}, r"sizes\.longer: found 'longer', expected a short name"),
        ({"inner": {"to": "b", "low": 3}}, r"inner: found an empty interval, expected low <= high"),
    ],
)
def test_a_value_at_the_edge_of_its_type(change: dict[str, Any], words: str) -> None:
    assert RESULTS.read(Outer, {**SOUND, "some": 2**63 - 1, "ratio": 2**62}, "record").some == 2**63 - 1
    with pytest.raises(DataError, match=rf"^record\.{words}$"):
        RESULTS.read(Outer, {**SOUND, **change}, "record")


def test_strings_of_results_are_printable_and_others_are_left() -> None:
    hostile = {**SOUND, "name": "\x1b[2J", "facts": {"\u202e": ["\x07"]}}
    assert RESULTS.read(Outer, hostile, "record").name == r"\x1b[2J"
    assert RESULTS.read(Outer, hostile, "record").facts == {r"\u202e": [r"\x07"]}
    assert STRICT.read(Outer, hostile, "record").name == "\x1b[2J"


@pytest.mark.parametrize("half", ["\ud800", "\udfff\ud800"])
def test_half_a_character_is_no_string_and_is_spelled_out_in_a_result(half: str) -> None:
    with pytest.raises(DataError, match=r"^record\.name: found '\\ud[8f]"):
        STRICT.read(Outer, {**SOUND, "name": half}, "record")
    assert RESULTS.read(Outer, {**SOUND, "name": half}, "record").name == ascii(half)[1:-1]


def test_what_is_nested_without_end_is_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(DataError, match=r"^record: is nested too deep$"):
        RESULTS.read(Outer, {**SOUND, "facts": {"a": deep}}, "record")


@dataclass(frozen=True)
class Versioned:
    schema_version: int


@pytest.mark.parametrize("version", [0, 2, True, None, "1", [1] * 100])
def test_another_version_is_refused(version: Any) -> None:
    assert read_result(Versioned, {"schema_version": 1}, "record", 1) == Versioned(1)
    with pytest.raises(DataError, match=r"^record: schema_version is .{1,70}, expected 1; measure again$"):
        read_result(Versioned, {"schema_version": version}, "record", 1)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(SOUND)), values, st.sampled_from([RESULTS, STRICT]))
def test_whatever_comes_is_read_whole_or_refused_in_one_printable_line(name: str, value: Any, reader: Reader) -> None:
    with contextlib.suppress(DataError):
        assert isinstance(reader.read(Outer, {**SOUND, name: value}, "record"), Outer)
    with pytest.raises(DataError) as refusal:
        reader.read(Outer, {**SOUND, name: value, "ratio": [value]}, "record")
    assert printable(str(refusal.value)) == str(refusal.value)
