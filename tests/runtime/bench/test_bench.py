from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from saten_runtime.bench import measure as bench_module
from saten_runtime.bench.measure import Interrupted, Plan, bench
from saten_runtime.bench.results import BenchResult, Cell, table
from saten_runtime.errors import DeviceError, SatenError, UsageError
from saten_runtime.machine.child import Child
from saten_runtime.machine.load import busy_programs

QUICK = Plan(tokens=(8,), min_time_s=0.02, rounds=3, floor=False)


def cell(result: BenchResult, name: str, tokens: int = 8) -> Cell:
    (found,) = [cell for cell in result.cells if (cell.bundle, cell.tokens) == (name, tokens)]
    return found


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_shape_of_the_result(tiny: Path, slow: Path, tmp_path: Path) -> None:
    plan = Plan(threads=(2,), tokens=(8, 16), memory_modes=("fast", "small"), min_time_s=0, rounds=1)
    result = bench([tiny, slow], plan, baseline=tiny, output=tmp_path / "out")
    written = json.loads((tmp_path / "out/bench.json").read_text())
    assert written == result.to_json()
    assert list(written) == ["schema_version", "environment", "verdict", "cells", "loads"]
    assert list(written["verdict"]) == ["valid", "reasons"]
    assert len(written["cells"]) == 2 * 2 * 2
    assert set(written["cells"][0]) == {
        *("bundle", "threads", "batch", "tokens", "memory_mode", "count"),
        *("phase", "depth", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "trimmed_mean_ms", "quantiles_ms"),
        *("tokens_per_s", "ttft_ms", "energy", "floor", "ratio", "failed"),
    }
    assert len(written["loads"]) == 2 * 2
    load = written["loads"][0]
    assert set(load) == {
        *("bundle", "threads", "memory_mode", "cold_load_ms", "session_ms", "first_run_ms"),
        *("memory", "predicted_bytes", "disk_bytes"),
    }
    assert set(load["memory"]) == {
        *(
            "base",
            "loaded",
            "steady",
            "peak",
            "timeline",
            "peak_anon_bytes",
            "peak_rss_bytes",
            "interpreter_anon_bytes",
        ),
    }
    for reading in ("base", "loaded", "steady", "peak"):
        assert set(load["memory"][reading]) == {"rss_anon_bytes", "rss_file_bytes", "pss_bytes", "hwm_bytes"}
    assert load["disk_bytes"] == {name: (tiny / name).stat().st_size for name in load["disk_bytes"]}
    json.dumps(written, allow_nan=False)


def test_numbers_fit_the_raw_samples(tiny: Path, slow: Path, tmp_path: Path) -> None:
    result = bench([tiny, slow], QUICK, baseline=tiny, output=tmp_path / "out")
    lines = samples(tmp_path / "out")
    assert lines[0]["kind"] == "environment"
    assert lines[0]["models"]["tiny"]["model.onnx"]
    rounds = {
        name: [line["samples_ns"] for line in lines if line["kind"] == "samples" and line["bundle"] == name]
        for name in ("tiny", "slow")
    }
    for name, groups in rounds.items():
        found, all_ms = cell(result, name), np.concatenate(groups) / 1e6
        assert len(groups) == QUICK.rounds
        assert found.count == len(all_ms) >= 10
        np.testing.assert_allclose(
            [found.p50_ms, found.p90_ms, found.p99_ms, found.mean_ms],
            [*np.percentile(all_ms, [50, 90, 99]), all_ms.mean()],
            rtol=1e-12,
        )
        assert all_ms.sum() >= 0.5 * QUICK.min_time_s * 1e3  # the loop itself takes the rest
    ratio = cell(result, "slow").ratio
    pairs = zip(rounds["slow"], rounds["tiny"], strict=True)
    assert ratio is not None
    assert ratio.value == pytest.approx(np.median([np.median(a) / np.median(b) for a, b in pairs]))
    assert ratio.to == "tiny"
    assert cell(result, "tiny").ratio is None


