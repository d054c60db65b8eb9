"""A benchmark that was cut short goes on where it stopped, and two never run at once."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saten_runtime.bench.measure import Interrupted, Plan, bench
from saten_runtime.errors import DataError, DeviceError, UsageError
from saten_runtime.machine.child import Child
from saten_runtime.machine.lock import machine_lock
from saten_runtime.records.jsonl import LineWriter, read_lines

PLAN = Plan(tokens=(8, 16), min_time_s=0, rounds=2, floor=False)


def lines(folder: Path, kind: str = "samples") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def cut_after(kind: str, place: int) -> Callable[[int, int, str], None]:
    seen = []

    def progress(done: int, total: int, what: str) -> None:
        seen.extend([what] if kind in what else [])
        if len(seen) > place:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_resumed_run_has_the_cells_of_a_whole_one(tiny: Path, slow: Path, tmp_path: Path, place: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        bench([tiny, slow], PLAN, baseline=tiny, output=out, progress=cut_after("tokens)", place))
    before = {(row["bundle"], row["tokens"], row["round"]): row["samples_ns"] for row in lines(out)}
    assert len(before) == place
    result = bench([tiny, slow], PLAN, baseline=tiny, output=out, resume=True)
    assert [cell.failed for cell in result.cells] == [None] * 4
    assert all(cell.count == 10 for cell in result.cells)
    assert len(result.loads) == 2
    last = {(row["bundle"], row["tokens"], row["round"]): row["samples_ns"] for row in lines(out)}
    assert len(last) == 8
    whole = {key for key in before if {(name, *key[1:]) for name in ("tiny", "slow")} <= set(before)}
    assert all(last[key] == before[key] for key in whole)  # what both had in a round is not measured again


def test_only_what_is_missing_is_measured(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = bench([tiny], PLAN, output=out)
    content = (out / "samples.jsonl").read_bytes()
    again = bench([tiny], PLAN, output=out, resume=True)
    added = (out / "samples.jsonl").read_bytes()[len(content) :].decode()
    assert [json.loads(line)["kind"] for line in added.splitlines()] == ["environment"]
    assert again.cells == first.cells
    more = bench([tiny], Plan(tokens=(8, 16, 24), min_time_s=0, rounds=2, floor=False), output=out, resume=True)
    assert more.cells[:2] == first.cells
    assert len(lines(out)) == 6


def test_another_model_of_the_same_name_is_measured_anew(
    tiny: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    bench([tiny], PLAN, output=out)
    bench([make_bundle("tiny", work=8)], PLAN, output=out, resume=True)
    assert len(lines(out)) == 8
    bench([tiny], Plan(tokens=(8, 16), min_time_s=0.01, rounds=2, floor=False), output=out, resume=True)
    assert len(lines(out)) == 12


def test_half_a_line_is_dropped_with_a_notice(tiny: Path, tmp_path: Path) -> None:
    out, notices = tmp_path / "out", []
    bench([tiny], PLAN, output=out)
    path = out / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    result = bench([tiny], PLAN, output=out, resume=True, notice=notices.append)
    assert len(notices) == 1
    assert "the last line is broken and was dropped" in notices[0]
    assert all(cell.count == 10 for cell in result.cells)
    assert len(read_lines(path)) > 5


def test_lines_of_another_version_are_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"kind": "samples", "schema_version": 9}\n')
    with pytest.raises(DataError, match="is of version 9, expected 1"):
        bench([tiny], PLAN, output=tmp_path, resume=True)
    (tmp_path / "samples.jsonl").write_text("nonsense\n")
    with pytest.raises(DataError, match=r"samples\.jsonl:1: not JSON"):
        bench([tiny], PLAN, output=tmp_path, resume=True)


def test_one_benchmark_at_a_time(tiny: Path) -> None:
    with machine_lock():
        code = f"from saten_runtime.bench.measure import *; bench([{str(tiny)!r}], Plan(tokens=(8,)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"another benchmark runs on this machine (process {os.getpid()})" in done.stderr
    with machine_lock():
        pass


def test_a_new_file_and_its_name_are_on_the_disk_before_a_line_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    with LineWriter(tmp_path / "samples.jsonl") as writer:
        assert synced == [str(tmp_path)]
        writer.write({"a": 1})
    assert synced == [str(tmp_path), str(tmp_path / "samples.jsonl")]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with LineWriter(tmp_path / "a.jsonl") as first:
        first.write({"a": 1})
        with pytest.raises(UsageError, match="another run is writing it"):
            LineWriter(tmp_path / "a.jsonl")
    assert read_lines(tmp_path / "a.jsonl") == [{"a": 1}]


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_full_disk_loses_nothing_that_was_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    out, calls, real = tmp_path / "out", [], os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):  # not a folder, whose names are synced too
            calls.append(handle)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            bench([tiny], PLAN, output=out)
    kept = len(read_lines(out / "samples.jsonl"))
    assert kept >= fails_at - 1
    result = bench([tiny], PLAN, output=out, resume=True)
    assert all(cell.count == 10 for cell in result.cells)
    assert len(read_lines(out / "samples.jsonl")) > kept


def test_a_worker_that_does_not_answer_is_ended(tiny: Path) -> None:
    with Child() as child:
        child.ask("load", bundle=str(tiny), threads=1, memory="fast", timeout_s=60)
        child.ask("prepare", size={"batch": 1, "tokens": 4}, vocabulary=64, timeout_s=60)
        with pytest.raises(DeviceError, match=r"worker gave no answer to 'run' within 0\.2 s"):
            child.ask("run", warmup=0, iterations=1, min_ns=60_000_000_000, timeout_s=0.2)
        with pytest.raises(DeviceError, match="SIGKILL"):
            child.ask("memory")


def test_a_bundle_that_does_not_fit_fails_its_cells_only(
    tiny: Path, make_bundle: Callable[..., Path], fake_root: Callable[[dict[str, str]], Path]
) -> None:
    root = fake_root({"proc/meminfo": f"MemAvailable: {70 << 10} kB\n"})
    result = bench([tiny, make_bundle("heavy", work=200_000)], PLAN, root=root)
    assert {cell.bundle for cell in result.cells if cell.failed} == {"heavy"}
    assert "needs about" in str(result.cells[1].failed)


def test_decoders_and_pictures_are_measured(task_bundle: Callable[..., Path]) -> None:
    plan = Plan(tokens=(8,), generate=(4,), depths=(0, 16), min_time_s=0, rounds=1, floor=False)
    cells = bench([task_bundle("text-generation")], plan).cells
    assert [cell.size.name for cell in cells] == ["pp8", "pp8 @ d16", "tg4", "tg4 @ d16"]
    assert [cell.failed for cell in cells] == [None] * 4
    assert cells[0].ttft_ms == cells[0].p50_ms
    for cell in cells:
        assert cell.tokens_per_s == pytest.approx(1000 * cell.tokens / (cell.p50_ms or 0))
    assert cells[1].ttft_ms is None
    (picture,) = bench([task_bundle("image-classification")], plan).cells
    assert picture.failed is None
    with pytest.raises(UsageError, match="tasks that cannot be compared"):
        bench([task_bundle("text-generation"), task_bundle("image-classification")], plan)
    with pytest.raises(UsageError, match="takes at most 48 tokens, found 54; lower --tokens, --depth or --generate"):
        bench([task_bundle("text-generation")], Plan(tokens=(8,), generate=(4,), depths=(46,)))
