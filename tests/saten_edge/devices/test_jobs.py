"""A job from beginning to end on a stand-in board, and everything that may go wrong on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saten_edge.checkpoints.models import load_model
from saten_edge.devices import agent, jobs
from saten_edge.devices import printing as tables
from saten_edge.devices.board import Board
from saten_edge.devices.jobs import bench_job, eval_job, run_job, run_jobs
from saten_exporters import export
from saten_runtime.bench.measure import bench as measure
from saten_runtime.bench.plan import Plan
from saten_runtime.errors import BundleError, DataError, DeviceError, SatenError, UsageError

WAITING = "def at_step(step):\n    while step == 1 and not os.path.exists(GO): time.sleep(0.05)"


@pytest.fixture
def bench(bundle):
    return bench_job([bundle], Plan(tokens=(8,), rounds=1), None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "my data.jsonl"
    path.write_text('{"query": "a", "answer": "b"}\n')
    return path


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture
def on_heard(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """on_heard(steps, act, times=1): call `act` when that many steps have been heard."""

    def listen(steps: int, act: Callable[[], object], times: int = 1) -> None:
        add, left = jobs._Journal.add, list(range(times))

        def heard(journal: Any, piece: bytes) -> None:
            add(journal, piece)
            if journal.steps >= steps and left:
                left.pop()
                act()

        monkeypatch.setattr(jobs._Journal, "add", heard)

    return listen


class TestBench:
    def test_result_and_journal_come_home(self, stand, runtime, bench, talk, tmp_path):
        result = run_job(stand, bench, folder=tmp_path / "out", talk=talk)
        assert result["device"] == {"label": "stand", "url": "stand:stand"}
        assert result["cells"][0]["p50_ms"] == 2.5
        assert json.loads((tmp_path / "out/bench.json").read_text()) == result
        assert steps(tmp_path / "out") == [0, 1, 2]
        assert "stand: cpu: Cortex-A72; measure both" in talk.said

    def test_nothing_but_what_can_be_used_again_stays_on_the_board(self, stand, runtime, bench, talk):
        run_job(stand, bench, folder=None, talk=talk)
        left = {path.name for path in stand.root.iterdir()}
        assert left == {"lock", "tmp", "wheels", "envs", "bundles", "runs"}
        assert [list((stand.root / name).iterdir()) for name in ("runs", "tmp", "wheels")] == [[], [], []]
        assert not list(stand.root.rglob("*.partial"))

    def test_the_second_time_nothing_is_sent(self, stand, runtime, bench, talk, monkeypatch):
        run_job(stand, bench, folder=None, talk=talk)
        monkeypatch.setattr(Board, "put", lambda *_: pytest.fail("sent again"))
        assert run_job(stand, bench, folder=None, talk=talk)["schema_version"] == 1

    def test_a_changed_bundle_is_another(self, stand, runtime, bundle, bench, talk):
        run_job(stand, bench, folder=None, talk=talk)
        manifest = json.loads((bundle / "saten_edge.json").read_text())
        (bundle / "saten_edge.json").write_text(json.dumps({**manifest, "name": "other"}))
        run_job(stand, bench_job([bundle], Plan(tokens=(8,), rounds=1), None), folder=None, talk=talk)
        assert len(list((stand.root / "bundles").iterdir())) == 2

    def test_the_command_is_one_that_saten_run_takes(self, bundle, monkeypatch):
        from saten_runtime import cli
        from saten_runtime.arguments import make_parser
        from saten_runtime.options import values_of

        plan = Plan((1, 2), (3,), (8, 16), ("fast", "small"), 0.5, 3, (5,), (0, 7), timeout_s=7.0, floor=False)
        arguments = make_parser(cli._COMMANDS).parse_args(bench_job([bundle], plan, bundle).arguments)
        assert values_of(Plan, arguments) == plan
        assert arguments.baseline in arguments.bundles

    def test_its_steps_are_the_lines_of_the_journal(self, tiny_bert, tmp_path):
        bundle = export(load_model(tiny_bert), tmp_path / "dense").path
        for floor in (True, False):
            plan = Plan((1,), (1,), (4, 8), ("fast", "small"), min_time_s=0.0, rounds=2, floor=floor)
            measure([bundle], plan, output=tmp_path / f"out-{floor}")
            lines = (tmp_path / f"out-{floor}" / "samples.jsonl").read_text().splitlines()
            assert bench_job([bundle], plan, None).steps == len(lines)

    def test_progress_counts_lines_of_the_journal(self, stand, runtime, bench, talk, monkeypatch):
        seen: list[tuple[float, float]] = []
        listen = jobs._listen
        monkeypatch.setattr(
            jobs, "_listen", lambda *given: listen(*given[:-1], lambda done, total, what: seen.append((done, total)))
        )
        run_job(stand, bench, folder=None, talk=talk)
        assert seen[-1] == (3, bench.steps)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    def test_a_missing_bundle(self, tmp_path):
        with pytest.raises(BundleError, match="nowhere: no such folder"):
            bench_job([tmp_path / "nowhere"], Plan(), None)


def test_eval(stand, runtime, bundle, data, talk, tmp_path):
    result = run_job(stand, eval_job([bundle], data, reference=bundle, threads=2), folder=tmp_path / "out", talk=talk)
    assert result["rows"] == [{"bundle": "tiny", "metrics": {"recall_at_1": 0.5}, "seconds": 1.0}]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["eval.json"]
    assert [path.read_text() for path in (stand.root / "data").rglob("*.jsonl")] == [data.read_text()]


class TestLostConnections:
    def test_the_run_goes_on_and_is_found_again(self, stand, runtime, bench, talk, tmp_path, cut, on_heard):
        go = tmp_path / "go"
        runtime(WAITING.replace("GO", repr(str(go))))
        on_heard(2, lambda: (cut(), go.touch()))
        result = run_job(stand, bench, folder=tmp_path / "out", talk=talk)
        assert steps(tmp_path / "out") == [0, 1, 2]
        assert result["cells"][0]["count"] == 10
        lost = [line for line in talk.said if "connecting again" in line]
        assert lost == ["stand: the connection ended; connecting again"]
        assert len(stand.commands) == 2

    def test_a_second_loss_is_an_error_and_says_what_was_kept(
        self, stand, runtime, bench, talk, tmp_path, cut, on_heard
    ):
        runtime(WAITING.replace("GO", "'never'"))
        on_heard(2, cut, times=2)
        with pytest.raises(DeviceError, match=r"for the second time; what was measured so far is in .*samples\.jsonl$"):
            run_job(stand, bench, folder=tmp_path / "out", talk=talk)
        assert steps(tmp_path / "out") == [0, 1]

    def test_a_board_that_does_not_come_back(self, stand, runtime, bench, talk, tmp_path, cut, on_heard, monkeypatch):
        monkeypatch.setattr(jobs, "RECONNECT_S", 0.5)
        runtime(WAITING.replace("GO", "'never'"))
        on_heard(1, lambda: (cut(), setattr(stand, "command", lambda bootstrap: ["false"])))
        with pytest.raises(DeviceError, match=r"^stand: ended with 1: ; what was measured so far is in "):
            run_job(stand, bench, folder=tmp_path / "out", talk=talk)

    def test_a_restarted_board_without_resume(self, stand, runtime, bench, talk, tmp_path, on_heard, power_cut):
        runtime("def at_step(step): time.sleep(60 if step == 1 else 0)")
        on_heard(2, lambda: power_cut(stand))
        with pytest.raises(
            DeviceError, match=r"the board restarted\?; what was measured so far is in .*samples\.jsonl"
        ):
            run_job(stand, bench, folder=tmp_path / "out", talk=talk)
        assert steps(tmp_path / "out") == [0, 1]

    def test_a_restarted_board_with_resume(self, stand, runtime, bench, talk, tmp_path, on_heard, power_cut):
        pause = "def at_step(step): time.sleep(60 if step == 1 and '--resume' not in sys.argv else 0)"
        runtime(pause, usage="--resume")
        on_heard(2, lambda: power_cut(stand))
        run_job(stand, bench, folder=tmp_path / "out", talk=talk)
        assert steps(tmp_path / "out") == [0, 1, 2]

    def test_in_the_middle_of_an_upload(self, stand, runtime, bench, talk, cut, monkeypatch):
        send, sizes = Board._send, []

        def sending(board: Board, item: Any, offset: int, sent: Any) -> None:
            if item.path.endswith("model.onnx.data"):
                sizes.append(item.bytes - offset)
            send(board, item, offset, lambda size: (sent(size), cut() if len(sizes) == 1 else None))

        monkeypatch.setattr(Board, "_send", sending)
        assert run_job(stand, bench, folder=None, talk=talk)["schema_version"] == 1
        assert len(stand.commands) == 2
        assert sizes[1] == sizes[0] - agent.CHUNK_BYTES


class TestCtrlC:
    @pytest.mark.parametrize("heard", [0, 1])
    def test_the_board_is_told_and_what_it_has_is_kept(self, heard, stand, runtime, bench, talk, tmp_path, on_heard):
        def press() -> None:
            raise KeyboardInterrupt

        runtime("def at_step(step): time.sleep(30 if step == 1 else 0)")
        on_heard(heard + 1, press)
        with pytest.raises(KeyboardInterrupt):
            run_job(stand, bench, folder=tmp_path / "out", talk=talk)
        assert json.loads((tmp_path / "out/bench.json").read_text())["verdict"]["reasons"] == ["interrupted"]
        with Board(stand, "next"):  # or it would be busy
            pass


class TestWhatTheBoardSays:
    @pytest.mark.parametrize(
        ("values", "error", "words"),
        [
            ({"bench": {"schema_version": 9}}, DataError, "schema_version is 9"),
            ({"bench": {"schema_version": 1}}, DataError, "cells is missing"),
            ({"checks": [{"name": "disk"}]}, DeviceError, "saten-run doctor: no answer"),
            ({"checks": {"name": "disk"}}, DeviceError, "saten-run doctor: no answer"),
            (
                {
                    "checks": [
                        {"name": "onnxruntime", "status": "FAIL", "found": "killed by SIGILL", "advice": "try 1.20"}
                    ]
                },
                DeviceError,
                "^stand: onnxruntime: killed by SIGILL; try 1.20$",
            ),
        ],
        ids=["version", "fields", "check", "no list", "FAIL"],
    )
    def test_is_checked(self, values, error, words, stand, runtime, bench, talk, tmp_path):
        runtime(**values)
        with pytest.raises(error, match=words):
            run_job(stand, bench, folder=tmp_path / "out", talk=talk)
        assert not (tmp_path / "out/bench.json").exists()

    def test_an_error_of_saten_run_is_handed_on(self, stand, runtime, bench, talk):
        runtime(
            "def at_step(step): print('saten-run: error: tiny: no \\x1b[2J such thing', file=sys.stderr); sys.exit(3)"
        )
        with pytest.raises(SatenError, match=r"^stand: tiny: no \x1b\[2J such thing$") as caught:
            run_job(stand, bench, folder=None, talk=talk)
        assert caught.value.exit_code == 3

    def test_a_process_that_was_killed(self, stand, runtime, bench, talk):
        runtime("def at_step(step): os.kill(os.getpid(), 9)")
        with pytest.raises(SatenError, match=r"^stand: killed by signal 9 \(out of memory\?\)$"):
            run_job(stand, bench, folder=None, talk=talk)

    def test_a_result_that_is_no_json(self, stand, runtime, bench, talk):
        runtime("def at_step(step):\n    (out / 'bench.json').write_text('{\"a\": NaN}'); sys.exit(0)")
        with pytest.raises(DeviceError, match=r"bench\.json: not JSON \(NaN is not JSON\)"):
            run_job(stand, bench, folder=None, talk=talk)

    def test_nothing_steers_the_terminal(self, stand, runtime, bench, talk):
        runtime(checks=[{"name": "cpu", "status": "WARN", "found": "\x1b[2J", "advice": "\x1b]0;title\x07"}])
        run_job(stand, bench, folder=None, talk=talk)
        assert any("cpu" in line for line in talk.said)
        assert all(line.isprintable() for line in talk.said)


class TestRoom:
    def test_too_little_is_said_before_anything_is_sent(self, stand, runtime, bench, talk, monkeypatch):
        monkeypatch.setattr(Board, "free", lambda board, keep: None)
        monkeypatch.setattr(
            Board, "make_env", lambda board, name, wheels: setattr(board, "free_bytes", 20_000_000) or False
        )
        with pytest.raises(DeviceError, match=r"^stand: 20 MB free, \d+ MB needed; make room"):
            run_job(stand, bench, folder=None, talk=talk)
        assert not list((stand.root / "bundles").rglob("model.onnx"))


class TestSeveralDevices:
    def test_one_after_the_other(self, make_stand, runtime, bench, talk, tmp_path):
        devices = [make_stand("a"), make_stand("b")]
        results, failures = run_jobs(devices, bench, output=tmp_path / "out", overwrite=False, talk=talk)
        assert (list(results), failures) == (["a", "b"], [])
        assert (tmp_path / "out/b/bench.json").is_file()

    def test_one_that_fails_does_not_keep_the_other_from_its_turn(self, make_stand, runtime, bench, talk, tmp_path):
        broken = make_stand("broken")
        broken.command = lambda bootstrap: ["false"]
        devices = [broken, make_stand("b")]
        results, (failure,) = run_jobs(devices, bench, output=tmp_path / "out", overwrite=False, talk=talk)
        assert list(results) == ["b"]
        assert str(failure).startswith("broken: ended with 1")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]  # nothing in the way of trying again

    def test_an_output_that_exists_is_refused_first(self, make_stand, runtime, bench, talk, tmp_path):
        (tmp_path / "out/b").mkdir(parents=True)
        devices = [make_stand("a"), make_stand("b")]
        with pytest.raises(UsageError, match="out/b: already exists"):
            run_jobs(devices, bench, output=tmp_path / "out", overwrite=False, talk=talk)
        assert devices[0].commands == []
        run_jobs(devices, bench, output=tmp_path / "out", overwrite=True, talk=talk)

    def test_two_jobs_at_once_on_one_board(self, stand, runtime, bench, talk, tmp_path):
        go = tmp_path / "go"
        runtime(WAITING.replace("GO", repr(str(go))))
        thread = threading.Thread(
            target=run_job, args=[stand, bench], kwargs={"folder": tmp_path / "one", "talk": talk}
        )
        thread.start()
        while not (tmp_path / "one/samples.jsonl").is_file():
            thread.join(0.05)
        with pytest.raises(DeviceError, match=r"^stand: busy: "):
            run_job(stand, bench, folder=None, talk=talk)
        go.touch()
        thread.join()
        assert (tmp_path / "one/bench.json").is_file()


class TestTables:
    def test_devices_side_by_side(self, make_stand, runtime, bench, talk):
        devices = [make_stand("a"), make_stand("b")]
        results, _ = run_jobs(devices, bench, output=None, overwrite=False, talk=talk)
        lines = tables.bench_table(results).splitlines()
        assert [line.split()[:2] for line in lines[1:3]] == [["a", "tiny"], ["b", "tiny"]]
        assert lines[-2:] == ["a: VALID", "b: VALID"]
        assert tables.invalid_reasons(results) == []

    def test_what_must_not_be_believed(self, stand, runtime, bench, talk):
        runtime(bench={**_bench(), "verdict": {"valid": False, "reasons": ["emulated: by qemu"]}})
        results = {"stand": run_job(stand, bench, folder=None, talk=talk)}
        assert tables.bench_table(results).endswith("stand: INVALID: emulated: by qemu")
        assert tables.invalid_reasons(results) == ["stand: emulated: by qemu"]

    @given(st.text(max_size=30))
    def test_nothing_a_board_says_steers_the_terminal(self, name: str):
        value = _bench()
        value["cells"] = [{**value["cells"][0], "bundle": name, "failed": name}]
        value["verdict"] = {"valid": False, "reasons": [name]}
        assert all(line.isprintable() for line in tables.bench_table({"a": value}).split("\n"))

    def test_accuracy(self):
        value = {"schema_version": 1, "task": "search", "data": {"file": "x", "sha256": "0", "count": 4}}
        rows = [{"bundle": "tiny", "metrics": {"recall_at_1": 0.5, "cosine": None}, "seconds": 1.0}]
        lines = tables.eval_table({"a": {**value, "rows": rows}}).splitlines()
        assert [line.split() for line in lines] == [
            ["device", "bundle", "recall_at_1", "cosine"],
            ["a", "tiny", "0.5000", "-"],
        ]


def _bench() -> dict[str, Any]:
    cell = {"bundle": "tiny", "threads": 1, "batch": 1, "tokens": 8, "memory_mode": "fast", "count": 10}
    return {
        "schema_version": 1,
        "environment": {},
        "verdict": {"valid": True, "reasons": []},
        "cells": [{**cell, "p50_ms": 2.5, "p90_ms": 2.6, "p99_ms": 2.7, "mean_ms": 2.5}],
        "loads": [],
    }
