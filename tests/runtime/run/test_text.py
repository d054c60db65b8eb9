from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Bundle
from saten_runtime.errors import BundleError, UsageError
from saten_runtime.run.text import Encoder, random_feeds

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def test_padding_goes_to_the_longest_row_of_the_batch(tiny: Path) -> None:
    encoder = Encoder(Bundle.open(tiny))
    feeds = encoder.feeds(encoder.encode(["w0", "w1 w2 w3"]))
    assert feeds["input_ids"].tolist() == [[1, 4, 2, 0, 0], [1, 5, 6, 7, 2]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert feeds["token_type_ids"].tolist() == [[0] * 5] * 2
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int64)}


def test_padding_id_is_the_manifests(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle("pad", manifest={"tokenizer": {"file": "tokenizer.json", "pad_id": 3, "max_length": 48}})
    encoder = Encoder(Bundle.open(folder))
    assert encoder.feeds(encoder.encode(["w0", "w1 w2"]))["input_ids"].tolist() == [[1, 4, 2, 3], [1, 5, 6, 2]]


def test_pairs_have_two_segments(tiny: Path) -> None:
    encoder = Encoder(Bundle.open(tiny))
    feeds = encoder.feeds(encoder.encode([("w0", "w1 w2")]))
    assert feeds["input_ids"].tolist() == [[1, 4, 2, 5, 6, 2]]
    assert feeds["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]


def test_long_texts_are_cut(tiny: Path) -> None:
    rows = Encoder(Bundle.open(tiny)).encode(["w1 " * 500, ("w1 " * 500, "w2 " * 500)])
    assert [len(row) for row in rows] == [48, 48]
    assert rows[0].ids[-1] == 2


CUT = "takes 48 tokens of a text; what is beyond them is cut off, as of one here"


def test_a_cut_is_said_once(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = Encoder(Bundle.open(tiny))
    encoder.encode(["w1 " * 46, ""])
    assert not caplog.messages
    for texts in (["w1", "w1 " * 47], ["w1 " * 10_000], ["w2 " * 10_000] * 3):
        assert max(len(row) for row in encoder.encode(texts)) == 48
    assert caplog.messages == [f"tiny: {CUT}"]


def test_a_command_says_a_cut_on_stderr(tiny: Path, saten_run: Callable[..., Any]) -> None:
    whole, cut = (saten_run("predict", tiny, *["w1 " * tokens] * 2) for tokens in (46, 10_000))
    assert (whole.returncode, whole.stderr) == (0, "")
    assert (cut.returncode, cut.stderr) == (0, f"tiny: {CUT}\n")


def test_a_cut_text_of_words_is_said_once(task_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    encoder = Encoder(Bundle.open(task_bundle("token-classification")))
    assert [len(row) for (row, *_) in encoder.windows([["w1"] * 10_000, ["w2"] * 47])] == [48, 48]
    assert caplog.messages == [f"token-classification: {CUT}"]


def test_windows_of_a_long_context_are_no_cut(task_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture):
    (windows,) = Encoder(Bundle.open(task_bundle("question-answering"))).windows([("w1", "w2 " * 10_000)])
    assert len(windows) > 200
    assert not caplog.messages


def test_more_texts_than_are_encoded_at_once(tiny: Path) -> None:
    texts = [f"w{index % 60}" for index in range(1100)]
    rows = Encoder(Bundle.open(tiny)).encode(texts)
    assert [row.ids[1] for row in rows] == [4 + index % 60 for index in range(1100)]


def test_broken_tokenizer_is_named(copy_of: Callable[[Path], Path], tiny: Path) -> None:
    folder = copy_of(tiny)
    bundle = Bundle.open(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Encoder(bundle)


def test_random_feeds_are_the_same_every_time_and_valid() -> None:
    feeds = random_feeds(INPUTS, vocabulary=64, batch=3, tokens=50)
    again = random_feeds(INPUTS, vocabulary=64, batch=3, tokens=50)
    for name in INPUTS:
        assert feeds[name].shape == (3, 50)
        assert feeds[name].dtype == np.int64
        np.testing.assert_array_equal(feeds[name], again[name])
    assert feeds["input_ids"].min() >= 0
    assert feeds["input_ids"].max() < 64
    assert len(np.unique(feeds["input_ids"])) > 30
    assert feeds["attention_mask"].all()
    assert list(random_feeds(["input_ids"], vocabulary=9, batch=1, tokens=2)) == ["input_ids"]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (9, 0, 1), (9, 1, 0), (9, 1, -3)])
def test_random_feeds_of_no_size_are_refused(sizes: tuple[int, int, int]) -> None:
    vocabulary, batch, tokens = sizes
    with pytest.raises(UsageError, match="at least 1"):
        random_feeds(INPUTS, vocabulary=vocabulary, batch=batch, tokens=tokens)
