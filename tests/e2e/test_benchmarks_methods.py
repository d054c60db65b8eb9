"""The table of methods: what has a result is not made again, and times that are not valid are not shown."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from saten_edge.methods import METHODS


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("methods")


def test_the_methods_of_compress_are_all_in_their_table(methods):
    rows = methods.ROWS.values()
    told = [row.told for row in rows if row.told]
    assert {each[each.index("--method") + 1] if "--method" in each else "saten" for each in told} == set(METHODS)
    assert any("--then" in each for each in told)
    assert len({row.slug for row in rows}) == len(rows)


def test_the_table_of_methods_has_every_result_and_times_that_are_valid(methods, tmp_path):
    for place, name in enumerate(("dense", "svd 0.50")):
        cost = {"seconds": 7.4, "peak_bytes": 5e8} if place else {}
        found = {"model": "a", "method": name, "share": 1 - place / 2, "bytes": 4e6, "metric": "f1", "score": 0.25}
        methods.result_file(tmp_path, "digits", methods.ROWS[name]).write_text(json.dumps({**found, **cost}))
    ratio = {"to": "dense", "value": 0.5, "low": 0.4, "high": 0.6}
    for valid, end in ((True, "2.00 | 0.50 (0.40–0.60) | 7 | 500 |"), (False, "– | – | 7 | 500 |")):
        measured = {"verdict": {"valid": valid, "reasons": []}, "times": {"svd 0.50": {"p50_ms": 2.0, "ratio": ratio}}}
        methods.times_file(tmp_path, "digits").write_text(json.dumps(measured))
        lines = methods.table_text([*methods.rows_of(tmp_path)]).splitlines()
        assert lines[0] == "**a**"
        assert lines[4] == "| dense | 1.000 | 0.25 | 4.0 | – | – | – | – |"
        assert lines[5:] == [f"| svd 0.50 | 0.500 | 0.25 | 4.0 | {end}"]


def test_a_cell_of_the_methods_that_fails_is_told_and_the_others_are_made(methods, tmp_path, capsys):
    about = methods.Subject("a", tmp_path, tmp_path, tmp_path, "f1")
    done = []

    class Cell(methods.Cell):
        def make(self):
            if self.row.told is None:
                raise RuntimeError("no model")
            done.append(self.row.name)
            self.result.write_text("{}")

    cells = [Cell("digits", about, methods.ROWS[name], tmp_path, tmp_path) for name in methods.QUICK]
    for _ in range(2):
        methods.make_missing(cells)
    assert done == ["svd 0.50", "flat 0.50"]  # what has a result is not made again
    assert capsys.readouterr().err.count("digits-dense: no model\n") == 2


def test_a_methods_share_counts_the_layers_that_it_left(methods, tmp_path):
    assert methods.share(tmp_path) == 1
    layers = [{"name": "a", "bytes": 30, "dense_bytes": 100}, {"name": "b", "bytes": 10, "dense_bytes": 40}]
    dense = {"b.bias": 7, "c.weight": 60, "embeddings.word_embeddings.weight": 1000}
    (tmp_path / "saten_layers.json").write_text(json.dumps({"layers": layers, "dense": dense}))
    assert methods.share(tmp_path) == pytest.approx((30 + 10 + 60) / (100 + 40 + 60))  # b is a smaller dense layer
    assert methods.share(tmp_path, tables=True) == pytest.approx((30 + 10 + 60 + 1000) / (100 + 40 + 60 + 1000))
    assert [methods.bits(name) for name in ("fp32", "int8", "int4")] == [32, 8, 5]
