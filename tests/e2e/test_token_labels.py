"""Models for words and for questions are fine-tuned, compressed and judged, by the same numbers on both sides."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]

LEARN = ("--steps", 40, "--batch-size", 16, "--learning-rate", 3e-3, "--fp32")
QUICK = ("--steps", 2, "--batch-size", 8, "--fp32")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tagged(texts: list[str], words: str = "words", labels: str = "labels") -> list[dict[str, Any]]:
    """The first word is an entity; the last example has more tokens than a model reads."""
    examples = [text.split() for text in [*texts, " ".join(texts)]]
    return [{words: one, labels: ["B-FIRST"] + ["O"] * (len(one) - 1)} for one in examples]


def asked(texts: list[str]) -> list[dict[str, Any]]:
    """The answer is the first word; some contexts are longer than a model reads."""
    contexts = [" ".join(texts[k : k + (12 if k % 8 == 0 else 1)]) for k in range(len(texts))]
    return [{"question": "which first", "context": one, "answers": [one.split()[0]]} for one in contexts]


@pytest.mark.parametrize(
    ("rows", "kind", "metrics"),
    [
        pytest.param(tagged, "BertForTokenClassification", {"entity_f1", "accuracy"}, id="words"),
        pytest.param(asked, "BertForQuestionAnswering", {"exact_match", "f1"}, id="questions"),
    ],
)
def test_from_labels_to_the_same_numbers_on_the_device(
    rows: Callable[[list[str]], list[dict[str, Any]]],
    kind: str,
    metrics: set[str],
    tiny_bert: Path,
    texts: list[str],
    tmp_path: Path,
    saten_edge: Command,
    saten_run: Command,
) -> None:
    data = write(tmp_path / "data.jsonl", rows(texts))
    done = saten_edge("finetune", tiny_bert, "-o", "tuned", "--data", data, "--judge", data, *LEARN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["architectures"] == [kind]
    told = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
    assert told["after"].keys() == {*metrics, "examples"}
    assert all(told["after"][name] > (told["before"][name] or 0) for name in metrics)
    assert told["cut"]["examples"] == (1 if rows is tagged else 0)
    done = saten_edge("export", "tuned", "-o", "bundle", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = saten_run("eval", "bundle", "--data", data, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    found = {
        name: row["metrics"][name]["value"] if isinstance(row["metrics"][name], dict) else row["metrics"][name]
        for name in metrics
    }
    assert found == pytest.approx({name: told["after"][name] for name in metrics}, abs=1.5 / len(texts))


def test_a_student_learns_words_from_its_teacher(
    make_tiny: Callable[..., Path], texts: list[str], tmp_path: Path, saten_edge: Command
) -> None:
    """The names of the columns are those of data sets; calibration reads the words; the labels are the head's."""
    names = {0: "O", 1: "B-FIRST"}
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    dense = make_tiny("bert", "token-classification", **labels)
    data = write(tmp_path / "data.jsonl", tagged(texts, "tokens", "ner_tags"))
    done = saten_edge(
        "compress", dense, "-o", "saten", "--budget", 0.5, "--rounds", 1, "--calibration", data, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    done = saten_edge("finetune", "saten", "-o", "tuned", "--teacher", dense, "--data", data, *LEARN[:4], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "for token-classification on 97 examples, 1 of them cut to 96 tokens" in done.stderr


def test_questions_as_squad_has_them_from_model_to_answer(
    make_tiny: Callable[..., Path], texts: list[str], tmp_path: Path, saten_edge: Command, saten_run: Command
) -> None:
    """A compressed model learns from answers and from its teacher, and finds what it learned on the device."""
    dense = make_tiny("bert", "question-answering")
    rows = asked(texts)
    for row in rows:
        row["answers"] = {"text": row["answers"], "answer_start": [0]}
    data = write(tmp_path / "squad.jsonl", rows)

    def done(run: Command, *arguments: object) -> Done:
        finished = run(*arguments, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        return finished

    done(saten_edge, "compress", dense, "-o", "saten", "--budget", 0.5, "--rounds", 1, "--calibration", data)
    tuned = done(saten_edge, "finetune", "saten", "-o", "tuned", "--teacher", dense, "--data", data, *QUICK)
    assert "for question-answering on 96 examples" in tuned.stderr
    unlabelled = write(tmp_path / "asked.jsonl", [{key: row[key] for key in ("question", "context")} for row in rows])
    taught = done(saten_edge, "finetune", "saten", "-o", "x", "--teacher", dense, "--data", unlabelled, *QUICK, "-q")
    assert taught.stderr == ""
    done(saten_edge, "export", "tuned", "-o", "bundle")
    told = ("bundle", "--context", texts[0], "which first", "--json")
    (answer,) = json.loads(done(saten_run, "predict", *told).stdout)
    assert answer["text"] == texts[0][answer["start"] : answer["end"]]
    assert json.loads(done(saten_run, "eval", "bundle", "--data", data, "--json").stdout)["rows"][0]["metrics"]


def test_what_does_not_fit_is_refused_by_its_place(
    tiny_bert: Path, texts: list[str], tmp_path: Path, saten_edge: Command
) -> None:
    def refused(name: str, rows: list[dict[str, Any]]) -> str:
        done = saten_edge(
            "finetune", tiny_bert, "-o", "out", "--data", write(tmp_path / name, rows), *LEARN[:4], cwd=tmp_path
        )
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    words = tagged(texts[:20])
    words[2]["labels"].pop()
    assert "words.jsonl:3: has " in (said := refused("words.jsonl", words))
    assert "expected one for each word" in said
    questions = asked(texts[:20])
    questions[1]["answers"] = ["not there"]
    assert "questions.jsonl:2: the answer 'not there' does not stand in the context" in refused(
        "questions.jsonl", questions
    )
    questions[1]["answers"] = []
    assert "questions.jsonl:2: has no answer" in refused("questions.jsonl", questions)


def test_csv_keeps_lists_in_cells(tiny_bert: Path, texts: list[str], tmp_path: Path, saten_edge: Command) -> None:
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["words", "labels"])
        writer.writerows(("|".join(row["words"]), "|".join(row["labels"])) for row in tagged(texts[:32]))
    done = saten_edge("finetune", tiny_bert, "-o", "out", "--data", "data.csv", *LEARN[:4], "--steps", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert names == {"0": "B-FIRST", "1": "O"}
