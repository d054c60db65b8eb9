"""Predictions against float64 arithmetic on the weights the bundle was built from."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Runner
from saten_runtime.bundle.manifest import Postprocess
from saten_runtime.errors import BundleError, InvalidRun, UsageError
from saten_runtime.records.files import sha256_file
from saten_runtime.run.pooling import pool
from saten_runtime.vocabulary.tasks import TASKS

TEXTS = ["w1", "w2 w3 w4 w5 w6", "w7 w8", "", "w9 strange w10", " ".join(f"w{k}" for k in range(60))]
PAD, CLS, SEP, UNK, MAX_LENGTH = 0, 1, 2, 3, 48
EPS = float(np.finfo(np.float32).eps)


def seeded(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def ids_of(text: str) -> list[int]:
    words = [4 + int(word[1:]) if word.startswith("w") else UNK for word in text.split()]
    return [CLS, *words[: MAX_LENGTH - 2], SEP]


def expected_vectors(texts: list[str], pooling: str = "mean") -> tuple[np.ndarray, np.ndarray]:
    """Exact vectors and the bound of what float32 may lose: γ_k · Σ|products|, k = 8 + tokens + 2."""
    table, matrix = seeded(64, 8).astype(float), seeded(8, 8).astype(float)
    vectors, bounds = [], []
    for text in texts:
        ids = ids_of(text)
        hidden, size = table[ids] @ matrix, np.abs(table[ids]) @ np.abs(matrix)
        take = (lambda rows: rows[0]) if pooling == "cls" else (lambda rows: rows.mean(axis=0))
        vectors.append(take(hidden))
        bounds.append((8 + len(ids) + 2) * EPS * take(size))
    return np.array(vectors), np.array(bounds)


def check_vectors(actual: np.ndarray, texts: list[str], pooling: str = "mean") -> None:
    expected, bound = expected_vectors(texts, pooling)
    assert actual.shape == expected.shape
    assert (np.abs(actual - expected) <= bound).all()


@pytest.fixture(scope="module")
def plain(make_bundle: Callable[..., Path]) -> Runner:
    return Runner.load(make_bundle("plain", normalize=False))


@pytest.fixture
def without_special_tokens(copy_of: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """A copy of a bundle whose tokenizer, as a decoder's often does, makes no token of an empty text."""

    def make(folder: Path) -> Path:
        copied = copy_of(folder)
        tokenizer, manifest = (copied / name for name in ("tokenizer.json", "saten_edge.json"))
        tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "post_processor": None}))
        values = json.loads(manifest.read_text())
        entry = {"bytes": tokenizer.stat().st_size, "sha256": sha256_file(tokenizer)}
        manifest.write_text(json.dumps({**values, "files": {**values["files"], "tokenizer.json": entry}}))
        return copied

    return make


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_a_text_without_a_token_is_named(
    text: str, without_special_tokens: Callable[[Path], Path], tiny: Path, task_bundle: Callable[..., Path]
) -> None:
    for folder in (tiny, task_bundle("text-regression"), task_bundle("token-classification")):
        runner = Runner.load(without_special_tokens(folder))
        with pytest.raises(UsageError, match="text 2: has no token, and the model reads at least one"):
            runner.predict(["w1 w2", text, "w3"])
        assert len(runner.predict([])) == 0
        assert len(runner.predict(["w1"])) == 1


def test_a_prompt_without_a_token_is_refused(
    without_special_tokens: Callable[[Path], Path], task_bundle: Callable[..., Path]
) -> None:
    runner = Runner.load(without_special_tokens(task_bundle("text-generation")))
    with pytest.raises(UsageError, match="the prompt has no token; a decoder needs at least one"):
        list(runner.generate(""))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_mean_pooling_for_any_batch_size(plain: Runner, batch_size: int) -> None:
    check_vectors(plain.predict(TEXTS, batch_size=batch_size), TEXTS)