def test_planted_slowdown_is_found(tiny: Path, slow: Path) -> None:
    plan = Plan(tokens=(8,), min_time_s=0.02, rounds=2, floor=False)
    ratio = cell(bench([tiny, slow], plan, baseline=tiny), "slow").ratio
    assert ratio is not None
    assert 1.2 < ratio.low <= ratio.value <= ratio.high
    other = cell(bench([slow, tiny], plan, baseline=slow), "tiny").ratio
    assert other is not None
    assert other.high < 1 / 1.2


def test_a_bundle_against_itself(slow: Path) -> None:
    """An interval of 95 % may miss 1; three in a row, all by the same bundle, may not."""
    plan = Plan(tokens=(32,), min_time_s=0.08, rounds=8, floor=False)
    for _ in range(3):
        ratio = cell(bench([slow, slow], plan, baseline=slow), "slow#2", 32).ratio
        assert ratio is not None
        assert 0.5 < ratio.value < 2
        if ratio.low <= 1 <= ratio.high:
            return
    pytest.fail(f"three intervals without 1, the last {ratio}")


def test_baseline_that_is_not_listed_is_measured_too(tiny: Path, slow: Path) -> None:
    result = bench([slow], Plan(tokens=(8,), min_time_s=0, rounds=1, floor=False), baseline=tiny)
    assert [cell.bundle for cell in result.cells] == ["tiny", "slow"]
    assert result.cells[1].ratio is not None


@pytest.fixture(scope="module")
def heavy(make_bundle: Callable[..., Path]) -> Path:
    """61 MiB of weights."""
    return make_bundle("heavy", work=1_000_000)


def test_memory_of_a_load(heavy: Path, tiny: Path) -> None:
    result = bench([tiny, heavy], Plan(tokens=(1,), min_time_s=0, rounds=1, floor=False), baseline=tiny)
    light_memory, heavy_memory = (load.memory for load in result.loads)
    for memory in (light_memory, heavy_memory):
        assert memory.peak_anon_bytes is not None
        assert memory.base.rss_anon_bytes == memory.interpreter_anon_bytes
        assert memory.peak_anon_bytes >= (memory.steady.rss_anon_bytes or 0) > (memory.base.rss_anon_bytes or 0)
        assert (memory.peak_rss_bytes or 0) >= (memory.steady.hwm_bytes or 0)
    assert (heavy_memory.peak_anon_bytes or 0) - (light_memory.peak_anon_bytes or 0) > 50 * 2**20
    assert 0 < result.loads[0].session_ms < result.loads[0].cold_load_ms


def test_mode_small_leaves_large_weights_in_their_file(heavy: Path, tiny: Path) -> None:
    weights = (heavy / "model.onnx.data").stat().st_size
    plan = Plan(tokens=(1,), memory_modes=("fast", "small"), min_time_s=0, rounds=1, floor=False)
    memory = {(load.bundle, load.memory_mode): load.memory for load in bench([tiny, heavy], plan).loads}
    anonymous = {key: one.peak_anon_bytes or 0 for key, one in memory.items()}
    saved = {name: anonymous[name, "fast"] - anonymous[name, "small"] for name in ("tiny", heavy.name)}
    assert saved[heavy.name] > 0.9 * weights
    assert saved["tiny"] < 0.1 * weights
    mapped = memory[heavy.name, "small"].steady.rss_file_bytes or 0
    assert mapped - (memory["tiny", "small"].steady.rss_file_bytes or 0) > 0.9 * weights


