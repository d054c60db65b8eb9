"""The parts of a search: what can be tried, predicted, judged and wanted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import saten_edge
from saten_edge.decomposition.recipe import PREFERENCES, Recipe
from saten_edge.engines import ENGINES
from saten_edge.methods import METHODS
from saten_edge.optimize.chains import Chains
from saten_edge.optimize.estimate import Layers, estimate, layers_of
from saten_edge.optimize.goal import Row, answer, meets, missed
from saten_edge.optimize.judging import SCALES, Scale, needs_head, read_judge, scale_of
from saten_edge.optimize.output import claim
from saten_edge.optimize.planning import refuse_impossible
from saten_edge.optimize.space import (
    BUDGETS,
    FAMILIES,
    KEPT,
    KNOBS,
    RIVALS,
    STARTS,
    Candidate,
    distributions,
    drawn,
    offered,
)
from saten_edge.optimize.tasks import Source
from saten_edge.options import ENGINES as NAMED_ENGINES
from saten_edge.options import ExportOptions, OptimizeOptions
from saten_edge.recipes import given_by, recorded
from saten_edge.texts import write_lines
from saten_exporters.quantize import PRECISIONS
from saten_runtime.accuracy.measures import MEASURES
from saten_runtime.errors import DataError, UsageError

INT8 = Candidate("dense", "int8")


# --- the space ---------------------------------------------------------------------------------------------------


def test_names_of_candidates_differ_and_their_options_are_sound():
    tried = [
        *RIVALS,
        *STARTS,
        Candidate("sparse", "int4", 0.1, "2:4"),
        Candidate("saten", "fp16", 0.3, "grouped", 8, "0.5"),
        Candidate("flat-saten", "int8", 0.2, "grouped", 16),
    ]
    assert len({each.label for each in tried}) == len(tried)
    for each in tried:
        if (options := each.compress) is not None:
            METHODS[options.methods[-1]].check(options, True)
    assert STARTS[0].label == "saten-int8-0.4-grouped-g16-speed-trimmed"
    flat = tried[-1].compress
    assert (flat.methods, flat.budget, flat.kept, flat.group) == (("flat", "saten"), 0.2 / 4, 0.5, 16)
    assert STARTS[0].compress.methods == ("saten",)


def walk() -> Iterator[Candidate]:
    """Every family at every precision, with values of each of its knobs, at the least and the largest budget."""
    values = {"pattern": ("grouped", "unstructured", "2:4"), "split": ("measured", "0.25", "0.75"), "keep": tuple(KEPT)}
    values["prefer"] = PREFERENCES
    for family in FAMILIES.values():
        knobs = [name for name in values if name in family.knobs]
        for precision, budget in itertools.product(PRECISIONS, BUDGETS):
            for chosen in itertools.product(*(values[name] for name in knobs)):
                yield Candidate(family.name, precision, budget, **dict(zip(knobs, chosen, strict=True)))


def test_every_candidate_of_the_space_can_be_asked_for():
    count = 0
    for candidate in walk():
        if (options := candidate.compress) is None:
            continue
        for method in options.methods:
            METHODS[method].check(options, True)
        assert given_by("compress", recorded("compress", options)) == options
        assert options.counted == candidate.precision
        assert options.share * options.narrower == pytest.approx(candidate.budget)
        count += 1
    assert count > 300
    cut = dataclasses.replace(STARTS[0].compress, recipe=Recipe(train="tt-svd"))  # what no family has
    with pytest.raises(UsageError, match="--precision int8 counts a train as the two factors"):
        METHODS["saten"].check(cut, True)


def test_what_a_family_does_not_have_changes_nothing():
    plain, odd = Candidate("svd", "int8", 0.25), Candidate("svd", "int8", 0.25, "grouped", 8, "0.5")
    assert plain.label == odd.label
    assert plain.compress.recipe == odd.compress.recipe
    assert (plain.compress.recipe.order, plain.compress.pattern) == (2, "none")


def test_speed_is_preferred_where_a_split_is_measured_for_the_target_of_the_search():
    fast = STARTS[1]
    assert fast.label == "saten-int8-0.25-grouped-g16-speed-trimmed"
    assert fast.compress.recipe.prefer == "speed"
    assert fast.compress_for("arm64").recipe.timed_on == "arm64"
    fixed, accurate = dataclasses.replace(fast, split="0.5"), dataclasses.replace(fast, prefer="accuracy")
    for other in (fixed, accurate):
        assert other.compress_for("arm64") == other.compress
        assert other.compress.recipe.timed_on is None
        assert "speed" not in other.label
    fast, accurate = (dataclasses.replace(each, trim=False) for each in (fast, accurate))
    layers = Layers({"layer.0.dense": ("linear", 384, 384)}, 1000)
    assert estimate(fast, layers, "x86-64", 32).us < estimate(accurate, layers, "x86-64", 32).us
    chains = Chains(Source("m", "m"), Source("d", "d"), {}, OptimizeOptions(target="arm64"), False)
    assert chains.checkpoint(fast).options["target"] == "arm64"
    assert chains.checkpoint(accurate).options["target"] is None


def test_every_knob_can_be_drawn_and_drawn_again():
    pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'saten-edge[optimize]')")
    from optuna.trial import FixedTrial

    for candidate, trims in itertools.product(STARTS, (True, False)):
        params, spaces = distributions(candidate, trims=trims)
        assert set(params) == set(spaces)
        assert {*params} <= {"family", *KNOBS}
        assert ("trim" in params) is trims
        again = drawn(FixedTrial(params), trims=trims)
        assert again.label == offered([candidate], trims=trims)[0].label
    assert {knob for family in FAMILIES.values() for knob in family.knobs} == set(KNOBS)


def test_the_engines_that_are_named_are_there():
    assert tuple(ENGINES) == NAMED_ENGINES
    with pytest.raises(UsageError, match="--engine cloud: there are local, ray, slurm"):
        OptimizeOptions(engine="cloud")


def test_a_search_goes_on_wherever_it_runs(tmp_path: Path):
    """What is recorded says nothing of engines and addresses."""
    out, usual = tmp_path / "out", OptimizeOptions()
    elsewhere = OptimizeOptions(engine="ray", address="auto", workers=3)
    assert recorded("optimize", elsewhere) == recorded("optimize", usual)
    claim(out, usual, {"model": "a"}, [], resume=False, overwrite=False)
    claim(out, elsewhere, {"model": "a"}, [], resume=True, overwrite=False)
    with pytest.raises(UsageError, match=r"holds a search with another seed \(0\)"):
        claim(out, OptimizeOptions(seed=5), {"model": "a"}, [], resume=True, overwrite=False)


@pytest.fixture(scope="module")
def wide_bert(make_bert: Callable[..., Path]) -> Path:
    """Wide enough that scales and places weigh as in models that people use."""
    return make_bert(width=256, layers=1)


# --- predictions -------------------------------------------------------------------------------------------------


@pytest.mark.slow  # makes two bundles
def test_predicted_bytes_are_those_of_the_export(tiny_bert: Path, tiny_bundle):
    layers, options = layers_of(tiny_bert), Candidate("dense", "fp32")
    assert len(layers.matrices) == 14
    predicted = [estimate(dataclasses.replace(options, precision=name), layers, "x86-64", 32) for name in PRECISIONS]
    assert predicted[0].bytes == 4 * layers.values
    sizes = [tiny_bundle(f"dense-{name}") for name in ("fp32", "int8")]
    stored = [(path / "model.onnx.data").stat().st_size for path in sizes]
    for each, size in zip((predicted[0], predicted[list(PRECISIONS).index("int8")]), stored, strict=True):
        assert each.bytes == pytest.approx(size, rel=0.15)
    assert predicted[0].bytes > 3 * predicted[2].bytes  # and so the tolerance tells them apart


SOME = (
    Candidate("svd", "int8", 0.4),
    Candidate("sparse", "fp16", 0.25, "2:4"),
    Candidate("sparse", "int4", 0.5, "unstructured"),
    Candidate("saten", "int4", 0.4, "grouped", 8),
    Candidate("saten", "int8", 0.3, "unstructured", split="0.75"),
)
# Of the bytes: what entries and ranks leave over, which are bought whole, in a model of narrow layers.
NEAR = 0.06


@pytest.mark.parametrize("candidate", SOME, ids=lambda each: each.label)
def test_predicted_bytes_are_those_that_compression_counts(candidate: Candidate, tiny_bert: Path, tmp_path: Path):
    layers = layers_of(tiny_bert)
    table = saten_edge.compress(tiny_bert, tmp_path / "out", candidate.compress)
    assert len(table["layers"]) == len(layers.matrices)
    stored = sum(row["bytes"] for row in table["layers"])

    def predicted(some: Candidate) -> int:
        return estimate(some, layers, "x86-64", 32).bytes - 4 * layers.others

    assert predicted(candidate) == pytest.approx(stored, rel=NEAR)
    other = dataclasses.replace(candidate, budget=candidate.budget * 1.25)
    assert predicted(other) != pytest.approx(stored, rel=NEAR)


@pytest.mark.slow  # makes three bundles
def test_predicted_bytes_are_those_of_the_bundle(wide_bert: Path, tmp_path: Path):
    """Those of one whose parts were chosen by their bytes in float32 are not."""
    layers, some = layers_of(wide_bert), Candidate("saten", "int8", 0.3, "unstructured")
    other = Candidate("saten", "int4", 0.6, "grouped")
    in_float32 = dataclasses.replace(some.compress, precision=None, budget=some.budget)
    for name, candidate, how, near in (
        ("first", some, some.compress, True),
        ("second", other, other.compress, True),
        ("float32", some, in_float32, False),
    ):
        saten_edge.compress(wide_bert, tmp_path / name, how)
        told = ExportOptions(max_loss=math.inf, **candidate.export)
        bundle = saten_edge.export(tmp_path / name, tmp_path / f"{name}-bundle", told).path
        stored = (bundle / "model.onnx.data").stat().st_size
        assert (stored == pytest.approx(estimate(candidate, layers, "x86-64", 32).bytes, rel=0.03)) is near


def test_a_budget_that_pays_for_no_part_is_seen_before_anything_is_computed():
    """A train of bond 1 takes 0.21 of what a matrix of MiniLM takes at int2, in blocks of 64."""
    layers = Layers({"layer.0.dense": ("linear", 384, 384)}, 1000)
    for family, unpaid in (("svd", True), ("sparse", False), ("saten", False), ("flat-saten", False)):
        found = estimate(Candidate(family, "int2", 0.15, "grouped", 32), layers, "x86-64", 32)
        assert bool(found.unpaid) is unpaid
        assert found.bytes > 4 * layers.others
    assert estimate(Candidate("saten", "int2", 0.15, "grouped", 32, "0.5"), layers, "x86-64", 32).unpaid
    assert not estimate(Candidate("svd", "int2", 0.25), layers, "x86-64", 32).unpaid


def test_a_smaller_budget_is_predicted_to_take_less(tiny_bert: Path):
    layers = layers_of(tiny_bert)
    for family in ("svd", "sparse", "saten"):
        large, small = (
            estimate(Candidate(family, "fp32", budget, "grouped", 8), layers, "x86-64", 32) for budget in (0.5, 0.25)
        )
        assert small.bytes < large.bytes < 4 * layers.values
        assert small.us < large.us
    kept = estimate(Candidate("svd", "fp32", 0.25, keep="tables"), layers, "x86-64", 32)
    assert kept.bytes > estimate(Candidate("svd", "fp32", 0.25), layers, "x86-64", 32).bytes


def test_a_size_that_nothing_can_have_is_refused(tiny_bert: Path):
    layers = layers_of(tiny_bert)
    refuse_impossible(layers, OptimizeOptions(max_mb=1))
    with pytest.raises(UsageError, match=r"--max-mb 0.01: the smallest bundle that is tried takes about"):
        refuse_impossible(layers, OptimizeOptions(max_mb=0.01))


# --- the judge ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rows = [{"text": f"Text number {k}", "label": k % 2} for k in range(40)]
    write_lines(tmp_path / "train.jsonl", rows[:20])
    write_lines(tmp_path / "judge.jsonl", [*rows[20:], {"text": "text  NUMBER 3", "label": 1}])
    return tmp_path / "train.jsonl", tmp_path / "judge.jsonl"


def test_the_two_parts_of_a_judge_are_all_of_it(files, tmp_path: Path):
    training, path = files
    judge = read_judge(path, training)
    assert judge.overlap == 1
    parts = judge.write(tmp_path, 0.4, 0)
    rows = {part: [json.loads(line) for line in found.read_text().splitlines()] for part, found in parts.items()}
    assert {part: len(found) for part, found in rows.items()} == {"steer": 13, "confirm": 8}
    assert sorted(row["text"] for found in rows.values() for row in found) == sorted(judge.data.columns["text"])
    before = parts["steer"].read_bytes()
    assert judge.write(tmp_path, 0.4, 0)["steer"].read_bytes() == before
    assert judge.write(tmp_path, 0.4, 1)["steer"].read_bytes() != before


@pytest.mark.parametrize("columns", [("sentence", "label"), ("review", "labels")])
def test_an_overlap_is_found_under_other_usual_names(columns: tuple[str, str], files, tmp_path: Path):
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    write_lines(other, [dict(zip(columns, row.values(), strict=True)) for row in rows])
    assert read_judge(files[1], other).overlap == 1
    write_lines(other, [{columns[0]: "nothing of the judge", columns[1]: 0}])
    assert read_judge(files[1], other).overlap == 0


def test_a_judge_that_is_the_training_data_is_refused(files, tmp_path: Path):
    training, _ = files
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(training.read_bytes())
    with pytest.raises(UsageError, match=r"copy\.jsonl: is the training data"):
        read_judge(copy, training)
    judge = read_judge(files[1], training)
    with pytest.raises(UsageError, match="in each"):
        judge.write(tmp_path, 0.9, 0)


def test_a_metric_has_to_fit_the_task(files):
    judge = read_judge(files[1], files[0])
    assert scale_of(judge, "text-classification", None)[0] == "accuracy"
    assert scale_of(judge, "text-classification", "matthews")[0] == "matthews"
    assert needs_head(judge, "feature-extraction")
    assert not needs_head(judge, "text-classification")
    with pytest.raises(UsageError, match="--metric perplexity: classification has accuracy"):
        scale_of(judge, "text-classification", "perplexity")
    with pytest.raises(DataError, match="holds texts data, a model for text-generation is judged by plain"):
        scale_of(judge, "text-generation", None)


def test_every_measure_has_a_scale():
    assert set(SCALES) == {measure.name for measure in MEASURES}
    assert Scale().drop(0.9, 0.89) == 1.0
    assert Scale(higher_is_better=False).drop(20.0, 21.0) == 5.0


@pytest.mark.parametrize("higher", [True, False])
def test_nothing_meets_a_goal_by_a_metric_that_is_not_defined(higher: bool):
    scale = Scale(higher_is_better=higher)
    assert scale.drop(None, 0.9) == scale.drop(0.9, None) == scale.drop(None, None) == 100.0
    assert scale.drop(0.9, 0.9) == scale.drop(0.0, 0.0) == 0.0


def test_a_dense_model_without_any_error_is_not_met_by_one_with_some():
    assert Scale(higher_is_better=False).drop(0.0, 0.1) > 100


# --- the goal ----------------------------------------------------------------------------------------------------


def row(name: str, size: int, ms: float, drop: float, confirmed: float | None = None) -> Row:
    candidate = INT8 if name.startswith("dense") else STARTS[0]
    return Row(name, candidate, None, size, ms, 0.9, drop, 0.9, drop if confirmed is None else confirmed)


ROWS = [row("dense", 4_000_000, 4.0, 0.0), row("small", 1_000_000, 3.0, 0.9, 1.4), row("fast", 2_000_000, 1.0, 0.5)]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (OptimizeOptions(max_drop=2), "small"),
        (OptimizeOptions(max_drop=1), "fast"),  # the smallest is within a point on the first part alone
        (OptimizeOptions(max_drop=2, objective="time"), "fast"),
        (OptimizeOptions(max_drop=2, objective="accuracy"), "dense"),
        (OptimizeOptions(max_drop=2, max_ms=2), "fast"),
        (OptimizeOptions(max_drop=0.1), "dense"),
    ],
)
def test_the_best_that_meets_the_goal_on_both_parts(options: OptimizeOptions, name: str):
    found = answer(ROWS, options)
    assert found is not None
    assert found.name == name


def test_what_would_have_to_give():
    options = OptimizeOptions(max_drop=0.4, max_mb=3)
    assert answer(ROWS, options) is None
    assert missed(ROWS, options)[:2] == ["fast would do with --max-drop 0.5", "dense would do with --max-mb 4"]
    for asked in (dataclasses.replace(options, max_drop=0.5), dataclasses.replace(options, max_mb=4)):
        assert answer(ROWS, asked) is not None


def test_a_time_that_was_not_measured_meets_no_limit():
    unknown = dataclasses.replace(ROWS[2], ms=None)
    assert meets(unknown, OptimizeOptions())
    assert not meets(unknown, OptimizeOptions(max_ms=1000))
