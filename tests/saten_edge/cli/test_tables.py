"""The tables of the command line hold the numbers they are given, and the sums of those."""

from pathlib import Path
from types import SimpleNamespace

from saten_edge.cli.tables import evaluation_table, layers_table, metrics_table, run_tables

LAYER = {"shape": [8, 16], "ranks": [2, 3, 2], "nnz": 5, "dense_bytes": 512, "error": 0.25, "solver": "admm"}
LAYER |= {"pattern": "grouped 8"}
COMPRESSED = {
    "layers": [{"name": "a", "bytes": 100, **LAYER}, {"name": "b", "bytes": 156, **LAYER, "solver": None}],
    "dense": {"head": 740, "norm": 3, "bias": 1},
}


def cells(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_layers_and_what_stayed_dense_have_their_sums():
    layers, dense = layers_table(COMPRESSED).split("\n\n")
    first, second, last = cells(layers)[1:]
    assert first == ["a", "8", "×", "16", "2,3,2", "grouped", "8", "5", "100", f"{100 / 512:.3f}", "0.250", "admm"]
    assert second[-1] == "–"
    bare = {"layers": [{"name": "a", "bytes": 100, **LAYER, "nnz": 0}], "dense": {}}
    assert cells(layers_table(bare))[1][5:7] == ["–", "0"]
    assert last == ["all", "256", "0.250"]
    assert cells(dense)[1:] == [
        ["head", "740", "0.740"],
        ["2", "smaller", "parameters", "4", "0.004"],
        ["all", "744", "0.744"],
    ]


def test_a_fine_tuning_says_how_it_was_judged_where_it_was():
    history = [{"loss": 0.5}, {"loss": 0.25}]
    assert metrics_table({"steps": 2, "history": history, "after": None}) == "2 steps, loss 0.5000 -> 0.2500"
    judged = {"before": {"accuracy": 0.5, "count": 7, "f1": None}, "after": {"accuracy": 0.75, "count": 7, "f1": 0.5}}
    rows = cells(metrics_table({"steps": 2, "history": history, **judged}))
    assert rows[1:] == [
        ["accuracy", "count", "f1"],
        ["before", "0.5000", "7", "–"],
        ["after", "0.7500", "7", "0.5000"],
    ]


def test_a_bundle_without_a_metric_has_a_dash():
    rows = [{"bundle": "a", "metrics": {"accuracy": 0.5, "cosine": 1.0}}, {"bundle": "b", "metrics": {"accuracy": 1.0}}]
    assert cells(evaluation_table({"rows": rows}))[1:] == [["a", "0.5000", "1.0000"], ["b", "1.0000", "–"]]


def test_a_run_that_sent_nothing_says_where_it_is():
    assert run_tables(SimpleNamespace(folder=Path("runs/1"), bench=None, evaluation=None)) == "runs/1:"
