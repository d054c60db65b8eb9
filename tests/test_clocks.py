"""No duration and no deadline is read off the wall clock, which jumps; boards without a battery begin in 1970."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import saten_edge
import saten_exporters
import saten_runtime

WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow|today)\(|\bdate\.today\(")
# Whose dates a client asks for.
DATES = {"saten_runtime/serve/answers.py"}
FILES = [
    path for package in (saten_edge, saten_exporters, saten_runtime) for path in Path(package.__path__[0]).rglob("*.py")
]


def test_nothing_reads_the_wall_clock() -> None:
    assert len(FILES) > 100
    reading = [path for path in FILES if WALL_CLOCK.search(path.read_text("utf-8"))]
    assert {"/".join(path.parts[-3:]) for path in reading} == DATES


@pytest.mark.parametrize("line", ["start = time.time()", "t = time.time_ns()", "datetime.now(UTC)", "date.today()"])
def test_it_would_be_found(line: str) -> None:
    assert WALL_CLOCK.search(line)
    assert not WALL_CLOCK.search("start = time.perf_counter_ns() - time.monotonic()")
