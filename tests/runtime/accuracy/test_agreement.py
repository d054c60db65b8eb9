"""Accuracy against scikit-learn and torch, and agreement between bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Runner
from saten_runtime.accuracy import measures, metrics
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bench.stats import bootstrap
from saten_runtime.errors import DataError, UsageError
from saten_runtime.run.entities import entities

WriteLines = Callable[..., Path]
TEXTS = [f"w{k} w{(7 * k) % 60} w{(3 * k + 1) % 60}" for k in range(60)]


@pytest.mark.parametrize("nats", [1e3, 1e5, 1e300])
def test_a_perplexity_beyond_every_float_is_a_number_still(nats: float) -> None:
    score = measures._score_language
    (value,) = score({"nats": np.array([nats]), "tokens": np.array([1])}).values()
    assert 1e304 < value < np.inf
    assert score({"nats": np.array([6.0]), "tokens": np.array([2])}) == {"perplexity": pytest.approx(np.exp(3))}


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_of_classes_are_sklearns(classes: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(classes)
    wanted = chance.integers(0, classes, 500)
    predicted = np.where(chance.random(500) < 0.6, wanted, chance.integers(0, classes, 500))
    for mine, theirs in (
        (metrics.accuracy, sklearn.accuracy_score),
        (metrics.macro_f1, lambda p, w: sklearn.f1_score(w, p, average="macro")),
        (metrics.matthews, lambda p, w: sklearn.matthews_corrcoef(w, p)),
    ):
        assert mine(predicted, wanted) == pytest.approx(theirs(predicted, wanted), abs=1e-9)
        assert mine(np.roll(predicted, 1), wanted) != pytest.approx(theirs(predicted, wanted), abs=1e-3)


def test_f1_of_class_1_is_sklearns_and_none_of_three_classes() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(5)
    wanted, predicted = chance.integers(0, 2, 300), (chance.random(300) < 0.3).astype(np.int64)
    theirs = sklearn.f1_score(wanted, predicted, average="binary")
    assert metrics.binary_f1(predicted, wanted) == pytest.approx(theirs, abs=1e-9)
    assert metrics.binary_f1(1 - predicted, wanted) != pytest.approx(theirs, abs=1e-3)
    assert metrics.binary_f1(np.zeros(3), np.zeros(3)) == 0.0
    assert metrics.binary_f1(np.array([0, 1, 2]), np.array([0, 1, 1])) is None


def test_correlations_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    a = np.random.default_rng(0).integers(0, 9, 200).astype(float)
    b = a + np.random.default_rng(1).integers(0, 9, 200)
    assert metrics.pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-9)
    assert metrics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


def test_mcnemar_is_the_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    chance = np.random.default_rng(3)
    for _ in range(20):
        one, other = chance.random(80) < 0.8, chance.random(80) < 0.7
        only = int((one & ~other).sum())
        expected = stats.binomtest(only, only + int((other & ~one).sum())).pvalue
        assert metrics.mcnemar(one, other) == pytest.approx(expected, rel=1e-9)
    assert metrics.mcnemar(np.ones(3, bool), np.ones(3, bool)) == 1


def test_entities_and_answers() -> None:
    labels = ["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER", "I-PER"]
    assert entities(labels) == [("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4), ("PER", 5, 6)]
    assert metrics.entity_counts(labels, labels) == (4, 4, 4)
    assert metrics.entity_counts(["O", "B-A"], ["B-A", "O"]) == (0, 1, 1)
    assert metrics.exact_match("The Eiffel tower!", ["eiffel tower"]) == 1
    assert metrics.answer_f1("the red tower", ["tower of Pisa", "red"]) == pytest.approx(2 / 3)
    assert metrics.answer_f1("", ["x"]) == 0


def test_the_bootstrap_covers_the_mean() -> None:
    chance, hits = np.random.default_rng(5), 0
    for seed in range(100):
        values = chance.normal(3, 2, 60)
        (interval,) = bootstrap(lambda chosen, v=values: {"m": float(v[chosen].mean())}, 60, seed).values()
        hits += interval.low <= 3 <= interval.high
    assert 85 <= hits <= 99  # 95 of 100 within three binomial standard deviations, and some must miss


@pytest.fixture
def labelled(classifier: Path, write_lines: WriteLines) -> Path:
    labels = Runner.load(classifier).predict(TEXTS).labels
    labels[::5] = (labels[::5] + 1) % 3
    return write_lines([{"text": text, "label": int(label)} for text, label in zip(TEXTS, labels, strict=True)])


def test_a_bundle_agrees_with_itself_and_not_with_another(
    classifier: Path, make_bundle: Callable[..., Path], labelled: Path
) -> None:
    other = make_bundle(
        "other",
        task="text-classification",
        pooling="none",
        matrix=np.random.default_rng(8).standard_normal((8, 3)).astype(np.float32),
    )
    own, strange = evaluate([classifier, other], labelled, reference=classifier).rows
    assert own.agreement is not None
    assert (own.agreement.same, own.agreement.mcnemar_p) == (1.0, 1.0)
    assert own.agreement.differences["accuracy"].value == 0
    assert strange.agreement is not None
    assert strange.agreement.same is not None
    assert strange.agreement.same < 0.8
    assert strange.agreement.mcnemar_p is not None
    assert strange.agreement.mcnemar_p < 0.01
    interval = strange.agreement.differences["accuracy"]
    assert interval.value == pytest.approx(strange.metrics["accuracy"] - own.metrics["accuracy"])
    assert interval.high < 0


def test_csv_says_the_same_as_json(classifier: Path, labelled: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    path = tmp_path / "data.csv"
    path.write_text("label,text,more\n" + "".join(f'{row["label"]},"{row["text"]}",x\n' for row in rows))
    assert evaluate([classifier], path).rows[0].metrics == evaluate([classifier], labelled).rows[0].metrics
    for bad, words in (
        ("label,text\n1\n", "other fields"),
        ("label,text\nx,y\n", "a label is 'x'; the model knows"),
        ("", "no examples"),
    ):
        path.write_text(bad)
        with pytest.raises(DataError, match=words):
            evaluate([classifier], path)


def test_examples_are_kept_and_taken_over(
    classifier: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "examples.jsonl"
    first = evaluate([classifier], labelled, examples=path).rows
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == len(TEXTS)
    right = [row["values"]["predicted"] == row["values"]["label"] for row in rows]
    assert np.mean(right) == first[0].metrics["accuracy"]
    with pytest.raises(UsageError, match="already exists"):
        evaluate([classifier], labelled, examples=path)
    with monkeypatch.context() as patched:
        patched.setattr(Runner, "load", lambda *_, **__: pytest.fail("it was run again"))
        assert evaluate([classifier], labelled, examples=path, resume=True).rows == first
    path.write_bytes(path.read_bytes()[:-30])
    again = evaluate([classifier], labelled, examples=path, resume=True).rows
    assert again[0].metrics == first[0].metrics
    assert len(path.read_text().splitlines()) == len(TEXTS)


def test_other_tasks(task_bundle: Callable[..., Path], write_lines: WriteLines, tmp_path: Path) -> None:
    folder = task_bundle("text-generation")
    metrics_ = evaluate([folder], write_lines([{"text": "w1 w2 w3"}, {"text": "w9"}])).rows[0].metrics
    parts = [Runner.load(folder).surprise(text) for text in ("w1 w2 w3", "w9")]
    assert metrics_["perplexity"] == pytest.approx(np.exp(sum(n for n, _ in parts) / sum(c for _, c in parts)))
    questions = [
        {"question": "w5", "context": "w1 w10 w12", "answers": ["w10 w12"]},
        {"question": "w5", "context": "w1 w10 w12", "answers": ["w10"]},
    ]
    found = evaluate([task_bundle("question-answering")], write_lines(questions)).rows[0].metrics
    assert found == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}
    picture = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    np.save(tmp_path / "p.npy", picture)
    folder = task_bundle("image-classification")
    label = int(Runner.load(folder).predict([picture]).labels[0])
    images = write_lines([{"image": "p.npy", "label": label}, {"image": "p.npy", "label": (label + 1) % 4}])
    assert evaluate([folder], images).rows[0].metrics == {"top_1": 0.5, "top_5": 1.0}
    folder = task_bundle("token-classification")
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    said = [names[word.label] for word in Runner.load(folder).predict([["w1", "w2", "w3"]])[0]]
    rows: list[dict[str, Any]] = [{"words": ["w1", "w2", "w3"], "labels": said}]
    assert evaluate([folder], write_lines(rows)).rows[0].metrics["accuracy"] == 1
    with pytest.raises(DataError, match="3 words and 2 labels"):
        evaluate([folder], write_lines([{"words": ["w1", "w2", "w3"], "labels": said[1:]}]))
