"""`saten-edge optimize` from a goal to a folder, on a tiny model: the answer, its recipe, kills, bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saten_edge.recipes import read_recipe
from saten_edge.texts import write_lines
from saten_exporters.choice.prices import MeasuredOn, Rates, shipped_prices, write_prices
from saten_runtime.bench.results import Verdict
from saten_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.slow
pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'saten-edge[optimize]')")

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]
QUICK = (
    *("--steps", 3, "--short-steps", 1, "--batch-size", 8, "--max-length", 16, "--calibration-texts", 8),
    *("--tokens", 8, "--rounds", 1, "--finalists", 1, "--trials", 2, "--workers", 1, "--quiet"),
)
WEIGHTS = ("model.onnx", "model.onnx.data")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and judge.jsonl: a word of each text says its class."""
    folder, order = tmp_path_factory.mktemp("data"), random.Random(7)
    rows = []
    for number in range(96):
        label = order.randint(0, 1)
        words = [*order.choices(["reads", "the", "number", "of", "returns"], k=5), ["file", "path"][label]]
        rows.append({"text": f"{' '.join(words)} {number}", "label": label})
    write_lines(folder / "train.jsonl", rows[:64])
    write_lines(folder / "judge.jsonl", rows[64:])
    return folder


def arguments(model: Path, data: Path, out: Path, *more: object) -> tuple[object, ...]:
    files = ("--data", data / "train.jsonl", "--judge", data / "judge.jsonl")
    return ("optimize", model, "-o", out, *files, *QUICK, *more)


