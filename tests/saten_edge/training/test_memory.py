"""Memory that a training freed goes back to the system."""

from __future__ import annotations

import platform
from types import SimpleNamespace

import psutil
import pytest

from saten_edge.training import memory, trainer

CHUNK, COUNT = 64 << 10, 2048  # 128 MiB on the heap: chunks so small are not mapped on their own


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps holes in its heap, and can be told")
def test_holes_in_the_heap_are_given_back():
    process = psutil.Process()
    chunks = [bytearray(b"x" * CHUNK) for _ in range(COUNT)]
    chunks = chunks[::16]  # what stays keeps the end of the heap where it is
    holes = process.memory_info().rss
    assert memory.give_back()
    assert holes - process.memory_info().rss > CHUNK * COUNT // 2
    assert len(chunks) == COUNT // 16


def test_without_such_a_library_nothing_is_given_back(monkeypatch):
    monkeypatch.setattr(memory, "_release", lambda: None)
    assert not memory.give_back()


def test_a_training_gives_memory_back_every_few_steps(monkeypatch):
    given: list[int] = []
    steps = trainer._Steps(SimpleNamespace(done=0.0))
    for step in range(1, 2 * memory.STEPS_BETWEEN + 2):
        monkeypatch.setattr(trainer, "give_back", lambda step=step: given.append(step))
        steps.on_step_end(None, SimpleNamespace(global_step=step), SimpleNamespace())
    assert given == [memory.STEPS_BETWEEN, 2 * memory.STEPS_BETWEEN]
