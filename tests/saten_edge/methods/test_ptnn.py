"""Partial tensorization: the bound is held on texts that nothing else reads, and a model may stay as it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import saten_edge
from saten_edge.checkpoints.models import load_model
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.sensitivity import model_output
from saten_edge.methods import ptnn
from saten_edge.methods.calibrate import batches_of
from saten_edge.options import CompressOptions
from saten_runtime.errors import UsageError

QUICK = Recipe(rounds=1, solver="alternate")


def told(tolerance: float, **options: Any) -> CompressOptions:
    return CompressOptions(**{"method": "ptnn", "tolerance": tolerance, "group": 8, "recipe": QUICK, **options})


@pytest.fixture(scope="module")
def tried(tiny_bert: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[float, Any]:
    """tolerance → (folder, what `saten_layers.json` holds)."""
    found = {}
    for tolerance in (0.0, 0.05, 0.3, 0.6):
        out = tmp_path_factory.mktemp("ptnn") / "out"
        found[tolerance] = out, saten_edge.compress(tiny_bert, out, told(tolerance), calibration=texts[:32])
    return found


def output_error(folder: Path, dense: Path, texts: list[str]) -> float:
    small, model = load_model(folder), load_model(dense)
    (batch,) = batches_of(model, texts, len(texts))
    with torch.no_grad():
        got, wanted = model_output(small.model, batch), model_output(model.model, batch)
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("tolerance", [0.05, 0.3, 0.6])
def test_the_error_on_what_judges_is_within_the_bound_and_recorded(tolerance, tried, tiny_bert, texts):
    folder, table = tried[tolerance]
    _, judging = ptnn.split(texts[:32])
    error = output_error(folder, tiny_bert, judging)
    assert error <= tolerance * (1 + 1e-4)
    (stage,) = load_model(folder).recipe.stages
    assert stage.stage == "ptnn"
    assert stage.outcome["error"] == pytest.approx(error, rel=1e-3)
    assert stage.inputs["judge"]["sha256"] != stage.inputs["calibration"]["sha256"]
    assert table["layers"]


def test_a_larger_bound_takes_no_more_bytes(tried):
    left = [sum(row["dense_bytes"] - row["bytes"] for row in table["layers"]) for _, table in tried.values()]
    assert left == sorted(left)
    assert left[0] == 0 < left[1] < left[-1]


def test_a_bound_that_no_layer_meets_leaves_the_model_as_it_was_and_says_so(tried, tiny_bert, run, texts, tmp_path):
    folder, table = tried[0.0]
    assert table["layers"] == []
    same, dense = (load_model(each).model.state_dict() for each in (folder, tiny_bert))
    assert all(torch.equal(same[name], tensor) for name, tensor in dense.items())
    calibration = tmp_path / "texts.jsonl"
    calibration.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts[:8]))
    given = ("--method", "ptnn", "--tolerance", 0, "--calibration", calibration, "--group", 8, "--rounds", 1)
    code, said, _ = run("compress", tiny_bert, "-o", tmp_path / "out", *given, "--include", "*0.output.dense")
    assert code == 0
    assert said.strip() == "no layer could be compressed within --tolerance: the model is unchanged"


class Chooser(ptnn._Work):
    """The choice alone, for trials whose errors add up."""

    def __init__(self, tolerance: float, names: str) -> None:
        self.job: Any = SimpleNamespace(options=SimpleNamespace(tolerance=tolerance), progress=None)
        self.matrices: Any = dict.fromkeys(names)
        self.error, self.there = 0.0, dict[str, ptnn._Trial]()

    def _put(self, name: str, trial: ptnn._Trial | None) -> None:
        self.there.pop(name, None)
        if trial is not None:
            self.there[name] = trial

    def _error(self) -> float:
        return sum(trial.error for trial in self.there.values())


def trial(name: str, error: float, saved: int) -> Any:
    return ptnn._Trial(name, ("none", 1), None, error, saved)  # type: ignore[arg-type]


def test_the_least_error_for_a_byte_comes_first_and_what_exceeds_the_bound_is_undone():
    trials = [trial("a", 0.01, 10), trial("b", 0.03, 60), trial("c", 0.02, 30), trial("a", 0.04, 25), trial("c", 1, 99)]
    chooser = Chooser(0.07, "abc")
    kept = chooser.kept(sorted(trials, key=lambda one: one.price))
    assert [(name, one.saved) for name, one in kept.items()] == [("b", 60), ("c", 30), ("a", 10)]
    assert chooser.error == pytest.approx(0.06)
    assert not chooser.there  # the model is put back
    by_error = Chooser(0.07, "abc").kept(sorted(trials, key=lambda one: one.error))  # the twin: another order
    assert sum(one.saved for one in by_error.values()) == 100
    assert sum(one.saved for one in Chooser(0.07, "abc").kept(trials[3:4]).values()) == 25


def test_a_layer_may_come_to_a_smaller_size_later_and_never_to_a_larger_one():
    trials = [trial("a", 0.01, 10), trial("a", 0.03, 25), trial("a", 0.02, 20)]
    assert Chooser(0.05, "a").kept(trials)["a"].saved == 25
    assert Chooser(0.025, "a").kept(trials)["a"].saved == 20
    assert Chooser(0.005, "a").kept(trials) == {}


def test_it_goes_on_after_an_interruption_and_ends_with_the_same_bytes(tiny_bert, texts, tmp_path, monkeypatch):
    options = told(0.3, selection=saten_edge.Selection(include=("*.1.*",)))
    whole = saten_edge.compress(tiny_bert, tmp_path / "whole", options, calibration=texts[:16])
    decompose, done = ptnn.decompose_layer, list[str]()

    def until(most: int) -> Any:
        def counted(name: str, *rest: Any) -> Any:
            if len(done) == most:
                raise KeyboardInterrupt
            done.append(name)
            return decompose(name, *rest)

        return counted

    monkeypatch.setattr("saten_edge.methods.ptnn.decompose_layer", until(10))
    with pytest.raises(KeyboardInterrupt, match="--resume goes on after 10"):
        saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts[:16])
    monkeypatch.setattr("saten_edge.methods.ptnn.decompose_layer", until(100))
    table = saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts[:16], resume=True)
    assert len(done) == 6 * len(ptnn.SHARES)  # none of them twice
    assert table == whole
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]


def test_what_judges_is_read_by_nothing_else(tiny_bert, texts, tmp_path, monkeypatch):
    read = []
    calibrate = ptnn.calibrate

    def listen(loaded: Any, layers: Any, items: list[str], *rest: Any, **others: Any) -> Any:
        read.extend(items)
        return calibrate(loaded, layers, items, *rest, **others)

    monkeypatch.setattr("saten_edge.methods.ptnn.calibrate", listen)
    options = told(0.1, selection=saten_edge.Selection(include=("*.0.output.dense",)))
    saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts[:32])
    fitting, judging = ptnn.split(texts[:32])
    assert read == fitting
    assert set(judging).isdisjoint(read)
    assert sorted([*fitting, *judging]) == sorted(texts[:32])


def test_tables_become_trains_where_the_recipe_says_so(tiny_bert, texts, tmp_path):
    selection = saten_edge.Selection(include=("embeddings.*",))
    options = told(0.9, pattern="none", recipe=Recipe(train="tt-svd"), selection=selection)
    table = saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts[:16])
    assert {row["name"] for row in table["layers"]} <= {"embeddings.word_embeddings", "embeddings.position_embeddings"}
    assert all(row["nnz"] == 0 and len(row["ranks"]) >= 2 for row in table["layers"])
    assert table["layers"]


def test_images_are_judged_too(make_tiny, images, tmp_path):
    files = [tmp_path / f"{place}.png" for place in range(8)]
    for path, image in zip(files, images, strict=True):
        image.save(path)
    folder = make_tiny("vit", "image-classification")
    table = saten_edge.compress(folder, tmp_path / "out", told(0.3), calibration=files)
    assert table["layers"]


def test_flat_then_ptnn(tiny_bert, texts, tmp_path):
    options = told(0.3, method="flat", then="ptnn")
    saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts[:16])
    assert [stage.stage for stage in load_model(tmp_path / "out").recipe.stages] == ["flat", "ptnn"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -0.1}, r"--tolerance -0.1: expected a number of at least 0"),
        ({"tolerance": float("nan")}, r"--tolerance nan: expected a number of at least 0"),
        ({"budget": 0.3}, r"--budget is for --method saten, but this is --method ptnn"),
        ({"method": "saten", "then": None}, r"--tolerance is for --method ptnn, but this is --method saten"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        told(**{"tolerance": 0.2, **options})


@pytest.mark.parametrize(
    ("options", "count", "message"),
    [
        ({}, 0, "--method ptnn judges by texts or images; pass --calibration"),
        ({}, 1, "--method ptnn needs 4 calibration texts or images at least, found 1"),
        ({"recipe": Recipe(eps=0.5, density=0.1)}, 8, "leave out --eps or --density"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(options, count, message, tiny_bert, texts, tmp_path):
    with pytest.raises(UsageError, match=message):
        saten_edge.compress(tiny_bert, tmp_path / "out", told(0.1, **options), calibration=texts[:count])
    assert not (tmp_path / "out").exists()