@pytest.fixture(scope="module")
def one_thread(offline: dict[str, str]) -> dict[str, str]:
    return {**offline, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def command(warm_python: list[str], one_thread: dict[str, str]) -> Command:
    def run(*given: object) -> Done:
        line = [*warm_python, "-m", "saten_edge", *map(str, given)]
        return subprocess.run(line, capture_output=True, text=True, timeout=900, env=one_thread)

    return run


@pytest.fixture(scope="module")
def found(command: Command, tiny_bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A folder with the answer, and what the command said."""
    out = tmp_path_factory.mktemp("found") / "out"
    done = command(*arguments(tiny_bert, data, out, "--max-drop", 100, "--json"))
    assert done.returncode == 0, done.stderr
    return out, done


def weights(bundle: Path) -> list[bytes]:
    return [(bundle / name).read_bytes() for name in WEIGHTS]


# --- the answer --------------------------------------------------------------------------------------------------


def test_the_folder_holds_the_answer_and_what_it_was_compared_with(found: tuple[Path, Done]) -> None:
    out, done = found
    said = json.loads(done.stdout)
    result = json.loads((out / "result.json").read_text())
    assert result["answer"] == said["answer"]
    chosen = Bundle.open(out / "chosen")
    assert chosen.name == said["best"]
    assert said["answer"].startswith(f"{said['best']} is the answer to --max-drop 100: ")
    assert {"dense-fp32", "dense-int8"} <= {path.name for path in (out / "baselines").iterdir()}
    by_name = {row["name"]: row for row in said["rows"]}
    assert by_name[said["best"]]["bytes"] == chosen.size_bytes == min(row["bytes"] for row in said["rows"])
    assert sum(row["trial"] is not None for row in said["rows"]) == 1
    page = (out / "report.html").read_text()
    assert said["answer"] in page.replace("’", "'").replace("&#39;", "'")
    assert all(trial["label"] in page for trial in result["trials"])
    assert [trial["number"] for trial in result["trials"]] == list(range(len(result["trials"])))


def test_the_model_for_embeddings_learned_the_labels_first(found: tuple[Path, Done]) -> None:
    out, _ = found
    assert Bundle.open(out / "baselines" / "dense-fp32").manifest.task == "text-classification"
    stages = [stage.stage for stage in read_recipe(out / "recipe.yaml").recipe.stages]
    assert stages[:2] == ["optimize", "finetune"]
    assert stages[-1] == "export"


def test_the_smallest_is_trimmed_and_so_is_a_rival(found: tuple[Path, Done]) -> None:
    """Each reads fewer words than the dense model; the recipe says where they went."""
    out, done = found
    names = [row["name"] for row in json.loads(done.stdout)["rows"]]
    assert {"dense-int8-trimmed", "dense-int4-128-trimmed"} <= set(names)
    assert json.loads(done.stdout)["best"].endswith("-trimmed")
    assert "It knows the words of the training texts" in json.loads(done.stdout)["answer"]
    bundles = [out / "chosen", *(out / "baselines" / name for name in ("dense-int8-trimmed", "dense-int8"))]
    words = [len(json.loads((each / "tokenizer.json").read_text())["model"]["vocab"]) for each in bundles]
    assert words[0] == words[1] < words[2]
    stages = [stage.stage for stage in read_recipe(out / "recipe.yaml").recipe.stages]
    assert stages[:3] == ["optimize", "finetune", "trim"]
    assert len(list((out / "work").glob("trim-*"))) == 1


def test_a_recipe_makes_the_same_bundle_again(command: Command, found: tuple[Path, Done], tmp_path: Path) -> None:
    out, _ = found
    done = command("optimize", "-o", tmp_path / "again", "--recipe", out / "recipe.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "again" / "chosen") == weights(out / "chosen")
    text = (out / "recipe.yaml").read_text()
    (tmp_path / "other.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    assert text.count("seed: 0") > 1
    other = command("optimize", "-o", tmp_path / "other", "--recipe", tmp_path / "other.yaml", "--quiet")
    assert other.returncode == 3
    assert "is not what the recipe made; the versions are the same" in other.stderr


def test_a_goal_that_nothing_meets_says_what_would_have_to_give(
    command: Command, tiny_bert: Path, data: Path, found: tuple[Path, Done]
) -> None:
    """It goes on with the trials that are there, towards another goal and back."""
    out, first = found
    before = {path.name for path in (out / "work").iterdir()}
    missed = command(*arguments(tiny_bert, data, out, "--max-drop", 100, "--max-ms", 0.0001, "--resume"))
    assert missed.returncode == 3
    assert "saten-edge: error: Nothing meets --max-drop 100, --max-ms 0.0001; nearest: " in missed.stderr
    assert "would do with --max-ms" in missed.stderr
    assert not (out / "chosen").exists()
    again = command(*arguments(tiny_bert, data, out, "--max-drop", 100, "--json", "--resume"))
    assert again.returncode == 0, again.stderr
    same = ("name", "bytes", "steer", "confirm", "trial")
    rows = [[{name: row[name] for name in same} for row in json.loads(done.stdout)["rows"]] for done in (first, again)]
    assert rows[0] == rows[1]
    assert {path.name for path in (out / "work").iterdir()} == before


def test_finalists_are_timed_on_a_device(
    command: Command, tiny_bert: Path, data: Path, found: tuple[Path, Done]
) -> None:
    """`local` is this machine, by the way that a board is reached; nothing else is done again."""
    out, first = found
    there = command(*arguments(tiny_bert, data, out, "--max-drop", 100, "--json", "--resume", "--device", "local"))
    assert there.returncode == 0, there.stderr
    rows = json.loads(there.stdout)["rows"]
    assert [row["name"] for row in rows] == [row["name"] for row in json.loads(first.stdout)["rows"]]
    assert all(row["ms_on"] == {"local": row["ms"]} for row in rows)
    assert all(row["ms"] > 0 for row in rows)
    assert len(list((out / "work").glob("bench-*/local/bench.json"))) == 1
    wrong = command(*arguments(tiny_bert, data, out, "--resume", "--device", "pi5"))
    assert wrong.returncode == 2
    assert "expected ssh://" in wrong.stderr


def test_a_folder_of_another_search_is_left_alone(
    command: Command, tiny_bert: Path, data: Path, found: tuple[Path, Done]
) -> None:
    out, _ = found
    for more, message in (((), "already exists"), (("--resume", "--seed", 5), "holds a search with another seed (0)")):
        done = command(*arguments(tiny_bert, data, out, *more))
        assert done.returncode == 2
        assert message in done.stderr


def test_prices_in_a_file_choose_and_are_said(
    command: Command, tiny_bert: Path, data: Path, found: tuple[Path, Done], tmp_path: Path
) -> None:
    """They are a tenth of those that ship, of a board of this kind; a recipe finds them again. Nothing is trimmed."""
    prices = {
        key: Rates(**{name: value / 10 for name, value in vars(rates).items()})
        for key, rates in shipped_prices("x86-64").table.items()
    }
    about = MeasuredOn("pi5", "x86_64", "Stand-in", None, 4, [], None, "1.31.1", "not installed")
    write_prices(tmp_path / "pi5.json", about, Verdict(True, []), prices)
    out = tmp_path / "out"
    done = command(*arguments(tiny_bert, data, out, "--max-drop", 100, "--prices", tmp_path / "pi5.json", "--no-trim"))
    assert done.returncode == 0, done.stderr
    assert not any("trimmed" in row["name"] for row in json.loads((out / "result.json").read_text())["rows"])
    assert "No vocabulary was trimmed: --no-trim." in (out / "report.html").read_text()
    results = [json.loads((each / "result.json").read_text()) for each in (out, found[0])]
    assert [each["prices"]["device"] for each in results] == ["pi5", "x86-64 server"]
    times = [{trial["label"]: trial["us"] for trial in each["trials"]} for each in results]
    same = set(times[0]) & set(times[1])
    assert same
    assert all(times[0][label] == pytest.approx(times[1][label] / 10) for label in same)
    assert "those of pi5 (Stand-in, " in (out / "report.html").read_text()
    made_by = Bundle.open(out / "chosen").manifest.recipe
    assert made_by is not None
    assert made_by.stages[-1].inputs["prices"]["device"] == "pi5"
    again = command("optimize", "-o", tmp_path / "again", "--recipe", out / "recipe.yaml", "--quiet")
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path / "again" / "chosen") == weights(out / "chosen")


# --- kills -------------------------------------------------------------------------------------------------------


def children(process: int) -> list[int]:
    """Of all its threads: one of them starts each worker."""
    found = [path.read_text().split() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return [int(each) for some in found for each in some]


@pytest.mark.parametrize("whom", ["driver", "worker"])
def test_a_kill_loses_nothing_and_counts_nothing_twice(
    whom: str, command: Command, tiny_bert: Path, data: Path, found: tuple[Path, Done], one_thread, tmp_path: Path
) -> None:
    line = [
        sys.executable,
        "-m",
        "saten_edge",
        *map(str, arguments(tiny_bert, data, tmp_path / "out", "--max-drop", 100)),
    ]
    process = subprocess.Popen(line, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 250
    while len(list((tmp_path / "out" / "work").glob("judge-*"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [each for each in children(process.pid) if b"serve()" in Path(f"/proc/{each}/cmdline").read_bytes()]
    assert workers
    os.kill(process.pid if whom == "driver" else workers[0], signal.SIGKILL)
    code = process.wait(timeout=250)
    assert code == (-signal.SIGKILL if whom == "driver" else 0)
    if whom == "driver":
        done = command(*arguments(tiny_bert, data, tmp_path / "out", "--max-drop", 100, "--resume"))
        assert done.returncode == 0, done.stderr
    results = [json.loads((out / "result.json").read_text()) for out in (found[0], tmp_path / "out")]
    assert results[0]["trials"] == results[1]["trials"]
    assert weights(tmp_path / "out" / "chosen") == weights(found[0] / "chosen")
