"""`saten-edge report` and `saten-edge compare`: their forms on stdout, their files, and what they refuse."""

import csv
import io
import json

import pytest

from saten_exporters.forms import DENSE_FORMS
from saten_runtime.bundle.folder import Bundle

PROFILED = "encoder.layer.0.output.dense"
DENSE = DENSE_FORMS["linear", "int8"].op_type


@pytest.fixture
def work(tmp_path, monkeypatch, bundles, evaluation, write_run):
    """A folder with two runs, an evaluation and a profile; bundles are those of conftest.py, whatever the path."""
    made = {bundle.name: bundle for bundle in bundles}
    monkeypatch.setattr(Bundle, "open", lambda path: made[path.name])
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    row = {"name": PROFILED, "form": DENSE, "ms": 1.5, "time_share": 1.0, "bytes_share": 1.0, "macs_share": 1.0}
    profile = {
        "schema_version": 1,
        "bundle": "saten-int8",
        "setup": {"threads": 1, "memory_mode": "fast"},
        "size": {"batch": 1, "tokens": 128, "phase": "run", "depth": 0},
        "runs": 3,
        "ms": 1.5,
        "rows": [row],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    write_run("run", 1.0)
    write_run("later", 1.2)
    return tmp_path


@pytest.fixture
def report_of(run, work, bundles):
    """report_of(*options) -> exit code, stdout, stderr of a report of the run in `work`."""
    names = [bundle.name for bundle in bundles]
    return lambda *options: run("report", *names, work / "run", "--eval", work / "eval.json", *options)


def csv_rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def markdown_rows(text):
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(map(str.strip, lines[0]), map(str.strip, line), strict=True)) for line in lines[2:]]


@pytest.mark.parametrize(("form", "rows"), [("csv", csv_rows), ("markdown", markdown_rows), ("json", json.loads)])
def test_every_form_has_a_row_per_bundle_and_nothing_else(report_of, bundles, form, rows):
    code, out, shown = report_of("--format", form)
    assert (code, shown) == (0, "")
    found = rows(out)
    assert len(found) == len(bundles)
    for row, bundle in zip(found, bundles, strict=True):
        assert bundle.name in str(next(iter(row.values())))


def test_the_forms_say_the_same(report_of, bench):
    stored = json.loads(report_of("--format", "json")[1])
    times = {cell["bundle"]: cell["p50_ms"] for cell in bench["cells"] if cell["tokens"] == 32}
    assert {row["name"]: row["p50_ms"]["32"] for row in stored} == pytest.approx(times)
    table, listed = report_of("--format", "table")[1], csv_rows(report_of("--format", "csv")[1])
    for row, line in zip(stored, listed, strict=True):
        assert row["name"] in table
        assert str(row["bytes"]) in line.values()


def test_the_page_shows_the_profile_it_is_given(report_of, work):
    page = work / "page.html"
    assert report_of("-o", page)[0] == 0
    assert "Time per layer" not in page.read_text()
    assert report_of("-o", page, "--overwrite", "--profile", work / "profile.json")[0] == 0
    assert "Time per layer" in page.read_text()


def test_folders_stand_for_the_results_in_them(run, work, bundles):
    names = [bundle.name for bundle in bundles]
    files = ("--bench", work / "run" / "bench.json", "--eval", work / "eval.json")
    folders = ("--bench", work / "run", "--eval", work)
    assert run("report", *names, *folders, "--json") == run("report", *names, *files, "--json")


def test_two_runs_stand_side_by_side(run, work, bundles):
    names = [bundle.name for bundle in bundles]
    code, out, _ = run("report", *names, work / "run", work / "later", "--format", "json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert list(rows) == [f"{name} @ {device}" for device in ("this machine", "this machine#2") for name in names]
    first, second = (rows[f"saten-int8 @ {device}"]["p50_ms"] for device in ("this machine", "this machine#2"))
    assert second["32"] == pytest.approx(1.2 * first["32"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "pdf"], "there are table, markdown, csv, json"),
        (["--profile", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--profile", "eval.json"], "profile"),
        (["-o", "eval.json"], "eval.json: already exists"),
        (["-o", "eval.json", "--overwrite"], "eval.json: the report is an HTML page; choose a name that ends in .html"),
        (["-o", "run.html", "--overwrite"], "run.html: Is a directory"),
        (["--bench", "eval.json"], " eval.json: cells is missing"),
        (["--eval", "run/bench.json"], " run/bench.json: data is missing"),
        (["--bench", "empty"], "empty/bench.json: cannot be read (No such file or directory)"),
    ],
    ids=[
        "form",
        "no profile",
        "no profile's content",
        "output exists",
        "output of another kind",
        "output is a folder",
        "no bench's content",
        "no evaluation's content",
        "no run",
    ],
)
def test_what_cannot_be_used_is_refused(report_of, work, monkeypatch, options, message):
    monkeypatch.chdir(work)
    for folder in ("run.html", "empty"):
        (work / folder).mkdir()
    before = (work / "eval.json").read_bytes()
    code, out, shown = report_of(*options)
    assert (code, out) == (2, "")
    assert message in shown
    assert "Traceback" not in shown
    assert (work / "eval.json").read_bytes() == before


def test_compare_prints_a_line_per_cell(run, work, bench):
    code, out, shown = run("compare", work / "run", work / "later")
    assert (code, shown) == (0, "")
    lines = out.split("\n\n")[0].splitlines()
    assert len(lines) == 1 + len(bench["cells"])
    assert all(line.endswith("slower") for line in lines[1:])
    code, out, _ = run("compare", work / "run", work / "run" / "bench.json", "--json")
    assert code == 0
    assert {row["verdict"] for row in json.loads(out)} == {"same"}


def test_compare_says_what_it_dropped_and_refuses_what_is_no_run(run, work):
    with (work / "later" / "samples.jsonl").open("a") as file:
        file.write('{"kind": "sam')
    code, out, shown = run("compare", work / "run", work / "later")
    assert code == 0
    assert "slower" in out
    assert shown.startswith("saten-edge: ")
    assert "the last line is broken and was dropped" in shown
    code, out, shown = run("compare", work / "run", work / "nowhere")
    assert (code, out) == (2, "")
    assert shown.count("\n") == 1
    assert "nowhere" in shown
