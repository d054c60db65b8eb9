"""What the page is asked: everything it needs, nothing else of the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from saten_edge.phone import make_job
from saten_edge.phone.schema import MOST_OUTPUT_BYTES, MOST_SAMPLES
from saten_runtime.bench.plan import Plan, turns
from saten_runtime.errors import BundleError, DataError, UsageError

PLAN = Plan(tokens=(8,), rounds=2)


def test_the_order_of_turns_is_that_of_saten_runtime(job):
    rounds = job.to_json()["rounds"]
    assert rounds == [[int(index) for index in turns(["0", "1"], number)] for number in range(2)]
    assert rounds[0] != rounds[1]


def test_every_size_has_ids_that_all_bundles_know(job):
    for size in job.to_json()["sizes"]:
        ids = size["feeds"]["input_ids"]
        assert len(ids) == size["batch"] * size["tokens"]
        assert 0 <= min(ids) <= max(ids) < job.vocabulary


def test_a_post_of_the_whole_plan_fits_its_cap(job):
    given = job.to_json()
    cells = len(given["rounds"]) * len(given["bundles"]) * len(given["sizes"]) * len(given["threads"])
    assert given["iterations"] <= given["most_samples"]
    assert cells * given["most_samples"] <= MOST_SAMPLES


def test_what_is_stored_dense_is_served_as_dense(saten, lowered_dense):
    served = {bundle["name"]: bundle["dense"] for bundle in make_job([saten, lowered_dense], PLAN).to_json()["bundles"]}
    assert served == {"saten-int8": False, "lowered-dense": True}


def test_only_graphs_weights_and_questions_are_served(job):
    for sha256, found in job.files().items():
        content = found if isinstance(found, bytes) else found.read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
        assert isinstance(found, bytes) or found.name.startswith("model.onnx")
    assert len(job.files()) == 2 * 2 + 1  # both bundles are asked the same


def test_questions_are_the_cases_then_the_texts(job):
    for name, exam in job.exams.items():
        sheet = json.loads(job.sheets[name])
        assert len(sheet) == len(exam.questions) > len(exam.cases) == 4
        assert [question["pooling"] for question in sheet] == [*4 * ["none"], *(len(sheet) - 4) * ["mean"]]
        for question in sheet:
            rows, tokens = question["shape"]
            assert {len(values) for values in question["feeds"].values()} == {rows * tokens}
        assert sum(question["shape"][0] for question in sheet[4:]) == 2 * 12  # queries and answers


def test_the_number_of_examples_is_kept_to(dense, pairs):
    exam = make_job([dense], PLAN, data=pairs, examples=5).exams["dense-fp32"]
    assert exam.data.count == 5
    assert sum(len(question.feeds["input_ids"]) for question in exam.questions[4:]) == 10


def test_a_case_too_long_for_a_post_is_not_asked(dense, monkeypatch):
    monkeypatch.setattr("saten_edge.phone.questions.MOST_OUTPUT_BYTES", 4 * 64 * 8)
    asked = make_job([dense], PLAN).exams["dense-fp32"]
    assert 0 < len(asked.cases) < 4
    assert MOST_OUTPUT_BYTES > 4 * 64 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": Path("elsewhere")}, "--baseline elsewhere: is not among the bundles"),
        ({"reference": Path("elsewhere")}, "--reference elsewhere: is not among the bundles"),
        ({"plan": Plan(tokens=(97,))}, "takes at most 64 tokens, found 97"),
        ({"plan": Plan(threads=range(1, 51), tokens=(8,), rounds=1000)}, "one post holds"),
    ],
)
def test_what_does_not_fit_together(dense, options, message):
    plan = options.pop("plan", PLAN)
    with pytest.raises(UsageError, match=message):
        make_job([dense], plan, **options)


def test_a_reference_needs_data(dense):
    with pytest.raises(UsageError, match="needs --data"):
        make_job([dense], PLAN, reference=dense)


def test_data_of_another_task(dense, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "a", "label": 1}\n')
    with pytest.raises(DataError, match="holds texts data"):
        make_job([dense], PLAN, data=tmp_path / "data.jsonl")


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        make_job([tmp_path / "nowhere"], PLAN)
