"""`saten-edge optimize`: the real stages of one candidate, the plan, and what is refused before anything is written."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from saten_edge.optimize.chains import Chains
from saten_edge.optimize.inputs import model_hash, read_inputs
from saten_edge.optimize.space import Candidate
from saten_edge.optimize.tasks import Source, made, outcome_of
from saten_edge.options import OptimizeOptions
from saten_edge.recipes import stages_in, write_recipe
from saten_edge.texts import write_lines
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.recipe import Recipe, Stage
from saten_runtime.records.files import sha256_file

OPTIONS = OptimizeOptions(batch_size=8, max_length=16, calibration_texts=8, tokens=8, steps=2)
QUICK = ("--batch-size", 8, "--trials", 2, "--quiet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and judge.jsonl: a word of each text says its class."""
    folder, order = tmp_path_factory.mktemp("data"), random.Random(7)
    rows = []
    for number in range(48):
        words = [*order.choices(["reads", "the", "number", "of", "returns"], k=5), ["file", "path"][number % 2]]
        rows.append({"text": f"{' '.join(words)} {number}", "label": number % 2})
    write_lines(folder / "train.jsonl", rows[:24])
    write_lines(folder / "judge.jsonl", rows[24:])
    return folder


@pytest.mark.slow  # compresses, trains, exports and judges
def test_the_stages_of_a_candidate_are_those_of_the_commands(make_tiny, data: Path, tmp_path: Path):
    model = make_tiny("bert", "text-classification")
    given = read_inputs(str(model), data / "train.jsonl", data / "judge.jsonl", OPTIONS)
    assert (given.metric, given.headless) == ("accuracy", False)
    parts = given.judge.write(tmp_path, 0.5, 0)
    sources = {part: Source(str(path), sha256_file(path)) for part, path in parts.items()}
    training = Source(str(data / "train.jsonl"), given.hashes["data"])
    chains = Chains(Source(str(model), given.hashes["model"]), training, sources, OPTIONS, given.headless)
    candidate = Candidate("saten", "int8", 0.5, "grouped", 8)
    task, work = chains.judged(candidate, "steer", 2), tmp_path / "work"
    found = outcome_of(task, work)
    assert 0 <= found["metrics"]["accuracy"] <= 1
    bundle = made(chains.bundle(candidate, 2), work)
    assert outcome_of(chains.bundle(candidate, 2), work)["bytes"] == Bundle.open(bundle).size_bytes
    done = stages_in(bundle)
    assert [stage.stage for stage in done] == ["compress", "finetune", "export"]
    assert (done[0].options["budget"], done[1].options["steps"], done[2].options["rows"]) == (0.5 / 4, 2, 8)
    assert done[0].inputs["calibration"]["texts"] == 8
    assert set(done[1].inputs) == {"model", "data", "teacher"}
    assert len(list(work.iterdir())) == 4


def test_a_models_hash_is_of_everything_that_says_something_of_it(tiny_bert: Path, tmp_path: Path):
    import shutil

    copy = shutil.copytree(tiny_bert, tmp_path / "copy")
    assert model_hash(copy) == model_hash(tiny_bert)
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config + " ")
    assert model_hash(copy) != model_hash(tiny_bert)


def test_the_hash_of_a_model_of_one_file_is_of_its_content(tmp_path: Path):
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    for path, content in ((one, b"GGUF 1"), (other, b"GGUF 2")):
        path.write_bytes(content)
    assert model_hash(one) == sha256_file(one)
    assert model_hash(one) != model_hash(other)


def test_a_dry_run_writes_nothing(run, tiny_bert: Path, data: Path, tmp_path: Path):
    files = ("--data", data / "train.jsonl", "--judge", data / "judge.jsonl")
    code, out, _ = run("optimize", tiny_bert, "-o", tmp_path / "out", *files, *QUICK, "--dry-run", "--device", "local")
    assert code == 0
    for words in (
        "fine-tune the dense model on the labels",
        "2 trials",
        "GB of disk",
        "12 examples of the judge steer",
        "the finalists and the dense models are timed on local",
    ):
        assert words in out
    assert list(tmp_path.iterdir()) == []


BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "the training data": (("--judge", "{data}/train.jsonl"), "train.jsonl: is the training data"),
    "a metric of another task": (("--metric", "spearman"), "--metric spearman: classification has accuracy"),
    "no size at all": (("--max-mb", "0.002"), "--max-mb 0.002: the smallest bundle that is tried takes about"),
    "no data": (("--data", "nowhere.jsonl"), "--data nowhere.jsonl: no such file"),
    "a device": (("--device", "pi5", "--dry-run"), "--device pi5: expected ssh://"),
    "an engine": (("--engine", "cloud"), "--engine cloud: there are local"),
    "an objective": (("--objective", "fame"), "--objective fame: there are bytes, time, accuracy"),
    "a recipe that is none": (("--recipe", "{data}/train.jsonl"), "train.jsonl:2: not YAML"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name: str, run, tiny_bert: Path, data: Path, tmp_path: Path):
    pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'saten-edge[optimize]')")
    more, message = BAD[name]
    files = ("--data", data / "train.jsonl", "--judge", data / "judge.jsonl")
    given = [str(each).format(data=data) for each in more]
    code, out, shown = run("optimize", tiny_bert, "-o", tmp_path / "out", *files, *QUICK, *given)
    assert (code, out) == (2, "")
    assert shown.startswith("saten-edge: error: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--dry-run", "--resume", "--judge"])
def test_an_option_that_a_recipe_does_not_read_is_refused(option: str, run, tmp_path: Path):
    write_recipe(tmp_path / "recipe.yaml", Recipe((Stage("optimize", {}),)))
    given = (option, "judge.jsonl") if option == "--judge" else (option,)
    code, out, shown = run("optimize", "-o", tmp_path / "out", "--recipe", tmp_path / "recipe.yaml", *given)
    assert (code, out) == (2, "")
    assert f"recipe.yaml: makes one bundle again and does not read {option}" in shown
    assert not (tmp_path / "out").exists()


def test_what_only_a_recipe_does_without(run, tiny_bert: Path, tmp_path: Path):
    code, _, shown = run("optimize", tiny_bert, "-o", tmp_path / "out")
    assert code == 2
    assert "--data and --judge missing; only --recipe does without" in shown
