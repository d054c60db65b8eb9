"""The door: what is joined, what is refused, and the exact summary."""

import copy
import dataclasses

import pytest

from saten_edge.reports import build_report, summary_json
from saten_edge.reports.colors import series
from saten_exporters.forms import DENSE_FORMS, TRAIN_FORMS
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import DataError

SUMMARY_KEYS = ["name", "bytes", "p50_ms", "peak_anon_mib", "recall_at_1", "recall_at_10", "cosine"]


def test_summary_has_exactly_the_agreed_keys_and_the_measured_numbers(report, bundles, bench, evaluation):
    summary = summary_json(report)
    assert [list(one) for one in summary] == [SUMMARY_KEYS] * 4
    assert [one["name"] for one in summary] == [bundle.name for bundle in bundles]
    for one, bundle, load, scored in zip(summary, bundles, bench["loads"], evaluation["rows"], strict=True):
        measured = {str(c["tokens"]): c["p50_ms"] for c in bench["cells"] if c["bundle"] == one["name"]}
        assert one["bytes"] == bundle.size_bytes
        assert one["p50_ms"] == measured
        assert one["peak_anon_mib"] == load["memory"]["peak_anon_bytes"] / 2**20
        assert {key: one[key] for key in SUMMARY_KEYS[4:]} == {key: scored["metrics"][key] for key in SUMMARY_KEYS[4:]}


def test_summary_follows_a_changed_measurement(report, bundles, bench, evaluation):
    bench["cells"][0]["p50_ms"] += 1
    assert summary_json(build_report(bundles, bench, evaluation)) != summary_json(report)


def test_parts_may_be_missing(bundles, bench, evaluation):
    sizes = summary_json(build_report(bundles))
    assert sizes[0] == {
        "name": "dense-fp32",
        "bytes": bundles[0].size_bytes,
        "p50_ms": {},
        "peak_anon_mib": None,
        "recall_at_1": None,
        "recall_at_10": None,
        "cosine": None,
    }
    measured = summary_json(build_report([], bench))
    assert measured[0]["bytes"] == sum(bench["loads"][0]["disk_bytes"].values())
    assert measured[0]["recall_at_1"] is None
    scored = summary_json(build_report([], None, evaluation))
    assert scored[3]["recall_at_1"] == evaluation["rows"][3]["metrics"]["recall_at_1"]
    with pytest.raises(DataError, match="found no bundle"):
        build_report([])


def test_baseline_is_what_the_ratios_refer_to(bundles, bench):
    assert build_report(bundles, bench).baseline.name == "dense-fp32"
    for cell in bench["cells"]:
        cell["ratio"] = cell["ratio"] and cell["ratio"] | {"to": "dense-int8"}
    assert build_report(bundles, bench).baseline.name == "dense-int8"
    assert build_report(bundles[2:]).baseline.name == "saten-fp32"


def test_a_bundle_whose_layers_are_all_lowered_dense_counts_as_dense(lowered_dense, bundle):
    real = Bundle.open(lowered_dense)
    assert len(real.manifest.layers) == 14
    report = build_report([real, bundle("saten", linear=0.26, embedding=0.24)])
    assert [row.dense for row in report.rows] == [True, False]
    assert series(report.rows) == {"lowered-dense": "dense-0", "saten": "saten-0"}


@pytest.mark.parametrize("form", DENSE_FORMS.values(), ids=lambda form: form.op_type)
def test_one_layer_that_is_not_dense_makes_a_compressed_bundle(bundle, form):
    made = bundle("made")
    layers = [dataclasses.replace(layer, form=form.op_type) for layer in made.manifest.layers]
    assert dataclasses.replace(made.manifest, layers=layers).is_dense
    layers[3] = dataclasses.replace(layers[3], form=TRAIN_FORMS["linear", "fp32"].op_type)
    assert not dataclasses.replace(made.manifest, layers=layers).is_dense


def test_the_table_keeps_to_one_setting(bundles, bench):
    others = [cell | {"threads": 2, "p50_ms": 1.0} for cell in bench["cells"]]
    bench["loads"] += [load | {"threads": 2, "cold_load_ms": 1.0} for load in bench["loads"]]
    bench["cells"] += others
    report = build_report(bundles, bench)
    assert str(report.setting) == "1 thread, batch 1, memory mode fast"
    assert report.rows[0].p50_ms(128) == 21.31
    assert report.rows[0].cold_load_ms == 312.4
    assert len(report.cells) == 16


def test_a_failed_cell_has_no_time(bundles, bench):
    fail(bench["cells"][6])
    report = build_report(bundles, bench)
    assert summary_json(report)[2]["p50_ms"] == {"32": 2.906, "128": None}
    assert [cell.failed for cell in report.failures] == ["killed"]


