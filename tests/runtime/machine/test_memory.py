"""Readings against what processes really did, and against psutil."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest

from saten_runtime.errors import DeviceError
from saten_runtime.machine.memory import MOST_POINTS, Memory, Watch, check_room, needed_bytes, snapshot

MIB = 2**20


def test_fields_come_from_their_lines(fake_root: Callable[[dict[str, str]], Path]) -> None:
    status = "Name:\tkB\nVmHWM:\t  400 kB\nRssAnon:\t  100 kB\nRssFile:\t  200 kB\nThreads:\t1\n"
    root = fake_root({"proc/7/status": status, "proc/7/smaps_rollup": "0-1 ---p 0 00:00 0 [rollup]\nPss:  300 kB\n"})
    assert snapshot(7, root) == Memory(100 * 1024, 200 * 1024, 300 * 1024, 400 * 1024)
    assert snapshot(8, root) == Memory(None, None, None, None)


def test_psutil_agrees() -> None:
    code = "data = b'x' * 2**26; print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    found, expected = snapshot(process.pid), psutil.Process(process.pid).memory_full_info()
    process.communicate(b"\n")
    rss = (found.rss_anon_bytes or 0) + (found.rss_file_bytes or 0)
    # The kernel counts rss in batches of pages; the page tables behind pss are exact.
    assert abs(rss - expected.rss) <= 0.03 * expected.rss
    assert abs((found.pss_bytes or 0) - expected.pss) <= 0.03 * expected.pss


SPIKE = "data = bytearray(b'x' * {mib} * 2**20); import time; time.sleep(0.1); del data; print(flush=True); input()"


def measured_spike(mib: int) -> tuple[int, Memory]:
    process = subprocess.Popen([sys.executable, "-c", SPIKE.format(mib=mib)], stdin=PIPE, stdout=PIPE)
    with Watch(process.pid) as watch:
        assert process.stdout is not None
        process.stdout.readline()
    after = snapshot(process.pid)
    process.communicate(b"\n")
    peak = watch.peak(after).rss_anon_bytes
    assert peak is not None
    timeline = watch.timeline()
    assert max(timeline.rss_anon_bytes) == peak
    assert timeline.times_ms == sorted(timeline.times_ms)
    assert len(timeline.times_ms) <= MOST_POINTS
    return peak, after


@pytest.mark.parametrize("mib", [64, 128])
def test_a_peak_that_is_over_is_still_seen(mib: int) -> None:
    peak_bytes, after = measured_spike(mib)
    assert mib * MIB <= peak_bytes <= (2 * mib + 32) * MIB  # building the bytearray holds it twice for a moment
    assert after.rss_anon_bytes is not None
    assert after.rss_anon_bytes < mib * MIB / 2
    assert after.hwm_bytes is not None
    assert after.hwm_bytes >= mib * MIB


def test_peak_of_a_process_that_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with Watch(process.pid) as watch:
        pass
    assert watch.peak(Memory(None, None, None, None)) == Memory(None, None, None, None)
    assert watch.timeline().times_ms == []


def test_what_does_not_fit_is_refused_before_it_starts(fake_root: Callable[[dict[str, str]], Path]) -> None:
    weights = 100 * MIB
    room = needed_bytes(weights, "small") // 1024
    root = fake_root({"proc/meminfo": f"MemTotal: 9999999 kB\nMemAvailable: {room} kB\n"})
    check_room("b", weights, "small", root)
    with pytest.raises(DeviceError, match=r"b: needs about 260 MiB of memory in mode fast, 160 MiB are available; .*"):
        check_room("b", weights, "fast", root)
    check_room("b", weights, "fast", root / "nowhere")
