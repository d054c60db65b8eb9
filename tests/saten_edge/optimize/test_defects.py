"""A stage that fails as nobody expected ends its candidate; what the machine lacks ends the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'saten-edge[optimize]')")

from pretended_stages import Stages, search_in, searched

from saten_edge.cli.optimize import _text
from saten_edge.optimize import tasks
from saten_edge.optimize.goal import Row
from saten_edge.optimize.run import Found
from saten_edge.optimize.showing import defects_of
from saten_edge.optimize.space import RIVALS, STARTS
from saten_runtime.errors import DefectError


def is_first(stage: str, options: Mapping[str, Any]) -> bool:
    """Whether it compresses the first of the usual good ones."""
    first = STARTS[0].compress
    return stage == "compress" and (options["budget"], options["group"]) == (first.budget, first.group)


def test_a_defect_in_one_candidate_is_its_end_and_is_said_at_once(tmp_path: Path, monkeypatch):
    said: list[str] = []
    search = search_in(tmp_path, Stages(broken=is_first), monkeypatch)
    search.progress = lambda stage, done, total, what: said.append(stage)
    trials = search.run(search.rivals())
    failed, *others = trials
    assert failed.candidate == STARTS[0]
    assert (failed.failed, failed.drop) == (True, None)
    assert failed.why.startswith("defect: ValueError: axes don't match array (work/compress-")
    text = (tmp_path / failed.why.partition("(")[2].rstrip(")")).read_text()
    assert text.startswith("Traceback (most recent call last):")
    line = f"{failed.candidate.label}: {failed.why}"
    assert 0 < said.index(line) < said.index(next(title for title in said if title.startswith("trials 4-")))
    assert search.looked_at(trials) == 6
    assert not any(trial.failed for trial in others)
    assert defects_of(search, trials) == [line]
    again = search_in(tmp_path, Stages(), monkeypatch)  # it is not tried again
    assert again.run(again.rivals()) == trials
    assert defects_of(again, trials) == [line]


def test_a_defect_with_the_dense_model_ends_the_search(tmp_path: Path, monkeypatch):
    def with_dense(precision: str) -> Stages:
        return Stages(broken=lambda stage, options: options.get("name") == f"dense-{precision}")

    with pytest.raises(DefectError, match=r"^the dense model: defect: ValueError: axes don't match array") as caught:
        search_in(tmp_path, with_dense("fp32"), monkeypatch).rivals()
    assert caught.value.exit_code == 1
    search = search_in(tmp_path / "other", with_dense("int4"), monkeypatch)  # another precision is only a rival
    assert [rival.candidate for rival in search.rivals()] == [each for each in RIVALS if each.label != "dense-int4"]
    assert list(search.defects) == ["dense-int4"]


def test_defects_in_all_of_the_first_candidates_end_the_search(tmp_path: Path, monkeypatch):
    stages = Stages(broken=lambda stage, options: stage == "compress")
    with pytest.raises(DefectError, match=r"^every compression failed; saten-int8-0\.4-.*: defect: ValueError: axes"):
        searched(tmp_path, stages, monkeypatch)
    monkeypatch.setattr(tasks, "versions_here", lambda: {"saten-edge": "the next one"})
    mended = searched(tmp_path, Stages(), monkeypatch)
    assert mended == searched(tmp_path / "whole", Stages(), monkeypatch)
    starts = {each.compress.budget for each in STARTS[1:]}
    three = Stages(broken=lambda stage, options: stage == "compress" and options["budget"] in starts)
    trials = searched(tmp_path / "three", three, monkeypatch)
    assert [trial.failed for trial in trials[:4]] == [False, True, True, True]


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError("no memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left" })'),
        KeyboardInterrupt("Ctrl-C"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_what_the_machine_lacks_is_no_defect(fault: BaseException, tmp_path: Path, monkeypatch):
    with pytest.raises(type(fault)):
        searched(tmp_path, Stages(len(RIVALS) * 2 + 3, fault=fault), monkeypatch)
    assert not list(tmp_path.glob("work/*/traceback.txt"))
    trials = searched(tmp_path, Stages(), monkeypatch)
    assert not any(trial.failed for trial in trials)


def test_a_defect_is_among_the_last_words(tmp_path: Path):
    row = Row("dense-fp32", RIVALS[0], None, 4_000_000, 4.0, 0.9, 0.0, 0.9, 0.0)
    found = Found(tmp_path, "The answer.", row, [], [row], [], ["svd-int8-0.25: defect: ValueError: axes"])
    assert "The answer.\n\nfailed by a defect, please report it: svd-int8-0.25: defect: ValueError: axes" in _text(
        found
    )
    assert found.to_json()["defects"] == found.defects
