"""Each task against plain arithmetic on the weights of its tiny bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Runner, Sampling
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import Choice
from saten_runtime.cli import main
from saten_runtime.errors import BundleError, DataError, UsageError
from saten_runtime.run.generation import Decoder, choose
from saten_runtime.run.session import make_session

TaskBundle = Callable[..., Path]
EPS = float(np.finfo(np.float32).eps)
LABELS = ["O", "B-A", "I-A", "B-B", "I-B"]
PAD, CLS, SEP, UNK = range(4)


def seeded(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_tags_of_words(task_bundle: TaskBundle) -> None:
    runner = Runner.load(task_bundle("token-classification"))
    texts = ["w1 w2  w3", "w59", ""]
    expected = softmax(seeded(64, 8).astype(float) @ seeded(8, 5).astype(float))
    for found, text in zip(runner.predict(texts, batch_size=2), texts, strict=True):
        assert [text[word.start : word.end] for word in found] == text.split()
        for word, name in zip(found, text.split(), strict=True):
            row = expected[4 + int(name[1:])]
            assert word.label == row.argmax()
            assert word.probability == pytest.approx(row.max(), rel=64 * EPS)
    split = runner.predict([["w1", "w2", "w3"]])[0]
    assert [word.label for word in split] == [word.label for word in runner.predict(["w1 w2 w3"])[0]]
    assert [word.index for word in split] == [0, 1, 2]


def test_records_of_tags_have_names_and_entities(task_bundle: TaskBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(task_bundle("token-classification")), "w1 w2 w3 w4 w5 w6 w7"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [word["name"] for word in record["words"]] == [LABELS[word["label"]] for word in record["words"]]
    assert all(entity["type"] in "AB" for entity in record["entities"])


def test_a_regression_gives_a_number_for_each_text(task_bundle: TaskBundle, write_lines: Callable[..., Path]) -> None:
    folder, texts = task_bundle("text-regression"), ["w1", "w2 w3", "w4 w9 w5"]
    runner = Runner.load(folder)
    got = runner.predict(texts, batch_size=1)  # the toy graph averages over padding, too
    means = [seeded(64, 8)[row.ids].mean(axis=0) for row in runner.encoder.encode(texts)]
    wanted = np.stack(means).astype(float) @ seeded(8, 1).astype(float)[:, 0]
    np.testing.assert_allclose(got, wanted, atol=64 * EPS)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(np.roll(got, 1), wanted, atol=64 * EPS)
    assert runner.predict([]).shape == (0,)
    labels = [1.0, 3.0, 2.5]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    values, metrics = runner.predict(texts), evaluate([folder], write_lines(rows)).rows[0].metrics
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((values - labels) ** 2)))
    assert metrics["pearson"] == pytest.approx(np.corrcoef(values, labels)[0, 1])


def test_an_answer_is_a_span_of_its_context(task_bundle: TaskBundle) -> None:
    runner = Runner.load(task_bundle("question-answering"))
    context = "w1 w2 w10 w11 w12 w3"
    (answer,) = runner.predict([("w10 w12", context)])
    assert answer.text == context[answer.start : answer.end] == "w10 w11 w12"
    assert answer.score == 10


def test_an_answer_far_into_a_long_context_is_found(task_bundle: TaskBundle) -> None:
    runner = Runner.load(task_bundle("question-answering"))
    context = " ".join(["w1"] * 100 + ["w10", "w11", "w12"] + ["w2"] * 100)
    answers = runner.predict([("w5", "w3 w4"), ("w5", context), ("w5", "w10 w12 w7")], batch_size=2)
    assert [answer.text for answer in answers][1:] == ["w10 w11 w12", "w10 w12"]


def test_a_question_without_room_for_context(task_bundle: TaskBundle) -> None:
    runner = Runner.load(task_bundle("question-answering"))
    with pytest.raises(UsageError, match="question too long"):
        runner.predict([(" ".join(["w1"] * 60), "w2")])


@pytest.mark.parametrize("tokens", [32, 33, 40, 44, 45, 46, 60])
def test_a_question_whose_windows_could_not_overlap(tokens: int, task_bundle: TaskBundle) -> None:
    """48 tokens, 3 of them special, windows that share 12: from 33 on `tokenizers` panics."""
    runner = Runner.load(task_bundle("question-answering"))
    pair = (" ".join(["w1"] * tokens), " ".join(["w2"] * 60 + ["w10", "w12"]))
    if tokens > 32:
        with pytest.raises(UsageError, match="question too long"):
            runner.predict([pair])
    else:
        assert runner.predict([pair])[0].text == "w10 w12"


@pytest.mark.parametrize("context", ["", " ", "\n\t"])
def test_a_context_without_a_token(context: str, task_bundle: TaskBundle) -> None:
    runner = Runner.load(task_bundle("question-answering"))
    with pytest.raises(UsageError, match=r"pair 2: its context '.*' has no token to answer with"):
        runner.predict([("w5", "w10 w12"), ("w5", context)])


def test_an_empty_question_is_one(task_bundle: TaskBundle) -> None:
    (answer,) = Runner.load(task_bundle("question-answering")).predict([("", "w1 w10 w12")])
    assert answer.text == "w10 w12"


def test_an_end_before_its_start_is_no_answer(task_bundle: TaskBundle) -> None:
    (answer,) = Runner.load(task_bundle("question-answering")).predict([("w5", "w12 w1 w10")])
    assert answer.score == 5


def test_pictures_are_arrays_or_files(task_bundle: TaskBundle, tmp_path: Path) -> None:
    runner = Runner.load(task_bundle("image-classification"))
    picture = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    found = runner.predict([picture, picture[:, ::-1]])
    logits = ((picture / 255 - 0.5) / 0.25).mean(axis=(0, 1)) @ seeded(3, 4)
    np.testing.assert_allclose(found.probabilities, [softmax(logits)] * 2, rtol=256 * EPS)
    assert found.labels.tolist() == [logits.argmax()] * 2
    np.save(tmp_path / "p.npy", picture)
    (tmp_path / "p.ppm").write_bytes(b"P6 6 4 255\n" + picture.tobytes())
    files, arrays = [tmp_path / "p.npy", str(tmp_path / "p.ppm")], [picture, picture]
    np.testing.assert_array_equal(runner.predict(files).probabilities, runner.predict(arrays).probabilities)
    assert runner.predict([]).labels.shape == (0,)


def expected_logits(ids: list[int]) -> np.ndarray:
    return seeded(64, 8)[ids].astype(float).cumsum(axis=0) @ seeded(8, 64).astype(float)


def greedy(ids: list[int], count: int) -> list[int]:
    made: list[int] = []
    while len(made) < count:
        token = int(expected_logits(ids + made)[-1].argmax())
        if token == SEP:
            break
        made.append(token)
    return made


def prompt_ids(text: str) -> list[int]:
    return [CLS, *(4 + int(word[1:]) for word in text.split()), SEP]


@pytest.mark.parametrize("prompt", ["w1", "w7 w8 w9 w3 w20", ""])
def test_greedy_generation_with_its_cache(task_bundle: TaskBundle, prompt: str) -> None:
    runner = Runner.load(task_bundle("text-generation"))
    ids = list(runner.generate_ids(prompt, Sampling(max_tokens=12)))
    assert ids == greedy(prompt_ids(prompt), 12)
    assert "".join(runner.generate(prompt, Sampling(max_tokens=12))) == runner.encoder.decode(ids)
    (completion,) = runner.predict([prompt])
    assert completion.ids[: len(ids)] == ids


def test_the_check_of_generation_sees_a_cache_that_is_lost() -> None:
    """Without its past, or with it in another order of sums, another token is likeliest for some of the prompts."""
    prompts = [prompt_ids("w1 w2 w3"), prompt_ids("w7 w8 w9 w3 w20"), prompt_ids("w30 w31")]
    assert any(greedy(ids, 12) != greedy(ids[-1:], 12) for ids in prompts)


def test_generation_ends_with_the_context(task_bundle: TaskBundle) -> None:
    entry = {"input": "past.key", "output": "present.key", "heads": 1, "width": 8, "dtype": "float32"}
    runner = Runner.load(task_bundle("text-generation", generation={"stop_ids": [], "cache": [entry]}))
    assert len(list(runner.generate_ids("w1", Sampling(max_tokens=500)))) == 48 - 3 + 1


@pytest.mark.parametrize(("batch", "runs"), [(1, [(1, 4), (1, 5)]), (3, [(3, 4), *[(3, 1)] * 5])])
def test_a_batch_reads_several_tokens_after_others_one_by_one(
    batch: int, runs: list[tuple[int, int]], task_bundle: TaskBundle
) -> None:
    bundle = Bundle.open(task_bundle("text-generation"))
    session, made = make_session(bundle), []

    class Witness:
        get_overridable_initializers = session.get_overridable_initializers

        def run_with_ort_values(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
            made.append(tuple(feeds["input_ids"].shape()))
            return session.run_with_ort_values(names, feeds)

    decoder = Decoder(bundle, Witness())
    ids = np.random.default_rng(0).integers(4, 60, (batch, 9))
    expected = np.stack([expected_logits(row) for row in ids.tolist()])
    # Sums of 9 embeddings of products of 8, in float32.
    bound = 9 * 16 * EPS * float(np.abs(expected).max())
    got = np.concatenate([decoder.step(ids[:, :4]), decoder.step(ids[:, 4:])], axis=1)
    assert made == runs
    assert decoder.past == 9
    assert np.abs(got - expected).max() <= bound
    assert np.abs(got[:, ::-1] - expected).max() > bound


def test_top_p_keeps_the_likeliest_tokens_only() -> None:
    logits, chance = np.log(np.array([0.05, 0.5, 0.15, 0.3])), np.random.default_rng(0)
    draw = lambda p: {choose(logits, Choice(do_sample=True, top_p=p), chance) for _ in range(400)}  # noqa: E731
    assert draw(0.5) == {1}
    assert draw(0.51) == {1, 3}
    assert draw(0.9) == {1, 2, 3}
    assert draw(1.0) == {0, 1, 2, 3}
    drawn = [choose(logits, Choice(do_sample=True), chance) for _ in range(4000)]
    shares = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.05, 0.5, 0.15, 0.3], atol=4 * 0.5 / np.sqrt(4000))
    cold = [choose(logits, Choice(do_sample=True, temperature=0.5), chance) for _ in range(4000)]
    assert np.bincount(cold, minlength=4)[1] / 4000 > 0.6


def test_a_seed_repeats(task_bundle: TaskBundle) -> None:
    runner = Runner.load(task_bundle("text-generation"))
    warm = [list(runner.generate_ids("w1", Sampling(10, 3.0, 0.9, seed))) for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


def test_surprise_is_what_torch_calls_cross_entropy(task_bundle: TaskBundle) -> None:
    torch = pytest.importorskip("torch")
    runner = Runner.load(task_bundle("text-generation"))
    ids = prompt_ids("w7 w8 w9")
    logits = torch.tensor(expected_logits(ids)[:-1])
    expected = float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
    nats, tokens = runner.surprise("w7 w8 w9")
    assert tokens == len(ids) - 1
    # Rounding of the logits: sums of 8 products of up to 5 embeddings, of size up to max|logit|, in float32.
    assert nats == pytest.approx(expected, abs=tokens * 64 * EPS * float(logits.abs().max()))
    assert nats != pytest.approx(runner.surprise("w8 w7 w9")[0], abs=1e-3)


def test_generate_on_the_command_line(task_bundle: TaskBundle, capsys: pytest.CaptureFixture[str]) -> None:
    folder = task_bundle("text-generation")
    assert main(["generate", str(folder), "w1", "-n", "3"]) == 0
    runner = Runner.load(folder)
    assert capsys.readouterr().out == runner.encoder.decode(list(runner.generate_ids("w1", Sampling(3)))) + "\n"


@pytest.mark.parametrize(
    "bad", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 2.0}]
)
def test_impossible_sampling(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**bad)


def test_what_a_bundle_lacks_is_said(task_bundle: TaskBundle, tiny: Path) -> None:
    with pytest.raises(BundleError, match="is not a decoder"):
        list(Runner.load(tiny).generate("w1"))
    with pytest.raises(BundleError, match="has no image settings"):
        Runner.load(task_bundle("image-classification", image=None)).predict([np.zeros((4, 6, 3), np.uint8)])
    with pytest.raises(BundleError, match="has no output 'logits'"):
        Runner.load(task_bundle("text-generation", outputs=["present.key"])).surprise("w1")
    with pytest.raises(DataError, match=r"x\.png: (cannot be read|expected \.npy)"):
        Runner.load(task_bundle("image-classification")).predict(["x.png"])
