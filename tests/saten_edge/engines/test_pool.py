"""What all engines have in common, on the pool of processes: order, lost workers, how far ahead it looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saten_edge.engines import work
from saten_edge.engines.local import Local
from saten_edge.engines.pool import within
from saten_runtime.errors import DeviceError, SatenError

# A worker that answers with its process id, waits, and dies when it is told to, once or always.
WORKER = """
import os, time, pathlib
from saten_runtime.machine.child import answer_requests
def perform(request):
    mark = pathlib.Path(request["folder"]) / "died"
    if request["do"] == "always" or (request["do"] == "once" and not mark.exists()):
        mark.write_text("")
        os.kill(os.getpid(), 9)
    time.sleep(0.05)
    threads = (os.environ["OMP_NUM_THREADS"], request["threads"])
    return {"pid": os.getpid(), "do": request["do"], "threads": threads}
answer_requests(lambda: {"perform": perform})
"""


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], Local]:
    monkeypatch.setattr("saten_edge.engines.local._WORKER", f"exec({WORKER!r})")
    return lambda workers: Local(tmp_path, workers, 3)


def test_a_pool_answers_in_order_with_as_many_processes_as_it_may(local: Callable[[int], Local]) -> None:
    some, counted = [{"do": f"task {k}"} for k in range(8)], list[int]()
    with local(2) as engine:
        found = engine.run(some, counted.append)
        again = engine.run(some[:2], lambda done: None)
        children = list(engine._children)
    assert {each["pid"] for each in again} <= {each["pid"] for each in found}
    assert len(children) == 2
    assert [each["do"] for each in found] == [request["do"] for request in some]
    assert len({each["pid"] for each in found}) == 2
    assert all(each["threads"] == ["3", 3] for each in found)
    assert counted == list(range(1, 9))
    assert not any(child.alive for child in children)


def test_requests_are_made_when_their_turn_comes(local: Callable[[int], Local]) -> None:
    """One more than there are workers: what is made for them takes disk."""
    made, ahead = 0, list[int]()

    def requests() -> Iterator[dict[str, Any]]:
        nonlocal made
        for k in range(6):
            made += 1
            yield {"do": str(k)}

    with local(1) as engine:
        engine.run(requests(), lambda done: ahead.append(made - done))
    assert len(ahead) == 6
    assert max(ahead) <= 1


def test_a_worker_that_dies_loses_nothing_and_one_that_always_dies_is_an_error(local: Callable[[int], Local]) -> None:
    with local(2) as engine:
        found = engine.run([{"do": "a"}, {"do": "once"}, {"do": "b"}], lambda done: None)
        assert [each["do"] for each in found] == ["a", "once", "b"]
        with pytest.raises(DeviceError, match="killed by SIGKILL"):
            engine.run([{"do": "always"}, *[{"do": "c"}] * 4], lambda done: None)


def test_a_full_disk_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*given: object, **more: object) -> dict[str, Any]:
        raise OSError(28, "No space left on device", "/out/file")

    monkeypatch.setattr("saten_edge.optimize.tasks.perform", full)
    with pytest.raises(SatenError, match="/out/file: No space left on device"):
        work.perform("task", str(tmp_path), 1, task={})
    assert work.answer({"do": "task", "folder": str(tmp_path), "threads": 1, "task": {}}) == {
        "error": "/out/file: No space left on device"
    }


def test_a_machine_without_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(SatenError, match=r"elsewhere is not there; the engine's machines need the folder"):
        work.perform("task", str(tmp_path / "elsewhere"), 1, task={})


def test_what_gives_no_answer_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"^the cluster gave no answer within 0\.2 s$"):
        within(0.2, "the cluster", lambda: time.sleep(60))
    assert time.monotonic() - began < 30
    assert within(60, "the cluster", lambda: 3) == 3
    with pytest.raises(ConnectionError, match="nobody there"):
        within(60, "the cluster", refuse)


def refuse() -> None:
    raise ConnectionError("nobody there")
