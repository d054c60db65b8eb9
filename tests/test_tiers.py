"""`make test` and `make check` run what they say: no test is between the two."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiers import TESTS, WHOLE, is_whole

ROOT = TESTS.parent


def rule(target: str) -> tuple[list[str], str]:
    """What a target of the Makefile needs, and what it does."""
    found = re.search(rf"^{target}:(.*)\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1].split(), found[2]


def selected(target: str) -> list[str]:
    """What each call of pytest in a target selects."""
    return [quoted or word for quoted, word in re.findall(r'-m pytest -m (?:"([^"]+)"|(\w+))', rule(target)[1])]


def test_every_test_is_of_one_tier() -> None:
    assert selected("test") == ["not slow and not whole"]
    assert selected("test-all") == ["not slow"]
    assert selected("test-slow") == ["slow"]


def test_check_runs_both_tiers_in_one_call_and_ci_runs_check() -> None:
    assert rule("check") == (["lint", "types", "test-all"], "")
    assert "\nmake check\n" in (ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.parametrize("row", WHOLE)
def test_every_row_is_there(row: str) -> None:
    assert (TESTS / row).exists()
    assert not any(other != row and Path(row).is_relative_to(other) for other in WHOLE)


def test_the_marker_is_that_of_the_table(request: pytest.FixtureRequest) -> None:
    marks = {(item.path, item.get_closest_marker("whole") is not None) for item in request.session.items}
    assert marks == {(path, is_whole(path)) for path, _ in marks}
    assert is_whole(TESTS / "e2e" / "test_stages.py")
    assert not is_whole(Path(__file__))
