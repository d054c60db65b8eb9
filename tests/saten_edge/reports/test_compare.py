"""Two runs side by side."""

import json

import pytest

from saten_edge.reports import compare_runs, comparison_table, read_run
from saten_runtime.errors import DataError


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "same"), (1.05, "slower"), (0.9, "faster")])
def test_a_difference_is_found_by_its_interval(write_run, factor, verdict):
    rows = compare_runs(read_run(write_run("a", 1.0)), read_run(write_run("b", factor)))
    assert len(rows) == 8
    assert {row.verdict for row in rows} == {verdict}
    for row in rows:
        assert row.ratio.low <= row.ratio.value <= row.ratio.high
        assert row.ratio.value == pytest.approx(factor, rel=0.005)
        json.dumps(row.to_json(), allow_nan=False)


def test_without_samples_there_is_no_interval(write_run):
    before, after = read_run(write_run("a", 1.0)), read_run(write_run("b", 2.0, samples=False) / "bench.json")
    rows = compare_runs(before, after)
    assert {row.verdict for row in rows} == {"?"}
    assert rows[0].ratio.value == pytest.approx(2)
    assert "2.000" in comparison_table(before, after, rows)


def test_what_differs_is_said(write_run, bench):
    bench["environment"]["governor"] = "powersave"
    before = read_run(write_run("a", 1.0))
    bench["environment"]["governor"] = "performance"
    bench["verdict"] = {"valid": False, "reasons": ["throttled"]}
    bench["cells"][0]["bundle"] = "another"
    after = read_run(write_run("b", 1.0))
    rows = compare_runs(before, after)
    text = comparison_table(before, after, rows)
    assert "governor: powersave → performance" in text
    assert "INVALID: throttled" in text
    assert [row.verdict for row in rows if row.verdict != "same"] == ["only in A", "only in B"]


def test_runs_without_a_common_cell_are_refused(write_run, bench, tmp_path):
    before = read_run(write_run("a", 1.0))
    for cell in bench["cells"]:
        cell["tokens"] += 1
    with pytest.raises(DataError, match="share no cell"):
        compare_runs(before, read_run(write_run("b", 1.0)))
    with pytest.raises(DataError):
        read_run(tmp_path)
