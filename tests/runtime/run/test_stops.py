"""Texts that end a continuation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saten_runtime.run.generation import until

PIECES = st.lists(st.text("ab", max_size=4), max_size=8)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(PIECES, STOPS)
def test_a_text_ends_before_a_stop_text_however_it_is_split(pieces: list[str], stops: list[str]) -> None:
    whole, said = "".join(pieces), "".join(until(stops, pieces))
    assert whole.startswith(said)
    assert not any(stop in said for stop in stops)
    if any(stop in whole for stop in stops):
        assert any(whole[len(said) :].startswith(stop) for stop in stops)
    else:
        assert said == whole


def test_what_may_begin_a_stop_text_is_held_back_no_longer_than_it_may() -> None:
    assert list(until(["END"], ["one E", "N", "d", " EN", "D x"])) == ["one ", "ENd", " "]
    assert list(until(["END"], ["one E", "N"])) == ["one ", "EN"]
