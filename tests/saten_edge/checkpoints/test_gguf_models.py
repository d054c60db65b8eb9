"""A GGUF file is the model that transformers makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_gguf import CHAT_TEMPLATE, save_gguf

import saten_edge
from saten_edge.checkpoints.models import load_model
from saten_edge.checkpoints.selection import Selection
from saten_edge.options import CompressOptions
from saten_exporters.bundles.passages import PASSAGES
from saten_runtime.errors import CheckpointError, ExportError, UsageError
from saten_runtime.run.generation import Sampling
from saten_runtime.run.runner import Runner

pytest.importorskip("gguf", reason="the package gguf is not installed")

PROMPTS = ("the other", "In  2023, ", "An hour of 12 errors\n", "ü", "the <|im_end|> end", "  ", "1 22  333")
MADE = 24
REAL_PROMPTS = (
    "The capital of France is",
    "In 1969, the first humans",
    "def fibonacci(n):",
    "Water boils at",
    "Once upon a time there was",
    "The three primary colours are",
    "To make a cup of tea,",
    "Photosynthesis is",
    "A list of prime numbers: 2, 3, 5,",
    "My favourite book is",
    "The Second World War ended in",
    "An electric motor turns",
    "Dear Sir or Madam,\n",
    "If it rains tomorrow,",
    "The largest planet",
    "import numpy as np\n",
    "Q: What is 12 + 30?\nA:",
    "Bread is made of",
    "The river Nile flows",
    "She opened the door and",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def theirs(path: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_the_weights_are_those_that_transformers_reads(kind: str, tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "tiny.gguf", kind)
    own, other = load_model(path).model.state_dict(), theirs(path).state_dict()
    assert own.keys() == other.keys()
    assert [name for name in own if not torch.equal(own[name], other[name])] == []


def test_another_seed_makes_other_weights(tiny: Path, tmp_path: Path) -> None:
    other = load_model(save_gguf(tmp_path / "tiny.gguf", seed=8)).model.state_dict()
    assert not torch.equal(load_model(tiny).model.state_dict()["model.norm.weight"], other["model.norm.weight"])


def test_the_tokenizer_is_that_of_transformers_but_for_digits(tiny: Path) -> None:
    own, other = (
        load_model(tiny).tokenizer,
        transformers.AutoTokenizer.from_pretrained(tiny.parent, gguf_file=tiny.name),
    )
    plain = [prompt for prompt in PROMPTS if not any(letter.isdigit() for letter in prompt)]
    assert [own(prompt)["input_ids"] for prompt in plain] == [other(prompt)["input_ids"] for prompt in plain]
    assert own.chat_template == CHAT_TEMPLATE
    assert own.tokenize("ab  12") == ["a", "b", "Ġ", "Ġ", "1", "2"]
    assert (own.bos_token, own.eos_token, own.pad_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def test_a_bundle_continues_as_transformers_does(tiny: Path, tmp_path: Path) -> None:
    saten_edge.export(tiny, tmp_path / "bundle")
    runner, model, loaded = Runner.load(tmp_path / "bundle"), theirs(tiny), load_model(tiny)
    assert runner.bundle.manifest.source["model"] == "tiny.gguf"
    for prompt in PROMPTS:
        ids = torch.tensor([loaded.tokenizer(prompt)["input_ids"]])
        wanted = model.generate(ids, do_sample=False, max_new_tokens=MADE, eos_token_id=2, pad_token_id=0)[0]
        wanted = [token for token in wanted[ids.shape[1] :].tolist() if token != 2]
        assert list(runner.generate_ids(prompt, Sampling(max_tokens=MADE, temperature=0))) == wanted, prompt


def test_it_is_compressed_and_keeps_its_tokenizer(tiny: Path, tmp_path: Path) -> None:
    saten_edge.compress(
        tiny, tmp_path / "saten", CompressOptions(budget=0.5, selection=Selection(smallest=1024)), calibration=PROMPTS
    )
    again = load_model(tmp_path / "saten")
    assert again.tokenizer.chat_template == CHAT_TEMPLATE
    assert again.source["model"] == "tiny.gguf"
    assert again.layer_parts()


def test_a_family_that_is_not_known(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(tiny.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0mamba", 1))
    with pytest.raises(ExportError, match="its architecture 'mamba' is not known; there are: llama"):
        load_model(tmp_path / "x.gguf")


def test_a_setting_that_nobody_reads(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "tiny.gguf", **{"rope.scaling.factor": 4.0})
    with pytest.raises(ExportError, match=r"llama\.rope\.scaling\.factor = 4\.0 cannot be expressed"):
        load_model(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"smollm", b"unseen", "splits texts as 'unseen'"),
        (b"gpt2", b"bert", "its tokenizer 'bert' is not known"),
        (b"output_norm.weight", b"output_nurm.weight", "output_nurm.weight is no weight"),
        (b"eos_token_id\4\0\0\0\2\0", b"eos_token_id\4\0\0\0\2\2", "eos_token_id is 514, and there are 265 tokens"),
        (b"block_count\4\0\0\0\2", b"block_count\4\0\0\0\x63", "block_count is 99, and the file holds 20 tensors"),
        (b"block_count\4\0\0\0\2", b"block_count\4\0\0\0\4", "more weights are missing"),
        (b"vocab_size\4\0\0\0\t", b"vocab_size\4\0\0\0\1", "its table is not"),
        (b"head_count\4\0\0\0\4", b"head_count\4\0\0\0\0", "transformers cannot read it"),
    ],
)
def test_what_is_wrong_is_named(old: bytes, new: bytes, words: str, tiny: Path, tmp_path: Path) -> None:
    assert old in tiny.read_bytes()
    (tmp_path / "x.gguf").write_bytes(tiny.read_bytes().replace(old, new))
    with pytest.raises((CheckpointError, ExportError), match=words):
        load_model(tmp_path / "x.gguf")


def test_default_is_no_way_to_split_texts(tmp_path: Path) -> None:
    """llama.cpp splits them as no tokenizer of transformers does; the twin is GPT-2's way."""
    with pytest.raises(CheckpointError, match="splits texts as 'default', which is not known"):
        load_model(save_gguf(tmp_path / "tiny.gguf", split="default"))
    tokenizer = load_model(save_gguf(tmp_path / "tiny.gguf", split="gpt-2")).tokenizer
    assert [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a 123")] == ["a", "Ġ123"]


def test_without_the_package(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_gguf_available", lambda: False)
    with pytest.raises(UsageError, match=r"pip install 'saten-edge\[gguf\]'"):
        load_model(tiny)


@pytest.fixture(scope="module")
def real_bundle(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saten_edge.export(smollm2, tmp_path_factory.mktemp("real") / "bundle").path


@pytest.mark.slow
def test_a_real_model_continues_as_transformers_does(smollm2: Path, real_bundle: Path) -> None:
    runner, model, loaded = Runner.load(real_bundle), theirs(smollm2), load_model(smollm2)
    for prompt in REAL_PROMPTS:
        ids = torch.tensor([loaded.tokenizer(prompt)["input_ids"]])
        wanted = model.generate(ids, do_sample=False, max_new_tokens=64, eos_token_id=2, pad_token_id=0)[0]
        wanted = [token for token in wanted[ids.shape[1] :].tolist() if token != 2]
        assert list(runner.generate_ids(prompt, Sampling(max_tokens=64, temperature=0))) == wanted, prompt


def perplexities(path: Path, bundle: Path, texts: Sequence[str]) -> tuple[float, float, float]:
    """By the bundle, by torch, and by torch without the tokens before each text's half."""
    runner, model, tokenizer = Runner.load(bundle), theirs(path), load_model(path).tokenizer
    rows = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    ours = [runner.surprise(text) for text in texts]
    assert [count for _, count in ours] == [row.shape[1] - 1 for row in rows]

    def by_torch(rows: list[torch.Tensor]) -> float:
        losses = [float(model(row, labels=row).loss) * (row.shape[1] - 1) for row in rows]
        return float(np.exp(sum(losses) / sum(row.shape[1] - 1 for row in rows)))

    with torch.no_grad():
        own = float(np.exp(sum(loss for loss, _ in ours) / sum(count for _, count in ours)))
        return own, by_torch(rows), by_torch([row[:, row.shape[1] // 2 :] for row in rows])


def test_perplexity_is_that_of_torch(tiny: Path, tmp_path: Path) -> None:
    own, exact, other = perplexities(
        tiny, saten_edge.export(tiny, tmp_path / "bundle").path, [text[:40] for text in PASSAGES]
    )
    assert own == pytest.approx(exact, rel=1e-4)
    assert own != pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_the_perplexity_of_a_real_model_is_that_of_torch(smollm2: Path, real_bundle: Path) -> None:
    own, exact, other = perplexities(smollm2, real_bundle, PASSAGES)
    print(f"perplexity of {len(PASSAGES)} passages: {own:.6f}, by torch {exact:.6f}")
    assert own == pytest.approx(exact, rel=1e-4)
    assert own != pytest.approx(other, rel=1e-4)