class Doomed(Child):
    """A worker that the system kills at its n-th run, when it holds the bundle "slow"."""

    runs_left = 6

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        self._slow = arguments["bundle"].endswith("slow") if verb == "load" else getattr(self, "_slow", False)
        if verb == "run" and self._slow:
            Doomed.runs_left -= 1
            if Doomed.runs_left == 0:
                os.kill(self.pid, signal.SIGKILL)
        return super().ask(verb, **arguments)


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_killed_worker_fails_its_cells_only(
    tiny: Path, slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    monkeypatch.setattr(bench_module, "Child", Doomed)
    monkeypatch.setattr(Doomed, "runs_left", runs)
    plan = Plan(tokens=(8, 16), min_time_s=0.01, rounds=2, floor=False)
    result = bench([tiny, slow], plan, baseline=tiny, output=tmp_path / "out")
    failed = [cell for cell in result.cells if cell.failed is not None]
    assert failed
    assert {cell.bundle for cell in failed} == {"slow"}
    for broken in failed:
        assert broken.failed == "worker killed by SIGKILL (out of memory?)"
        assert (broken.count, broken.p50_ms, broken.ratio) == (0, None, None)
    assert all(cell.count >= 10 for cell in result.cells if cell.bundle == "tiny")
    assert not result.verdict.valid
    assert any("SIGKILL" in reason for reason in result.verdict.reasons)
    assert json.loads((tmp_path / "out/bench.json").read_text()) == result.to_json()
    assert "failed: worker killed by SIGKILL" in table(result)


def test_failed_baseline_leaves_no_ratio(tiny: Path, slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "Child", Doomed)
    monkeypatch.setattr(Doomed, "runs_left", 3)
    result = bench([tiny, slow], QUICK, baseline=slow)
    assert cell(result, "tiny").ratio is None
    assert cell(result, "tiny").failed is None


def test_nan_fails_the_cell_and_names_it(make_bundle: Callable[..., Path], tiny: Path) -> None:
    spoiled = make_bundle("spoiled", table=np.full((64, 8), np.nan, np.float32))
    result = bench([tiny, spoiled], QUICK)
    assert "NaN" in (cell(result, "spoiled").failed or "")
    assert cell(result, "tiny").failed is None
    assert [load.bundle for load in result.loads] == ["tiny"]


def test_interrupt_keeps_what_was_measured(tiny: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int, what: str) -> None:
        if "round 3" in what:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        bench([tiny], QUICK, output=tmp_path / "out", progress=progress)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.result.verdict.reasons[0] == "interrupted"
    assert cell(caught.value.result, "tiny").count > 0
    assert json.loads((tmp_path / "out/bench.json").read_text()) == caught.value.result.to_json()
    assert sum(line["kind"] == "samples" for line in samples(tmp_path / "out")) == 2


def test_throttled_run_is_invalid(tiny: Path, fake_root: Callable[[dict[str, str]], Path]) -> None:
    plan = Plan(tokens=(8,), min_time_s=0, rounds=1, floor=False)
    for bits, valid in (("0", True), ("50005", False)):
        root = fake_root({"sys/devices/platform/soc/soc:firmware/get_throttled": bits})
        result = bench([tiny], plan, root=root)
        assert result.verdict.valid is valid
        assert (
            result.environment["before"]["throttle_bits"]
            == result.environment["after"]["throttle_bits"]
            == int(bits, 16)
        )
    assert "throttled" in result.verdict.reasons[0]


def test_an_emulated_run_is_invalid(tiny: Path, fake_root: Callable[[dict[str, str]], Path]) -> None:
    root = fake_root({"proc/thread-self/comm": "python"})
    plan = Plan(tokens=(8,), min_time_s=0, rounds=1)
    assert bench([tiny], plan, root=root).verdict.valid
    (root / "proc/thread-self/exe").symlink_to("/usr/bin/qemu-aarch64-static")
    result = bench([tiny], plan, root=root)
    assert result.environment["emulator"] == "qemu-aarch64-static"
    assert result.verdict.reasons == ["emulated: by qemu-aarch64-static; no latency here is one of a device"]


def test_a_machine_with_more_to_do_than_cores_is_invalid(tiny: Path, tmp_path: Path) -> None:
    cores = os.cpu_count() or 1
    loops = [subprocess.Popen(["nice", sys.executable, "-c", "while True: pass"]) for _ in range(cores + 1)]
    try:
        plan = Plan(tokens=(8,), min_time_s=0.1, rounds=5, floor=False)
        result = bench([tiny], plan, output=tmp_path / "out")
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert any(reason.startswith("load: ") for reason in result.verdict.reasons)
    readings = [line["disturbance"] for line in samples(tmp_path / "out") if line["kind"] == "samples"]
    assert len(readings) == plan.rounds
    assert all(reading["switches"] >= 0 and reading["seconds"] > 0 for reading in readings)
    assert result.environment["during"]["others"][1] > cores


@pytest.mark.slow
def test_a_quiet_machine_is_valid(slow: Path) -> None:
    plan, valid = Plan(tokens=(32,), min_time_s=0.5, rounds=6, floor=False), 0
    for _ in range(10):
        if busy := busy_programs():
            pytest.skip(f"this machine is busy: {busy[0]}")
        valid += bench([slow, slow], plan, baseline=slow).verdict.valid
    assert valid >= 9


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_ends_all_processes(tiny: Path, slow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "saten_runtime",
        "bench",
        tiny,
        slow,
        "-s",
        "8",
        "--min-time",
        "500",
        "--no-floor",
        "-o",
        out,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    wait_for(lambda: (out / "samples.jsonl").exists() and '"start"' in (out / "samples.jsonl").read_text())
    workers = psutil.Process(process.pid).children()
    assert workers
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr == "saten-run: interrupted\n"
    assert "INVALID: interrupted" in stdout
    assert json.loads((out / "bench.json").read_text())["verdict"]["reasons"][0] == "interrupted"
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []


def test_workers_end_with_a_killed_parent(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "saten_runtime",
        "bench",
        tiny,
        "-s",
        "8",
        "--min-time",
        "1",
        "--no-floor",
        "-o",
        out,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: (out / "samples.jsonl").exists() and '"start"' in (out / "samples.jsonl").read_text())
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert samples(out)[0]["kind"] == "environment"


def test_progress_counts_to_the_end(tiny: Path, slow: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan = Plan(tokens=(8, 16), min_time_s=0, rounds=2, floor=False)
    bench([tiny, slow], plan, progress=lambda done, total, what: seen.append((done, total)))
    assert seen == [(done, len(seen)) for done in range(len(seen))]


def test_refused_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(UsageError, match="already exists"):
        bench([tiny], QUICK, output=taken)
    assert list(taken.iterdir()) == []
    with pytest.raises(UsageError, match="at most 48 tokens, found 49"):
        bench([tiny], Plan(tokens=(8, 49)), output=tmp_path / "new")
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(UsageError, match="not a folder"):
        bench([tiny], QUICK, output=file, overwrite=True)
    assert file.read_text() == "precious"
    assert not (tmp_path / "new").exists()


def test_overwrite_replaces_results_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("bench.json", "samples.jsonl", "notes.txt"):
        (out / name).write_text("old")
    bench([tiny], QUICK, output=out, overwrite=True)
    assert (out / "notes.txt").read_text() == "old"
    assert json.loads((out / "bench.json").read_text())["schema_version"] == 1
    assert samples(out)[0]["kind"] == "environment"


def test_worker_speaks_only_the_protocol(tiny: Path) -> None:
    with Child() as child:
        with pytest.raises(SatenError, match="no such folder"):
            child.ask("load", bundle="nowhere", threads=1, memory="fast")
        child.ask("load", bundle=str(tiny), threads=1, memory="fast")
        child.ask("prepare", size={"batch": 2, "tokens": 5}, vocabulary=64)
        answer = child.ask("run", warmup=0, iterations=7, min_ns=0)
        assert len(answer["samples_ns"]) == 7
        assert all(isinstance(sample, int) and sample > 0 for sample in answer["samples_ns"])
        long = child.ask("run", warmup=0, iterations=1, min_ns=20_000_000)
        assert sum(long["samples_ns"]) > 5_000_000
        assert child.ask("quit") == {}
        with pytest.raises(DeviceError, match=r"worker ended with exit code 0"):
            child.ask("memory")


def test_last_words_of_a_worker_are_kept() -> None:
    with Child() as child, pytest.raises(DeviceError, match=r"exit code 1: KeyError: 'fly'"):
        child.ask("fly")


def test_worker_imports_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('a stranger ran')")
    monkeypatch.chdir(tmp_path)
    with Child() as child:
        assert child.ask("memory")["rss_anon_bytes"] > 0


def test_table_is_aligned_and_escapes_names(make_bundle: Callable[..., Path], tiny: Path) -> None:
    hostile = make_bundle("hostile", manifest={"name": "\x1b[31mred\n"})
    text = table(bench([tiny, hostile], Plan(tokens=(8,), min_time_s=0, rounds=1, floor=False), baseline=tiny))
    assert "\x1b" not in text
    assert r"\x1b[31mred\n" in text
    header, first = text.splitlines()[:2]
    assert re.search(r"p50 ms +p90 ms", header)
    assert header.index("threads") == first.index("1", len("tiny"))
