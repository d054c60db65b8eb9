from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saten_runtime import Runner
from saten_runtime.accuracy import measures
from saten_runtime.accuracy.data import KINDS, Data
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.accuracy.measures import MEASURES
from saten_runtime.accuracy.metrics import cosines, pearson
from saten_runtime.accuracy.results import EvalResult
from saten_runtime.errors import DataError, UsageError
from saten_runtime.records.files import sha256_file
from saten_runtime.vocabulary.tasks import TASKS

WriteLines = Callable[..., Path]
QUERIES = [f"w{k} w{k + 1}" for k in range(20)]
ANSWERS = [f"w{k} w{k + 2} w{k + 1}" for k in range(20)]


@pytest.fixture
def search_file(write_lines: WriteLines) -> Path:
    return write_lines([{"query": q, "answer": a} for q, a in zip(QUERIES, ANSWERS, strict=True)])


def brute_force_recall(folder: Path, places: int) -> float:
    runner = Runner.load(folder)
    queries, answers = runner.predict(QUERIES).astype(float), runner.predict(ANSWERS).astype(float)
    found = 0
    for k, query in enumerate(queries):
        better = sum(float(query @ answer) > float(query @ answers[k]) for answer in answers)
        found += better < places
    return found / len(queries)


def check_search(result: EvalResult, folders: list[Path]) -> None:
    for row, folder in zip(result.rows, folders, strict=True):
        assert row.metrics["recall_at_1"] == brute_force_recall(folder, 1)
        assert row.metrics["recall_at_10"] == brute_force_recall(folder, 10)


def test_search(search_file: Path, tiny: Path, wrong: Path) -> None:
    result = evaluate([tiny, wrong], search_file)
    check_search(result, [tiny, wrong])
    assert 0 < brute_force_recall(tiny, 1) < 1
    with pytest.raises(AssertionError):
        check_search(result, [wrong, tiny])
    assert "cosine" not in result.rows[0].metrics


def test_cosine_to_a_reference(search_file: Path, tiny: Path, slow: Path, wrong: Path) -> None:
    rows = evaluate([tiny, slow, wrong], search_file, reference=tiny).rows
    texts = [*QUERIES, *ANSWERS]
    expected = cosines(Runner.load(wrong).predict(texts), Runner.load(tiny).predict(texts)).mean()
    assert rows[0].metrics["cosine"] == pytest.approx(1, abs=1e-6)
    assert rows[1].metrics["cosine"] == pytest.approx(1, abs=1e-6)
    assert rows[2].metrics["cosine"] == pytest.approx(expected, abs=1e-6)
    assert expected < 0.9


def test_json_shape(search_file: Path, tiny: Path) -> None:
    result = evaluate([tiny, tiny], search_file, reference=tiny).to_json()
    assert {key: result[key] for key in ("schema_version", "task", "data")} == {
        "schema_version": 1,
        "task": "search",
        "data": {"file": "data.jsonl", "sha256": sha256_file(search_file), "count": 20},
    }
    assert [row["bundle"] for row in result["rows"]] == ["tiny", "tiny#2"]
    assert set(result["rows"][0]) == {"bundle", "metrics", "seconds", "agreement"}
    assert list(result["rows"][0]["metrics"]) == ["recall_at_1", "recall_at_10", "mrr_at_10", "cosine"]


def test_similarity(write_lines: WriteLines, tiny: Path) -> None:
    labels = np.random.default_rng(2).random(20)
    rows = [{"text_a": q, "text_b": a, "label": v} for q, a, v in zip(QUERIES, ANSWERS, labels, strict=True)]
    metrics = evaluate([tiny], write_lines(rows)).rows[0].metrics
    runner = Runner.load(tiny)
    alike = cosines(runner.predict(QUERIES), runner.predict(ANSWERS))
    assert metrics["pearson"] == pytest.approx(pearson(alike, labels), abs=1e-6)
    assert metrics["pearson"] != pytest.approx(pearson(alike, np.roll(labels, 1)), abs=1e-3)
    assert set(metrics) == {"pearson", "spearman"}


def test_classification(write_lines: WriteLines, classifier: Path) -> None:
    labels = Runner.load(classifier).predict(QUERIES).labels.tolist()
    labels[0] = (labels[0] + 1) % 3
    path = write_lines([{"text": q, "label": v} for q, v in zip(QUERIES, labels, strict=True)])
    result = evaluate([classifier], path)
    assert result.task == "classification"
    assert result.rows[0].metrics["accuracy"] == 19 / 20
    assert set(result.rows[0].metrics) == {"accuracy", "binary_f1", "macro_f1", "matthews"}


def test_labels_by_the_names_of_classes() -> None:
    """As the training data may have them."""
    manifest = SimpleNamespace(labels=["bad", "good"])
    runner: Any = SimpleNamespace(bundle=SimpleNamespace(manifest=manifest))

    def wanted(*labels: Any) -> list[int]:
        return list(measures._wanted(runner, Data(Path("data.jsonl"), "0", "texts", {"label": list(labels)})))

    assert wanted("good", "bad", 1) == [1, 0, 1]
    with pytest.raises(DataError, match=r"data\.jsonl: a label is 'fair'; the model knows bad, good"):
        wanted("good", "fair")
    with pytest.raises(DataError, match="a label is not a whole number"):
        wanted("good", 0.5)


def test_numbers_have_no_names() -> None:
    data = Data(Path("data.jsonl"), "0", "pairs", {"label": [1, "good"]})
    with pytest.raises(DataError, match="a label is 'good', expected a finite number"):
        measures._numbers(data)


def test_classification_of_pairs_reads_both_texts(write_lines: WriteLines, classifier: Path) -> None:
    pairs = [(query, " ".join(f"w{59 - k}" for _ in range(8))) for k, query in enumerate(QUERIES)]
    labels = Runner.load(classifier).predict(pairs).labels
    assert (labels != Runner.load(classifier).predict(QUERIES).labels).any()
    path = write_lines([{"text_a": q, "text_b": a, "label": int(v)} for (q, a), v in zip(pairs, labels, strict=True)])
    found = evaluate([classifier], path).rows[0].metrics
    assert found.pop("binary_f1") == (None if labels.max() > 1 else 1.0)
    assert found == {"accuracy": 1.0, "macro_f1": 1.0, "matthews": 1.0}


def test_each_task_has_measures_on_known_data() -> None:
    assert {measure.bundle_task for measure in MEASURES} == set(TASKS)
    assert {measure.data for measure in MEASURES} <= {kind.name for kind in KINDS}
    for one, other in itertools.combinations(MEASURES, 2):
        assert (one.data, one.bundle_task) != (other.data, other.bundle_task)


def test_what_does_not_fit_is_refused(
    search_file: Path, write_lines: WriteLines, tiny: Path, classifier: Path, make_bundle: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match="holds search data, the bundle classifier"):
        evaluate([classifier], search_file)
    pairs = write_lines([{"text_a": "w1", "text_b": "w2", "label": 1}], "pairs.jsonl")
    with pytest.raises(UsageError, match="different tasks"):
        evaluate([tiny, classifier], pairs)
    with pytest.raises(UsageError, match="has the task feature-extraction"):
        evaluate([classifier], pairs, reference=tiny)
    with pytest.raises(UsageError, match="has the task text-classification"):
        evaluate([tiny], pairs, reference=classifier)
    narrow = make_bundle("narrow", matrix=np.ones((8, 3), np.float32))
    with pytest.raises(UsageError, match="3 wide, the reference's 8"):
        evaluate([narrow], search_file, reference=tiny)
