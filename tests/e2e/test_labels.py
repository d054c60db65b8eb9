"""`finetune` as a person calls it: the task follows from the model, columns have their usual names or are named."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]

QUICK = ("--steps", 2, "--batch-size", 4, "--fp32")


@pytest.fixture
def classifier(make_tiny: Callable[..., Path]) -> Path:
    names = {0: "bad", 1: "good", 2: "fair"}
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return make_tiny("distilbert", "text-classification", **labels)


@pytest.fixture
def tune(saten_edge: Command, tmp_path: Path) -> Callable[..., Done]:
    """tune(model, data, *options) -> the finished command, which writes `out`."""
    return lambda model, data, *options: saten_edge(
        "finetune", model, "-o", "out", "--data", data, *QUICK, *options, cwd=tmp_path
    )


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], *, encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def written(out: Path) -> tuple[str, dict[str, Any]]:
    """The class of the model in a folder, and what `metrics.json` says was done."""
    (kind,) = json.loads((out / "config.json").read_text())["architectures"]
    return kind, json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    "columns",
    [
        ("sentence", "label"),
        ("text", "labels"),
        ("idx", "sentence1", "sentence2", "label"),
        ("premise", "hypothesis", "label"),
        ("question", "sentence", "label"),
        ("text", "text_pair", "label"),
        ("text", "tokens", "label"),
    ],
    ids=",".join,
)
def test_a_classifier_stays_one(
    columns: tuple[str, ...], encoding: str, classifier: Path, texts: list[str], tmp_path: Path, tune: Command
) -> None:
    """Whatever the columns are called, and however the file begins."""
    rows = [{name: k % 3 if "label" in name else f"{text} {name}" for name in columns} for k, text in enumerate(texts)]
    done = tune(classifier, write_csv(tmp_path / "data.csv", rows, encoding=encoding))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("fine-tune distilbert for text-classification on 96 examples")
    assert written(tmp_path / "out")[0] == "DistilBertForSequenceClassification"


def test_columns_and_labels_by_their_names(classifier: Path, texts: list[str], tmp_path: Path, tune: Command) -> None:
    rows = [{"body": text, "stars": ("good", "bad", "fair")[k % 3]} for k, text in enumerate(texts)]
    data = write_csv(tmp_path / "data.csv", rows)
    done = tune(classifier, data)
    assert (done.returncode, done.stdout) == (2, "")
    expected = "expected text, or text_a and text_b, or image, or words, or question and context, and label"
    assert f"its columns are body, stars; {expected}" in done.stderr
    done = tune(classifier, data, "--columns", "text=body,label=mark")
    assert "has no column 'mark'; its columns are body, stars" in done.stderr
    done = tune(classifier, data, "--columns", "text=body,label=stars", "--judge", data)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label2id"] == {"bad": 0, "good": 1, "fair": 2}
    rows[0]["stars"] = "superb"
    done = tune(classifier, write_csv(data, rows), "--columns", "text=body,label=stars", "--overwrite")
    assert done.returncode == 2
    assert "example 1 has label 'superb'; the model knows bad, good, fair" in done.stderr


def test_a_new_head_takes_the_names_of_its_labels(
    tiny_bert: Path, texts: list[str], tmp_path: Path, tune: Command
) -> None:
    rows = [{"sentence": text, "label": ("spam", "ham")[k % 2]} for k, text in enumerate(texts)]
    done = tune(tiny_bert, write_csv(tmp_path / "data.csv", rows))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "ham", "1": "spam"}


def test_a_classifier_learns_from_its_teacher_without_labels(
    classifier: Path, texts: list[str], tmp_path: Path, tune: Command
) -> None:
    data = write_csv(tmp_path / "data.csv", [{"text": text} for text in texts])
    done = tune(classifier, data)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no labels; expected a column label" in done.stderr
    assert "compress" not in done.stderr
    done = tune(classifier, data, "--teacher", classifier)
    assert done.returncode == 0, done.stderr
    assert "for text-classification, from the teacher alone, on 96 examples" in done.stderr
    kind, metrics = written(tmp_path / "out")
    assert kind == "DistilBertForSequenceClassification"
    assert metrics["settings"]["distillation"]["label_weight"] == 0


def test_embeddings_stay_embeddings_where_the_texts_have_labels(
    tiny_bert: Path, classifier: Path, texts: list[str], tmp_path: Path, saten_edge: Command, tune: Command
) -> None:
    """README's own sequence; and a teacher that is none."""
    data = write_csv(tmp_path / "data.csv", [{"text": text, "label": k % 2} for k, text in enumerate(texts)])
    options = ("--budget", 0.4, "--rounds", 1, "--calibration", data)
    done = saten_edge("compress", tiny_bert, "-o", "saten", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = tune("saten", data, "--teacher", tiny_bert)
    assert done.returncode == 0, done.stderr
    assert "for feature-extraction on 96 examples" in done.stderr
    done = tune(classifier, data, "--teacher", tiny_bert, "--overwrite")
    assert done.returncode == 2
    assert f"--teacher {tiny_bert}: is for feature-extraction, expected a model for text-classification" in done.stderr


def test_texts_are_as_long_as_the_model_reads_and_a_cut_is_said(
    classifier: Path, texts: list[str], tmp_path: Path, tune: Command
) -> None:
    rows = [{"text": " ".join([text] * (1 + 40 * (k < 3))), "label": k % 3} for k, text in enumerate(texts[:24])]
    data = write_csv(tmp_path / "data.csv", rows)
    done = tune(classifier, data)
    assert done.returncode == 0, done.stderr
    assert "on 24 examples, 3 of them cut to 96 tokens" in done.stderr
    assert written(tmp_path / "out")[1]["cut"] == {"examples": 3, "tokens": 96}
    done = tune(classifier, data, "--max-length", 97, "--overwrite")
    assert done.returncode == 2
    assert "--max-length 97: the model reads 96 tokens at most" in done.stderr


def test_an_image_model_does_not_take_texts(
    make_tiny: Callable[..., Path], texts: list[str], tmp_path: Path, tune: Command
) -> None:
    data = write_csv(tmp_path / "data.csv", [{"text": text} for text in texts])
    for task in ("image-classification", "feature-extraction"):
        model = make_tiny("vit", task)
        done = tune(model, data, "--teacher", model)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "image" in done.stderr
