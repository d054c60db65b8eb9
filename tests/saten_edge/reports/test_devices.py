"""Several devices in one report: every bundle once per device, nothing mixed up."""

import copy

import pytest

from saten_edge.reports import (
    beside,
    build_report,
    csv_table,
    html_page,
    join_benches,
    join_evaluations,
    markdown_table,
)
from saten_runtime.errors import DataError


def on(value, label, factor=1.0):
    """The measurement as another device made it: `factor` times as slow."""
    value = copy.deepcopy(value)
    for cell in value.get("cells", ()):
        for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms"):
            cell[name] *= factor
    return {**value, "device": {"label": label, "url": f"ssh://{label}"}}


@pytest.fixture
def two(bench):
    return [on(bench, "pi4", 4.0), on(bench, "pi5", 2.0)]


def test_every_bundle_stands_once_per_device(bundles, two, evaluation):
    evaluations = [on(evaluation, "pi4"), on(evaluation, "pi5")]
    report = build_report(bundles, join_benches(two), join_evaluations(evaluations))
    names = [bundle.name for bundle in bundles]
    assert [row.name for row in report.rows] == [f"{name} @ {label}" for label in ("pi4", "pi5") for name in names]
    for row in report.rows:
        factor = 4.0 if row.name.endswith("pi4") else 2.0
        plain = next(cell for cell in two[0]["cells"] if cell["bundle"] == row.name.split(" @ ")[0])
        assert row.p50_ms(32) == pytest.approx(plain["p50_ms"] / 4.0 * factor)
        assert row.metrics
        assert row.bytes == bundles[names.index(row.name.split(" @ ")[0])].size_bytes


def test_a_ratio_stays_on_its_device(bundles, two):
    report = build_report(bundles, join_benches(two))
    for row in report.rows:
        for cell in row.cells.values():
            assert cell.ratio is None or cell.ratio.to == f"dense-fp32 @ {row.name.split(' @ ')[1]}"


def test_one_invalid_run_is_said_with_its_device(bundles, two):
    two[1]["verdict"] = {"valid": False, "reasons": ["emulated: by qemu"]}
    report = build_report(bundles, join_benches(two))
    assert report.verdict.valid is False
    assert report.verdict.reasons == ["pi5: emulated: by qemu"]


def test_what_was_measured_twice_on_a_machine_stands_beside_the_first(bundles, bench, evaluation):
    again = on(bench, "here", 3.0)
    again["cells"] = [cell for cell in again["cells"] if cell["bundle"] in ("dense-fp32", "saten-int8")]
    again["verdict"] = {"valid": False, "reasons": ["busy"]}
    report = build_report(bundles, beside(bench, again, "standard operators"), evaluation)
    rows = {row.name: row for row in report.rows}
    assert list(rows) == [*(bundle.name for bundle in bundles), "saten-int8 @ standard operators"]
    first, second = rows["saten-int8"], rows["saten-int8 @ standard operators"]
    assert second.p50_ms(32) == pytest.approx(3 * first.p50_ms(32))
    assert second.bytes == first.bytes
    assert second.ratio(32, report.baseline.name) is not None
    assert report.baseline.name == "dense-fp32"
    assert report.verdict.reasons == ["standard operators: busy"]
    assert beside(bench, bench, "again")["verdict"]["valid"] is True


def test_outputs_take_it(bundles, two):
    report = build_report(bundles, join_benches(two))
    for text in (markdown_table(report), csv_table(report), html_page(report)):
        assert "saten-int8 @ pi4" in text
        assert "saten-int8 @ pi5" in text


def test_a_single_one_is_left_as_it_is(bench, evaluation):
    assert join_benches([bench]) is bench
    assert join_evaluations([evaluation]) is evaluation
    assert join_benches([]) is join_evaluations([]) is None


def test_one_without_a_device_is_this_machines(bundles, bench):
    report = build_report(bundles, join_benches([bench, on(bench, "pi5")]))
    assert {row.name.split(" @ ")[1] for row in report.rows} == {"this machine", "pi5"}


def test_two_runs_of_one_device_stand_side_by_side(bundles, bench, evaluation):
    runs = [on(bench, "pi4", 4.0), on(bench, "pi5", 2.0), on(bench, "pi4", 3.0)]
    report = build_report(bundles, join_benches(runs), join_evaluations([on(evaluation, "pi4")] * 2))
    names = [bundle.name for bundle in bundles]
    assert [row.name for row in report.rows] == [f"{n} @ {label}" for label in ("pi4", "pi5", "pi4#2") for n in names]
    first, again = (next(row for row in report.rows if row.name == f"saten-int8 @ {one}") for one in ("pi4", "pi4#2"))
    assert again.p50_ms(32) == pytest.approx(first.p50_ms(32) * 3 / 4)
    assert {cell.ratio.to for cell in again.cells.values()} == {"dense-fp32 @ pi4#2"}
    assert again.metrics == first.metrics


def test_different_data_do_not_stand_side_by_side(evaluation):
    other = on(evaluation, "pi5")
    other["data"] = {**other["data"], "sha256": "34" * 32}
    with pytest.raises(DataError, match="were given different data"):
        join_evaluations([on(evaluation, "pi4"), other])


def test_what_is_no_measurement_is_refused(bench, evaluation):
    with pytest.raises(DataError):
        join_benches([bench, {"schema_version": 1}])
    with pytest.raises(DataError):
        join_evaluations([evaluation, {"schema_version": 2}])
