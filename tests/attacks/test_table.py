"""Every threat of docs/security.md has a case or a test that exists, and every case a threat."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hostile.table import CASES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
ROWS = {
    cells[1].strip(): cells
    for line in PAGE.splitlines()
    if re.match(r"\| [A-Z]\d+ \|", line)
    for cells in [line.split("|")]
}
THREATS = {
    **{"K": 14, "T": 7, "S": 7, "E": 7, "R": 8},
    **{"O": 6, "Y": 3, "N": 4, "H": 7, "W": 3, "D": 6, "C": 4},
}
IDS = [f"{letter}{number}" for letter, count in THREATS.items() for number in range(1, count + 1)]


def test_every_threat_has_its_row() -> None:
    assert list(ROWS) == IDS


def test_there_are_at_least_120_cases_and_each_is_there_once() -> None:
    assert len(CASES) >= 120
    assert [name for name, count in Counter(case.id for case in CASES).items() if count > 1] == []
    assert {case.threat for case in CASES} <= set(IDS)


@pytest.mark.parametrize("threat", IDS)
def test_a_threat_has_a_case_or_a_test(threat: str) -> None:
    """A row that says "table" has cases; every other test it names exists."""
    named = ROWS[threat][4]
    cases = [case for case in CASES if case.threat in (threat, *re.findall(r"table \((\w+)\)", named))]
    assert bool(cases) == ("table" in named)
    files = re.findall(r"`(tests/[^`]+)`", named)
    assert cases or files
    assert [file for file in files if not (ROOT / file).is_file()] == []


FAULTS = [
    line.split("|") for line in PAGE.partition("## Faults")[2].partition("## Fuzzing")[0].splitlines() if "`" in line
]


@pytest.mark.parametrize("cells", FAULTS, ids=lambda cells: cells[1].strip())
def test_a_fault_has_a_test(cells: list[str]) -> None:
    files = re.findall(r"`(tests/[^`]+)`", cells[3])
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_no_fault_was_dropped() -> None:
    assert len(FAULTS) >= 15


def test_every_place_the_page_names_exists() -> None:
    paths = re.findall(r"`((?:tests|saten_edge|docs)/[\w/.]+)`", PAGE)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    packages = re.findall(r"`(saten_runtime/[\w/.]+)`", PAGE)
    assert [path for path in packages if not (ROOT / "runtime" / path).exists()] == []
