"""Every row of the table is refused as it says, in a process with limits, and leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hostile.case import Case
from hostile.server import Outcome
from hostile.table import CASES

MOST_LINE = 700  # characters; longer names and values are cut in messages


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_hostile_input_ends_as_its_case_says(case: Case, tried: Callable[[str], Outcome]) -> None:
    outcome = tried(case.id)
    assert outcome.code == case.code, outcome.stderr[-2000:]
    assert re.fullmatch(case.error or "None", str(outcome.error)), outcome.stderr[-2000:]
    assert outcome.grown_bytes <= case.most_bytes, f"{outcome.grown_bytes / 2**20:.0f} MiB"
    if case.error is None:
        return
    assert outcome.left == []
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    (line,) = outcome.stderr.strip().splitlines()
    assert re.search(case.words, line), line
    assert len(line) <= MOST_LINE
    assert line.isprintable()
