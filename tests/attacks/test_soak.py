"""Many predictions and many sessions in one process take no more memory than few, and threads disturb nobody."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from saten_runtime.machine.memory import snapshot
from saten_runtime.run.runner import Runner

TEXTS = [f"w{k % 12} w{k % 7} w{k % 5}" for k in range(64)]
MEBIBYTE = 1 << 20
# What a call may keep for good: less than one object.
PREDICTION_BYTES = 16
SESSION_BYTES = 16 << 10


def anonymous_bytes() -> int:
    gc.collect()
    return int(snapshot().rss_anon_bytes or 0)


def slope(readings: list[int], step: int) -> float:
    """Bytes per call: the least-squares line through readings taken every `step` calls."""
    return float(np.polyfit(np.arange(len(readings)) * step, readings, 1)[0])


@pytest.mark.slow
def test_a_hundred_thousand_predictions(lookup_bundle: Path) -> None:
    runner = Runner.load(lookup_bundle)
    expected = runner.predict(TEXTS[:1])
    readings = []
    for _ in range(20):
        for _ in range(5_000):
            last = runner.predict(TEXTS[:1])
        readings.append(anonymous_bytes())
    print(f"\n100 000 predictions: {slope(readings[2:], 5_000):+.2f} bytes each, {readings[-1] / MEBIBYTE:.0f} MiB")
    assert np.array_equal(last, expected)
    assert slope(readings[2:], 5_000) <= PREDICTION_BYTES


@pytest.mark.slow
def test_two_hundred_sessions(lookup_bundle: Path) -> None:
    readings = []
    for _ in range(20):
        for _ in range(10):
            Runner.load(lookup_bundle).predict(TEXTS[:1])
        readings.append(anonymous_bytes())
    print(f"\n200 sessions: {slope(readings[4:], 10):+.0f} bytes each, {readings[-1] / MEBIBYTE:.0f} MiB")
    assert slope(readings[4:], 10) <= SESSION_BYTES


def test_a_leak_would_be_seen() -> None:
    """The twin: a kilobyte kept by each call is a slope, a wobble is none."""
    wobble = [(17 * k) % 5 * 4096 for k in range(18)]
    assert slope(wobble, 5_000) <= PREDICTION_BYTES
    assert slope([one + k * 5_000 * 1024 for k, one in enumerate(wobble)], 5_000) > PREDICTION_BYTES


def test_eight_threads_share_a_runner(lookup_bundle: Path) -> None:
    runner = Runner.load(lookup_bundle)
    expected = [runner.predict([text]) for text in TEXTS]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for turn in range(200):
            index = (offset * 31 + turn * 7) % len(TEXTS)
            if not np.array_equal(runner.predict([TEXTS[index]]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not np.array_equal(expected[0], expected[1])