def test_fields_of_a_newer_runtime_are_left_alone(bundles, bench):
    bench["cells"][0]["trimmed_mean_ms"] = 5.2
    bench["power"] = {"joule": 3}
    assert len(build_report(bundles, bench).rows) == 4


def fail(cell):
    cell.update(failed="killed", p50_ms=None, p90_ms=None, p99_ms=None, mean_ms=None, ratio=None, count=0)


def change(*path, to):
    def apply(value):
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return apply


def drop(*path):
    def apply(value):
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return apply


BAD_BENCH = {
    r"bench\.json: schema_version is 2, expected 1": change("schema_version", to=2),
    r"bench\.json: schema_version is True": change("schema_version", to=True),
    r"bench\.json: loads is missing": drop("loads"),
    r"bench\.json\.verdict: valid is missing": drop("verdict", "valid"),
    r"bench\.json\.verdict\.valid: found 1, expected true or false": change("verdict", "valid", to=1),
    r"bench\.json\.cells: found \{\}, expected a list": change("cells", to={}),
    r"bench\.json\.cells\[0\]\.p50_ms: found '5', expected a finite number": change("cells", 0, "p50_ms", to="5"),
    r"bench\.json\.cells\[0\]\.p50_ms: found nan": change("cells", 0, "p50_ms", to=float("nan")),
    r"bench\.json\.cells\[0\]\.p50_ms: found 0, expected a number above 0": change("cells", 0, "p50_ms", to=0),
    r"bench\.json\.cells\[0\]: found neither p50_ms nor failed": change("cells", 0, "p50_ms", to=None),
    r"bench\.json\.cells\[0\]\.tokens: found 1\.5, expected a whole": change("cells", 0, "tokens", to=1.5),
    r"bench\.json\.cells\[1\]\.ratio: to is missing": drop("cells", 1, "ratio", "to"),
    r"bench\.json\.cells\[0\]\.bundle: found '?None'?, expected a string": change("cells", 0, "bundle", to=None),
    r"bench\.json\.loads\[0\]\.memory\.base: found \[\], expected an obj": change("loads", 0, "memory", "base", to=[]),
    r"peak_anon_bytes: found -1, expected a number 0 or more": change("loads", 0, "memory", "peak_anon_bytes", to=-1),
    r"bench\.json\.cells: found .* twice": change("cells", 1, "bundle", to="dense-fp32"),
}


@pytest.mark.parametrize("message", BAD_BENCH)
def test_bad_bench_is_refused_by_its_path(bundles, bench, message):
    build_report(bundles, copy.deepcopy(bench))
    BAD_BENCH[message](bench)
    with pytest.raises(DataError, match=message):
        build_report(bundles, bench)


BAD_EVALUATION = {
    r"eval\.json: schema_version is None": drop("schema_version"),
    r"eval\.json\.data\.count: found '9', expected a whole number": change("data", "count", to="9"),
    r"eval\.json\.rows\[0\]\.metrics: found None, expected a list or an object": change("rows", 0, "metrics", to=None),
    r"eval\.json\.rows\[0\]\.metrics\.cosine: found inf": change("rows", 0, "metrics", "cosine", to=float("inf")),
    r"eval\.json\.rows: found 'dense-fp32' twice": change("rows", 1, "bundle", to="dense-fp32"),
}


@pytest.mark.parametrize("message", BAD_EVALUATION)
def test_bad_evaluation_is_refused_by_its_path(bundles, evaluation, message):
    build_report(bundles, None, copy.deepcopy(evaluation))
    BAD_EVALUATION[message](evaluation)
    with pytest.raises(DataError, match=message):
        build_report(bundles, None, evaluation)


def test_other_bad_input(bundles):
    with pytest.raises(DataError, match=r"bench\.json: found \[\], expected an object"):
        build_report(bundles, [])
    with pytest.raises(DataError, match=r"history\[1\]\.loss: found None"):
        build_report(bundles, history=[{"step": 0, "loss": 1.0}, {"step": 1, "loss": None}])


def test_a_bundle_against_itself_keeps_the_names_of_the_bench(bundles, bench):
    bench["cells"].append(bench["cells"][0] | {"bundle": "dense-fp32#2", "p50_ms": 5.2})
    rows = build_report([*bundles, bundles[0]], bench).rows
    assert [row.name for row in rows][4:] == ["dense-fp32#2"]
    assert rows[4].p50_ms(32) == 5.2
    assert rows[4].bytes == rows[0].bytes
