"""Fine-tuning as processes: files in, a folder out, whole or not at all, whatever is done to them meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import saten_edge
from saten_edge.texts import write_lines
from saten_edge.training import job
from saten_edge.training.data import Examples
from saten_edge.training.schedule import LABEL_RATE
from saten_runtime.errors import DataError, SatenError, UsageError
from saten_runtime.records.files import sha256_file
from saten_runtime.records.folders import MARK

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
OPTIONS = ("--batch-size", 8, "--max-length", 16, "--fp32")


@pytest.fixture(scope="module")
def data(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, labelled by the parity of their number of words."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    write_lines(path, [{"text": text, "label": len(text.split()) % 2} for text in texts])
    return path


@pytest.fixture(scope="module")
def dense(tiny_bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, saten_edge_command) -> Path:
    """A dense classifier, made by the command."""
    out = tmp_path_factory.mktemp("models") / "dense"
    done = saten_edge_command("finetune", tiny_bert, "-o", out, "--data", data, "--judge", data, "--steps", 3, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 steps, loss ")
    assert done.stdout.splitlines()[1].split() == ["accuracy", "binary_f1", "macro_f1", "matthews", "examples"]
    lines = done.stderr.splitlines()  # our two lines and nobody else's
    assert lines[0].startswith("fine-tune bert for text-classification on 96 examples")
    assert len(lines) == 2
    return out


@pytest.fixture(scope="module")
def student(dense: Path, tmp_path_factory: pytest.TempPathFactory, saten_edge_command) -> Path:
    """The dense classifier, compressed."""
    out = tmp_path_factory.mktemp("models") / "student"
    options = ("--budget", 0.4, "--group", 8, "--rounds", 1, "--share", 0.6, "--quiet")
    done = saten_edge_command("compress", dense, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    return out


def arguments(student: Path, dense: Path, data: Path, out: Path, *options: object) -> list[str]:
    command = ["finetune", student, "-o", out, "--teacher", dense, "--data", data, *OPTIONS, *options]
    return [str(argument) for argument in command]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "saten_edge", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def wait_for(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_classifier_keeps_its_head_and_loses_what_is_for_embeddings(dense):
    config = json.loads((dense / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert not (dense / "modules.json").exists()
    assert {path.suffix for path in dense.iterdir() if path.name != MARK} <= {".json", ".safetensors", ".txt"}


class TestResumption:
    STEPS = ("--steps", 44, "--save-every", 4, "--reselect-until", 45)  # masks move after steps 20 and 40

    def test_a_killed_training_ends_with_the_same_weights(self, student, dense, data, tmp_path, saten_edge_command):
        uninterrupted = tmp_path / "whole"
        whole = saten_edge_command(*arguments(student, dense, data, uninterrupted, *self.STEPS))
        assert whole.returncode == 0, whole.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]
        out = tmp_path / "out"
        working = tmp_path / ".out.training"
        process = start(arguments(student, dense, data, out, *self.STEPS))
        wait_for(lambda: list(working.glob("checkpoint-20/trainer_state.json")), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not out.exists()
        assert not [path for path in working.rglob("*") if path.suffix in (".bin", ".pkl")]
        refused = saten_edge_command(*arguments(student, dense, data, out, *self.STEPS))
        assert refused.returncode == 2
        assert "an interrupted training; pass --resume to go on" in refused.stderr
        other = saten_edge_command(*arguments(student, dense, data, out, *self.STEPS, "--seed", 5, "--resume"))
        assert other.returncode == 2
        assert "had another schedule" in other.stderr
        rows = [json.loads(line) for line in data.read_text().splitlines()]
        write_lines(tmp_path / data.name, [{**row, "body": row["text"][1:]} for row in rows])
        columns = ("--columns", "text=body,label=label")
        other = saten_edge_command(
            *arguments(student, dense, tmp_path / data.name, out, *self.STEPS, *columns, "--resume")
        )
        assert other.returncode == 2
        assert "had another data;" in other.stderr
        (tmp_path / data.name).unlink()
        done = saten_edge_command(*arguments(student, dense, data, out, *self.STEPS, "--resume"))
        assert done.returncode == 0, done.stderr
        assert sha256_file(out / "model.safetensors") == sha256_file(uninterrupted / "model.safetensors")
        assert sha256_file(out / "model.safetensors") != sha256_file(student / "model.safetensors")
        losses = [json.loads((path / "metrics.json").read_text())["history"] for path in (out, uninterrupted)]
        assert losses[0] == losses[1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]

    def test_ctrl_c_keeps_what_was_trained(self, student, dense, data, tmp_path):
        out = tmp_path / "out"
        process = start(arguments(student, dense, data, out, "--steps", 100_000, "--save-every", 5))
        wait_for(lambda: list((tmp_path / ".out.training").glob("checkpoint-*/trainer_state.json")), process)
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        # two seconds on a quiet machine
        assert time.monotonic() - pressed < 10
        assert process.returncode in (130, -signal.SIGINT)
        assert "--resume" in stderr
        assert "Traceback" not in stderr
        assert [path.name for path in tmp_path.iterdir()] == [".out.training"]


def test_two_processes_train_as_one_with_twice_the_batch(student, dense, data, tmp_path, saten_edge_command):
    """By gloo, all of it through torchrun; only the first process writes and talks."""
    common = ("--steps", 4, "--max-length", 16, "--fp32", "--teacher", dense, "--data", data)
    command = ["finetune", student, "-o", tmp_path / "two", *common, "--batch-size", 8]
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "-m",
        "saten_edge",
        *map(str, command),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps, loss") == 1
    for name, size in (("one", 16), ("half", 8)):
        single = saten_edge_command("finetune", student, "-o", tmp_path / name, *common, "--batch-size", size)
        assert single.returncode == 0, single.stderr
    two, one, half, before = (
        load_file(path / "model.safetensors")
        for path in (*(tmp_path / name for name in ("two", "one", "half")), student)
    )

    def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
        return max(float((tensor.float() - second[name].float()).abs().max()) for name, tensor in first.items())

    # Adam divides by a gradient's size, so rounding may turn the step of an entry that has almost none; 4 steps of
    # at most 5e-4 are the scale that the difference is small on
    moved = distance(before, one)
    assert moved > 1e-4
    mean = [
        sum(float((t.float() - o[n].float()).abs().mean()) for n, t in one.items() if t.is_floating_point())
        for o in (two, half)
    ]
    assert mean[0] < 0.02 * mean[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "one", "two"]


class TestData:
    def tune(self, model: Path, out: Path, data: Path, **options: Any) -> dict[str, Any]:
        schedule = saten_edge.Schedule(steps=2, batch_size=4, max_length=16)
        return saten_edge.finetune(model, out, data, saten_edge.FinetuneOptions(schedule=schedule, **options))

    def test_csv_and_json_lines_say_the_same(self, tiny_bert, texts, tmp_path):
        rows = [{"text_a": text, "text_b": f'"{text}", x', "label": k / 4} for k, text in enumerate(texts[:8])]
        write_lines(tmp_path / "data.jsonl", rows)
        lines = [f'{row["text_a"]},"{row["text_b"].replace(chr(34), chr(34) * 2)}",{row["label"]}' for row in rows]
        (tmp_path / "data.csv").write_text("\n".join(["text_a,text_b,label", *lines]))
        found = [self.tune(tiny_bert, tmp_path / f"out-{end}", tmp_path / f"data.{end}") for end in ("csv", "jsonl")]
        assert found[0]["history"] == found[1]["history"]
        assert found[0]["settings"]["task"] == "text-regression"

    def test_a_new_regression_head_starts_at_the_mean_label(self, tiny_bert, texts, tmp_path):
        """The first loss is then the labels' variance, and not the square of their mean besides."""
        rows = [{"text": text, "label": 50.5 + k % 2} for k, text in enumerate(texts[:32])]
        write_lines(tmp_path / "data.jsonl", rows)
        found = self.tune(tiny_bert, tmp_path / "out", tmp_path / "data.jsonl", task="text-regression")
        assert found["history"][0]["loss"] < 10

    def test_a_folder_of_the_datasets_library(self, tiny_bert, texts, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        (tmp_path / "set").mkdir()
        rows = [{"sentence1": text, "sentence2": text, "label": k % 2} for k, text in enumerate(texts[:8])]
        write_lines(tmp_path / "set" / "train.jsonl", rows)
        metrics = self.tune(tiny_bert, tmp_path / "out", tmp_path / "set")
        assert metrics["settings"]["task"] == "text-classification"
        with pytest.raises(DataError, match="no data set with a split 'nowhere'"):
            self.tune(tiny_bert, tmp_path / "other", tmp_path / "set", split="nowhere")

    @pytest.mark.parametrize(
        ("rows", "options", "message"),
        [
            ([], {}, "is empty"),
            ([{"text": "a", "label": 0}, {"text": "b"}], {}, r"data\.jsonl:2: has no label"),
            ([{"text": "a"}, {"text": "b"}], {"task": "text-classification"}, "has no labels"),
            ([{"text": "a", "text_a": "b", "label": 0}], {}, "its columns are text, text_a, label; expected text, or"),
            ([{"text": "a", "label": 0}, {"text_a": "a", "label": 1}], {}, r"data\.jsonl:2: has text_a, label"),
            ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], {}, "all labels are 1; expected two classes"),
            ([{"text": "a", "label": 0}, {"text": 7, "label": 1}], {}, r"data\.jsonl:2: text must be text"),
            ([{"image": "none.png", "label": 0}], {}, r"data\.jsonl:1: no image at"),
            ([{"text": "a", "label": 0.5}, {"text": "b", "label": 1}], {"task": "image-classification"}, "have image"),
            ([{"text": "a", "label": 0}, {"text": "b", "label": 1}], {"task": "poetry"}, "--task 'poetry': there are"),
        ],
    )
    def test_what_cannot_be_trained_on_is_refused(self, rows, options, message, tiny_bert, tmp_path):
        write_lines(tmp_path / "data.jsonl", rows)
        with pytest.raises(SatenError, match=message):
            self.tune(tiny_bert, tmp_path / "out", tmp_path / "data.jsonl", **options)
        assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]

    @pytest.mark.parametrize("content", [None, '{"image": "a"}\n', "{"])
    def test_what_judges_is_read_before_the_models_are(self, content, tiny_bert, data, tmp_path, monkeypatch):
        monkeypatch.setattr(job, "load_model", lambda *_, **__: pytest.fail("loaded a model all the same"))
        judge = tmp_path / "judge.jsonl"
        if content is not None:
            judge.write_text(content)
        with pytest.raises(DataError, match=r"judge\.jsonl"):
            self.tune(tiny_bert, tmp_path / "out", data, judge=str(judge))

    def test_what_is_learned_from_is_hashed_once(self, tiny_bert, data, monkeypatch):
        """Of pictures that reads every file."""
        hashed = []
        described = Examples.described
        monkeypatch.setattr(Examples, "described", lambda self: hashed.append(self) or described(self))
        schedule = saten_edge.Schedule(steps=2, batch_size=4)
        found = job.prepare(tiny_bert, str(data), None, "train", None, None, "test", schedule, None)
        assert len(hashed) == 1
        assert found.settings["data"] == found.stage.inputs["data"] == described(found.examples)

    def test_a_teacher_with_other_labels_is_refused(self, student, make_tiny, texts, tmp_path):
        write_lines(tmp_path / "data.jsonl", [{"text": text, "label": k % 2} for k, text in enumerate(texts)])
        three = make_tiny("bert", "text-classification", num_labels=3)
        with pytest.raises(SatenError, match=r"logits|labels"):
            self.tune(student, tmp_path / "out", tmp_path / "data.jsonl", teacher=three)
        assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]

    def test_an_output_that_exists_is_refused(self, tiny_bert, data, tmp_path):
        with pytest.raises(UsageError, match="already exists"):
            self.tune(tiny_bert, tmp_path, data)


def test_metrics_say_what_was_done(student, dense, data, tmp_path, saten_edge_command):
    shutil.copy(student / "saten_layers.json", tmp_path)
    done = saten_edge_command(
        *arguments(student, dense, data, tmp_path / "out", "--steps", 3, "--judge", data, "--json", "--quiet")
    )
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads(done.stdout)
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["steps"], metrics["ended"]) == (3, "steps")
    assert metrics["settings"]["schedule"]["learning_rate"] == LABEL_RATE
    assert (
        metrics["before"].keys()
        == metrics["after"].keys()
        == {"accuracy", "binary_f1", "macro_f1", "matthews", "examples"}
    )
    layers = json.loads((student / "saten_layers.json").read_text())["layers"]
    assert metrics["layer_errors"].keys() == {layer["name"] for layer in layers}
    assert all(0 < error < 2 for error in metrics["layer_errors"].values())
    assert (tmp_path / "out" / "saten_layers.json").read_text() == (student / "saten_layers.json").read_text()