def test_cls_pooling(make_bundle: Callable[..., Path]) -> None:
    runner = Runner.load(make_bundle("cls", normalize=False, pooling="cls"))
    check_vectors(runner.predict(TEXTS), TEXTS, "cls")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda v: v[::-1], id="order reversed"),
        pytest.param(lambda v: np.roll(v, 1, axis=0), id="shifted by one text"),
        pytest.param(lambda v: np.roll(v, 1, axis=1), id="shifted by one column"),
        pytest.param(lambda v: v * (1 + 1e-4), id="scaled a little"),
        pytest.param(np.zeros_like, id="zeros"),
    ],
)
def test_the_check_of_vectors_catches(plain: Runner, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(AssertionError):
        check_vectors(spoil(plain.predict(TEXTS)), TEXTS)


def test_the_check_of_vectors_catches_padding_that_counts() -> None:
    hidden, mask = np.ones((1, 4, 2)), np.array([[1, 1, 0, 0]])
    hidden[0, 2:] = 9
    np.testing.assert_array_equal(pool(hidden, mask, Postprocess("mean")), [[1, 1]])
    assert (pool(hidden, np.ones_like(mask), Postprocess("mean")) != 1).all()


def test_normalized_vectors_have_length_one_and_the_same_direction(tiny: Path, plain: Runner) -> None:
    vectors, raw = Runner.load(tiny).predict(TEXTS), plain.predict(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=8 * EPS)
    np.testing.assert_allclose(vectors * np.linalg.norm(raw, axis=1, keepdims=True), raw, rtol=16 * EPS, atol=16 * EPS)


def test_a_text_of_nothing_but_padding_has_no_nan() -> None:
    assert pool(np.ones((1, 3, 2)), np.zeros((1, 3), np.int64), Postprocess("mean", normalize=True)).tolist() == [
        [0, 0]
    ]


def test_pooling_none_needs_pooled_output() -> None:
    mask = np.ones((2, 3), np.int64)
    np.testing.assert_array_equal(pool(np.eye(2), mask, Postprocess("none")), np.eye(2))
    with pytest.raises(BundleError, match="3 axes"):
        pool(np.ones((2, 3, 4)), mask, Postprocess("none"))
    with pytest.raises(BundleError, match="'median'"):
        pool(np.ones((2, 3, 4)), mask, Postprocess("median"))


@pytest.mark.parametrize("memory", ["fast", "small"])
def test_memory_modes_agree(plain: Runner, memory: str) -> None:
    runner = Runner.load(plain.bundle, memory=memory, threads=2)
    check_vectors(runner.predict(TEXTS), TEXTS)


def test_no_texts_give_no_rows_of_the_right_width(tiny: Path, classifier: Path) -> None:
    assert Runner.load(tiny).predict([]).shape == (0, 8)
    assert Runner.load(classifier).predict([]).probabilities.shape == (0, 3)


def test_only_the_inputs_of_the_manifest_are_fed(make_bundle: Callable[..., Path]) -> None:
    runner = Runner.load(make_bundle("ids-only", normalize=False, inputs=("input_ids",)))
    check_vectors(runner.predict(TEXTS, batch_size=1), TEXTS)


def test_an_input_nobody_makes_is_named(make_bundle: Callable[..., Path]) -> None:
    runner = Runner.load(make_bundle("pixels", manifest={"inputs": ["pixel_values"]}))
    with pytest.raises(BundleError, match="'pixel_values'"):
        runner.predict(["w1"])


def check_classes(labels: np.ndarray, probabilities: np.ndarray, texts: list[str]) -> None:
    table, matrix = seeded(64, 8).astype(float), seeded(8, 3).astype(float)
    logits = np.array([(table[ids_of(text)]).mean(axis=0) @ matrix for text in texts])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(labels, logits.argmax(axis=1))
    np.testing.assert_allclose(probabilities, expected, rtol=64 * EPS * (1 + np.abs(logits).max()))


def test_classification(classifier: Path) -> None:
    # One text per run: the toy graph averages over all tokens, padding too.
    result = Runner.load(classifier).predict(TEXTS, batch_size=1)
    check_classes(result.labels, result.probabilities, TEXTS)
    for labels, probabilities in (
        (np.roll(result.labels, 1), result.probabilities),
        (result.labels, result.probabilities[:, ::-1]),
        (result.labels, result.probabilities * 1.001),
    ):
        with pytest.raises(AssertionError):
            check_classes(labels, probabilities, TEXTS)


def test_records_of_every_task_are_plain_data(tiny: Path, classifier: Path, task_bundle: Callable[..., Path]) -> None:
    rater = task_bundle("text-regression")
    bundles = {"feature-extraction": tiny, "text-classification": classifier, "text-regression": rater}
    assert set(bundles) | {"token-classification", "question-answering"} | {
        "image-classification",
        "text-generation",
    } == set(TASKS)
    for folder in bundles.values():
        runner = Runner.load(folder)
        records = runner.predictor.records(runner.predict(["w1", "w2"]), runner.bundle)
        assert len(records) == 2
        for value in records[0].values():
            assert isinstance(value, (int, float, list))


def test_unknown_task_is_refused(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match="'telepathy'"):
        Runner.load(make_bundle("odd", manifest={"task": "telepathy"}))


def test_classifier_without_logits_is_refused(make_bundle: Callable[..., Path]) -> None:
    runner = Runner.load(make_bundle("odd", manifest={"task": "text-classification"}))
    with pytest.raises(BundleError, match="no output 'logits'"):
        runner.predict(["w1"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_output_names_the_bundle(make_bundle: Callable[..., Path], value: float) -> None:
    table = seeded(64, 8)
    table[10, 3] = value
    runner = Runner.load(make_bundle("spoiled", table=table))
    runner.predict(["w1"])
    with pytest.raises(InvalidRun, match=r"spoiled.*NaN or infinity"):
        runner.predict(["w1", "w6"])


def test_run_gives_raw_outputs_and_refuses_other_feeds(tiny: Path) -> None:
    runner = Runner.load(tiny)
    feeds = {name: np.ones((2, 5), np.int64) for name in runner.bundle.manifest.inputs}
    assert runner.run(feeds)["last_hidden_state"].shape == (2, 5, 8)
    bad: list[dict[str, Any]] = [
        {},
        {**feeds, "more": feeds["input_ids"]},
        {**feeds, "input_ids": np.ones((2, 5), np.float32)},
    ]
    for feeds in bad:
        with pytest.raises(UsageError) as caught:
            runner.run(feeds)
        assert "\n" not in str(caught.value)


def test_arguments_are_checked(tiny: Path) -> None:
    with pytest.raises(UsageError, match="one string"):
        Runner.load(tiny).predict("w1")
    with pytest.raises(UsageError, match="batch_size 0"):
        Runner.load(tiny).predict(["w1"], batch_size=0)
    with pytest.raises(UsageError, match="'huge'"):
        Runner.load(tiny, memory="huge")
    with pytest.raises(UsageError, match="threads 0"):
        Runner.load(tiny, threads=0)


def test_threads_share_one_runner(plain: Runner) -> None:
    failures: list[BaseException] = []

    def work(texts: list[str]) -> None:
        try:
            for _ in range(20):
                check_vectors(plain.predict(texts, batch_size=2), texts)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(TEXTS[k:] + TEXTS[:k],)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
