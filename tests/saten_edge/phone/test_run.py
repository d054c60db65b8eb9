"""What the posts of a page become: the same numbers as `saten_runtime` measures itself."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from saten_edge.phone import Run, make_job
from saten_edge.phone.run import AGREEMENT, Mismatch
from saten_edge.phone.schema import Answer, Bench, End, parse_post
from saten_edge.reports import build_report
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.parity import compare

AGENT = "Mozilla/5.0 (Linux; Android 14)"


def send(run: Run, kind: type, post: dict) -> dict:
    body = json.dumps(post).encode()
    return run.receive(parse_post(kind, body), body, AGENT)


@pytest.fixture
def run(job, tmp_path) -> Run:
    return Run(job, tmp_path / "run")


class TestBench:
    def test_the_samples_become_percentiles_and_a_paired_ratio(self, run, bench_of):
        answer = send(run, Bench, bench_of(run.id))
        cells = {(cell["bundle"], cell["tokens"]): cell for cell in answer["cells"]}
        assert set(cells) == {(name, tokens) for name in ("dense-fp32", "saten-int8") for tokens in (8, 16)}
        assert cells["dense-fp32", 8]["count"] == 10
        # 2 ms + 0…4 ns, twice: the median is the value in the middle.
        assert cells["dense-fp32", 8]["p50_ms"] == pytest.approx(2.000002, rel=1e-12)
        assert cells["dense-fp32", 8]["p50_ms"] != pytest.approx(2.0, rel=1e-7)
        assert cells["saten-int8", 16]["ratio"]["to"] == "dense-fp32"
        assert cells["saten-int8", 16]["ratio"]["value"] == pytest.approx(2.000002 / 4.000002, rel=1e-12)

    def test_what_is_stored_is_what_the_report_reads(self, run, bench_of, answers_of, dense, saten):
        for post in answers_of(run.id):
            send(run, Answer, post)
        send(run, Bench, bench_of(run.id))
        send(run, End, {"run": run.id})
        bench = json.loads((run.folder / "bench.json").read_text())
        evaluation = json.loads((run.folder / "eval.json").read_text())
        assert bench["verdict"] == {"valid": True, "reasons": []}
        assert bench["environment"]["user_agent"] == AGENT
        report = build_report([Bundle.open(dense), Bundle.open(saten)], bench, evaluation)
        assert [row.p50_ms(8) for row in report.rows] == pytest.approx([2.000002, 1.000002], rel=1e-12)
        assert dict(report.environment)["user_agent"] == AGENT
        assert report.metrics == ("recall_at_1", "recall_at_10", "mrr_at_10", "cosine")

    def test_samples_and_posts_are_kept_raw(self, run, bench_of):
        post = bench_of(run.id)
        send(run, Bench, post)
        lines = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
        assert [line["kind"] for line in lines] == ["environment", *4 * ["start"], *8 * ["samples"]]
        assert lines[-1]["samples_ns"] == post["turns"][-1]["samples_ns"]
        (kept,) = map(json.loads, (run.folder / "received.jsonl").read_text().splitlines())
        assert (kept["kind"], kept["user_agent"]) == ("bench", AGENT)
        assert json.loads(kept["body"]) == post

    def test_a_page_in_the_background_is_not_believed(self, run, bench_of, answers_of):
        for post in answers_of(run.id):
            send(run, Answer, post)
        verdict = send(run, Bench, bench_of(run.id, hidden=True))["verdict"]
        assert verdict["valid"] is False
        assert verdict["reasons"] == ["the page was in the background during the run; keep it open and the screen on"]

    def test_a_bundle_that_failed_has_the_reason_in_its_cells(self, run, bench_of):
        post = bench_of(run.id, failures=[{"bundle": 1, "threads": 1, "reason": "no such operator"}])
        post["turns"] = [turn for turn in post["turns"] if turn["bundle"] == 0]
        cells = send(run, Bench, post)["cells"]
        assert {cell["failed"] for cell in cells if cell["bundle"] == "saten-int8"} == {"on the page: no such operator"}
        assert all(cell["failed"] is None for cell in cells if cell["bundle"] == "dense-fp32")

    def test_a_second_post_replaces_the_first(self, run, bench_of):
        send(run, Bench, bench_of(run.id, hidden=True))
        answer = send(run, Bench, bench_of(run.id))
        stored = json.loads((run.folder / "bench.json").read_text())
        assert stored["verdict"] == answer["verdict"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda post: post["turns"].append(post["turns"][0]),
            lambda post: post["turns"].pop(0),
            lambda post: post["turns"][0].update(tokens=9),
            lambda post: post["turns"][0].update(threads=2),
            lambda post: post["turns"][0].update(bundle=2),
            lambda post: post["turns"][0].update(round=2),
            lambda post: post["starts"].append(post["starts"][0]),
            lambda post: post["starts"][0].update(threads=2),
            lambda post: post["failures"].append({"bundle": 0, "threads": 2, "reason": ""}),
            lambda post: post["loaded"].update({"7": {}}),
        ],
    )
    def test_what_was_not_asked_for_is_refused(self, run, bench_of, change):
        post = bench_of(run.id)
        change(post)
        with pytest.raises(Mismatch):
            send(run, Bench, post)
        assert run.bench is None


class TestEvaluation:
    def test_the_scores_are_those_of_saten_runtime(self, run, job, answers_of, dense, saten, pairs):
        for post in answers_of(run.id):
            send(run, Answer, post)
        rows = send(run, End, {"run": run.id})["rows"]
        wanted = evaluate([dense, saten], pairs, reference=dense)
        assert run.evaluation.task == wanted.task == "search"
        assert run.evaluation.data == wanted.data
        for row, reference in zip(rows, wanted.rows, strict=True):
            assert row["bundle"] == reference.bundle
            # The same float32 operations in the same order, but for the pooling's sum.
            assert row["metrics"] == pytest.approx(reference.metrics, abs=1e-5)
        assert rows[1]["metrics"]["cosine"] != pytest.approx(1, abs=1e-3)
        assert rows[0]["seconds"] == pytest.approx(1e-6 * len(job.exams["dense-fp32"].questions))

    def test_an_answer_in_the_wrong_place_changes_the_scores(self, run, job, answers_of, dense, pairs):
        posts = list(answers_of(run.id, ["dense-fp32"]))
        cases = len(job.exams["dense-fp32"].cases)
        *_, last = posts
        output = last["outputs"]["last_hidden_state"]
        vectors = np.frombuffer(base64.b64decode(output["float32"]), "<f4").reshape(output["shape"])
        output["float32"] = base64.b64encode(np.roll(vectors, 1, axis=0).tobytes()).decode()
        assert len(posts) > cases
        for post in posts:
            send(run, Answer, post)
        (got,) = send(run, End, {"run": run.id})["rows"]
        (wanted,) = evaluate([dense], pairs).rows
        assert got["metrics"]["recall_at_1"] != pytest.approx(wanted.metrics["recall_at_1"], abs=1e-3)

    def test_without_data_the_validation_cases_are_the_evaluation(self, dense, saten, job, tmp_path, answers_of):
        alone = make_job([dense, saten], job.plan)
        run = Run(alone, tmp_path / "run")
        for post in answers_of(run.id, job=alone):
            send(run, Answer, post)
        rows = send(run, End, {"run": run.id})["rows"]
        assert (run.evaluation.task, run.evaluation.data.count) == (AGREEMENT, 8)
        for row, folder in zip(rows, (dense, saten), strict=True):
            here = [comparison for comparison in compare(Bundle.open(folder)) if comparison.optimized]
            worst = max(comparison.relative_error for comparison in here)
            assert row["metrics"]["relative_error"] == pytest.approx(worst, rel=1e-5, abs=1e-7)
        assert rows[0]["metrics"]["relative_error"] < 1e-4 < rows[1]["metrics"]["relative_error"]

    def test_a_bundle_with_answers_missing_has_no_row(self, run, answers_of):
        *posts, _ = answers_of(run.id)
        for post in posts:
            send(run, Answer, post)
        assert [row["bundle"] for row in send(run, End, {"run": run.id})["rows"]] == ["dense-fp32"]

    def test_wrong_outputs_make_the_benchmark_unbelievable(self, run, answers_of, bench_of):
        for post in answers_of(run.id):
            if post["bundle"] == 0 and post["question"] == 0:
                output = post["outputs"]["last_hidden_state"]
                size = 4 * int(np.prod(output["shape"]))
                output["float32"] = base64.b64encode(bytes(size)).decode()
            send(run, Answer, post)
        verdict = send(run, Bench, bench_of(run.id))["verdict"]
        assert verdict["reasons"] == ["dense-fp32: 1 of 4 outputs differ from torch's beyond their bound"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda post: post.update(question=1000),
            lambda post: post.update(bundle=2),
            lambda post: post["outputs"].update(more={"shape": [1], "float32": "AAAAAA=="}),
            lambda post: post["outputs"].clear(),
            lambda post: post["outputs"]["last_hidden_state"]["shape"].reverse(),
        ],
    )
    def test_an_answer_to_another_question_is_refused(self, run, answers_of, change):
        post = next(iter(answers_of(run.id)))
        change(post)
        with pytest.raises(Mismatch):
            send(run, Answer, post)


class TestLife:
    def test_closing_keeps_what_was_received(self, run, answers_of, bench_of):
        for post in answers_of(run.id, ["dense-fp32"]):
            send(run, Answer, post)
        run.close()
        assert [row.bundle for row in run.evaluation.rows] == ["dense-fp32"]
        assert (run.folder / "eval.json").is_file()
        assert not run.admits(run.token)

    def test_closing_an_unused_run_leaves_nothing(self, run):
        run.close()
        run.close()
        assert (run.evaluation, run.folder.exists()) == (None, False)

    def test_the_log_of_refusals_is_bounded(self, run):
        for _ in range(150):
            run.refuse("too long", 10_000 * b"x", AGENT)
        assert (run.folder / "received.jsonl").stat().st_size < 400_000

    def test_what_one_run_takes_is_bounded(self, run, bench_of, monkeypatch):
        monkeypatch.setattr("saten_edge.phone.received._MOST_RECEIVED_BYTES", 5000)
        send(run, Bench, bench_of(run.id))
        send(run, Bench, bench_of(run.id))
        with pytest.raises(Mismatch, match="the most it keeps"):
            send(run, Bench, bench_of(run.id))

    def test_another_token_or_none_is_not_admitted(self, run):
        assert run.admits(run.token)
        for token in ("", run.token[:-1], run.token + "x", run.token.swapcase(), "é"):
            assert not run.admits(token)


def test_the_state_that_browsers_do_not_tell_is_left_out(run, bench_of):
    send(run, Bench, bench_of(run.id))
    assert not {"before", "after"} & set(run.bench.environment)
    assert run.bench.loads[0].memory.peak_anon_bytes is None
