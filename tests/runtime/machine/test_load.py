from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saten_runtime import doctor
from saten_runtime.doctor import Examination
from saten_runtime.machine.load import Disturbance, LoadMeter, Program, busy_programs

FakeRoot = Callable[[dict[str, str]], Path]
STAT = "cpu  {user} 0 0 1000 0 0 0 {steal} 700 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n"


@contextlib.contextmanager
def loops(count: int) -> Iterator[list[int]]:
    """Busy processes that yield to everybody; their ids."""
    command = ["nice", sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_what_proc_tells(fake_root: FakeRoot) -> None:
    root = fake_root({"proc/loadavg": "9.00 8.00 7.00 4/216 123\n", "proc/stat": STAT.format(user=500, steal=20)})
    with LoadMeter(root) as load:
        (root / "proc/stat").write_text(STAT.format(user=570, steal=50))
    # The guests' time, the ninth number, is part of the first.
    assert load.read(0.5, 7) == Disturbance(0.5, 7, others=3, ticks=100, stolen=30)


@pytest.mark.parametrize("stat", ["", "cpu 1 2 3\n", "intr 5\n", STAT.format(user="?", steal=1)])
def test_a_machine_that_does_not_tell(stat: str, fake_root: FakeRoot) -> None:
    with LoadMeter(fake_root({"proc/stat": stat, "proc/loadavg": "0.5"})) as load:
        pass
    assert load.read(1.0, None) == Disturbance(1.0)


def test_this_machine_tells() -> None:
    with loops(3), LoadMeter() as load:
        time.sleep(0.5)
    found = load.read(0.5, 0)
    assert found.others is not None
    assert found.others >= 2  # one of the loops may not have started yet
    assert found.ticks is not None
    assert found.ticks >= 10


def test_a_benchmark_on_a_busy_machine_is_invalid(slow: Path) -> None:
    """What a quiet one is called, benchmarks/a_versus_a.py counts; the twin here is in bench/test_verdict.py."""
    plan = ("-s", "8", "--rounds", "6", "--min-time", "0.3", "--no-floor", "--quiet")
    with loops(2 * (os.cpu_count() or 1) + 1):
        done = subprocess.run(
            [sys.executable, "-m", "saten_runtime", "bench", str(slow), *plan],
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert (done.returncode, done.stderr) == (4, "")
    # On an emulator, the first reason is the emulator.
    assert re.search(r"^INVALID: (.*; )?(load|switches|spread): ", done.stdout, re.MULTILINE)


def test_busy_programs_are_named() -> None:
    found: dict[int, Program] = {}
    with loops(1) as (pid,):
        # On a busy or emulated machine a loop starts late, and one that yields to everybody gets little.
        deadline = time.monotonic() + 60
        while pid not in found and time.monotonic() < deadline:
            found = {one.pid: one for one in busy_programs(1.0, least_share=0.001)}
    assert found[pid].share > 0
    assert os.getpid() not in found


def test_doctor_names_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "busy_programs", lambda: [Program("chromium", 42, 1.5), Program("make", 7, 0.25)])
    check = doctor._programs(Examination())
    assert (check.status, check.found) == ("WARN", "chromium (42) 150%, make (7) 25% of a core")
    assert doctor._programs(Examination(tmp_path)).status == "OK"
    monkeypatch.setattr(doctor, "busy_programs", lambda: [])
    assert doctor._programs(Examination()).status == "OK"
