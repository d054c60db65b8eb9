"""Options that are declared once, in a dataclass, and read back from a command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from saten_runtime.errors import UsageError
from saten_runtime.options import (
    add_options,
    arguments_of,
    check_ranges,
    numbers,
    option,
    options_of,
    spelled,
    values_of,
    words,
)


@dataclass(frozen=True)
class Walk:
    steps: int = option(3, "Steps to walk", "--steps", "-s", low=1, high=9)
    stops: tuple[int, ...] = option((1, 2), "Stops on the way", read=numbers, low=0)
    friends: tuple[str, ...] = option(("ann",), "Who comes along", read=words)
    load_kg: float | None = option(None, "Weight of the bag in kg, 50 % of yours at most", low=0)
    way: str = option("short", "Take the long way", "--long", const="long")
    company: bool = option(True, "Walk alone", "--alone", const=False)
    diary: str = "no option"


def parse(*arguments: str, only: tuple[str, ...] | None = None) -> Walk:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Walk, only)
    return values_of(Walk, parser.parse_args(arguments))


@pytest.mark.parametrize(
    "walk", [Walk(), Walk(4, (5,), ("bob", "eve"), 0.25, "long", False), Walk(load_kg=1e-9, stops=(0, 7))]
)
def test_a_command_line_that_is_written_is_read_back(walk: Walk) -> None:
    assert parse(*arguments_of(walk)) == walk


def test_nothing_given_is_the_defaults() -> None:
    assert parse() == Walk()
    assert parse("-s", "5") == Walk(steps=5)


def test_what_is_not_declared_keeps_its_default() -> None:
    assert parse("--steps", "5", only=("steps",)) == Walk(steps=5)
    with pytest.raises(SystemExit):
        parse("--alone", only=("steps",))


def test_a_field_without_option_is_none() -> None:
    assert [field.name for field, _ in options_of(Walk)] == ["steps", "stops", "friends", "load_kg", "way", "company"]
    assert {field.name: one.flags for field, one in options_of(Walk)}["load_kg"] == ("--load-kg",)


@pytest.mark.parametrize(
    ("walk", "message"),
    [
        (Walk(steps=0), "--steps 0: expected a number from 1 to 9"),
        (Walk(steps=10), "--steps 10: expected a number from 1 to 9"),
        (Walk(load_kg=-0.5), "--load-kg -0.5: expected a number of at least 0"),
        (Walk(load_kg=float("nan")), "--load-kg nan: expected a number of at least 0"),
        (Walk(stops=()), "--stops : expected different numbers of at least 0"),
        (Walk(stops=(1, 1)), "--stops 1,1: expected different numbers of at least 0"),
        (Walk(stops=(1, -1)), "--stops 1,-1: expected different numbers of at least 0"),
    ],
)
def test_a_number_out_of_range_names_its_option(walk: Walk, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_ranges(walk)
    assert str(caught.value) == message


@pytest.mark.parametrize("walk", [Walk(), Walk(steps=1), Walk(steps=9), Walk(load_kg=0.0), Walk(stops=(0,))])
def test_the_ends_of_a_range_are_in_it(walk: Walk) -> None:
    check_ranges(walk)


def test_a_list_that_is_none_says_what_was_expected() -> None:
    with pytest.raises(argparse.ArgumentError, match="'1;2': expected whole numbers with commas between them"):
        parse("--stops", "1;2")


def test_help_shows_defaults_and_takes_percent_signs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Stops on the way (default: 1,2)" in shown
    assert "50 % of yours at most" in shown
    assert "Walk alone" in shown
    assert "Walk alone (default" not in shown


def test_spelled() -> None:
    assert [spelled(value) for value in ((1, 2), "word", 0.5, ("a",))] == ["1,2", "word", "0.5", "a"]
