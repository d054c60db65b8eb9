"""Tokenizers as sentencepiece makes them: a bundle's ids and answers are those of transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_tokenizers import ENDS, TEXTS, TOKENIZERS

from saten_edge.checkpoints.models import load_model
from saten_exporters import export
from saten_runtime.bundle.folder import Bundle
from saten_runtime.run.generation import Sampling
from saten_runtime.run.runner import Runner

Made = tuple[Path, Bundle]


@pytest.fixture
def made(make_tiny: Callable[..., Path], tmp_path: Path) -> Callable[[str, str], Made]:
    """made(family, task) -> a model's folder with a tokenizer of the family's kind, and its bundle."""

    def make(family: str, task: str) -> Made:
        tokenizer = TOKENIZERS[family]()
        model = make_tiny(family, task, vocab_size=len(tokenizer), **ENDS[family])
        folder = tmp_path / "model"
        shutil.copytree(model, folder, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
        tokenizer.save_pretrained(folder)
        return folder, export(load_model(folder, task), tmp_path / "bundle")

    return make


def ids_of(runner: Runner, texts: Sequence[str]) -> list[list[int]]:
    return [row.ids.tolist() for row in runner.encoder.encode(texts)]


def check_ids(runner: Runner, tokenizer: Any) -> None:
    wanted = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert ids_of(runner, TEXTS) == wanted
    assert len(set(map(tuple, wanted))) == len(TEXTS)
    assert ids_of(runner, [text.replace(" ", "") for text in TEXTS]) != wanted  # the twin: spaces are pieces


@pytest.mark.slow
def test_embeddings_of_a_unigram_model(made: Callable[[str, str], Made]) -> None:
    folder, bundle = made("xlm-roberta", "feature-extraction")
    loaded = load_model(folder)
    runner, tokenizer = Runner.load(bundle), transformers.AutoTokenizer.from_pretrained(folder)
    check_ids(runner, tokenizer)
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in TEXTS]
    wanted = np.concatenate([loaded.pool(each, torch.ones(each.shape[:2])).numpy() for each in states])
    got, bound = runner.predict(TEXTS), 4 * bundle.manifest.tolerance["relative"] * np.abs(wanted).max()
    assert (np.abs(got - wanted) <= bound).all()
    assert not (np.abs(np.roll(got, 1, axis=0) - wanted) <= bound).all()  # the twin


def test_words_of_a_unigram_model(made: Callable[[str, str], Made]) -> None:
    folder, bundle = made("camembert", "token-classification")
    runner, tokenizer = Runner.load(bundle), transformers.AutoTokenizer.from_pretrained(folder)
    check_ids(runner, tokenizer)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    for text, words in zip(TEXTS, runner.predict(TEXTS), strict=True):
        assert [text[word.start : word.end] for word in words] == text.split()
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            labels = model(**inputs).logits[0].argmax(-1).tolist()
        firsts = [inputs.word_ids().index(index) for index in range(len(words))]
        assert [word.label for word in words] == [labels[first] for first in firsts]


def test_texts_of_a_model_with_bytes(made: Callable[[str, str], Made]) -> None:
    folder, bundle = made("gemma", "text-generation")
    runner, tokenizer = Runner.load(bundle), transformers.AutoTokenizer.from_pretrained(folder)
    check_ids(runner, tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            whole = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert "".join(runner.generate(text, Sampling(8))) == tokenizer.decode(whole, skip_special_tokens=True)
