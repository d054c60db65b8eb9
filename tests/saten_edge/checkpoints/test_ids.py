"""Tokenizers, tables and padding that do not fit each other: refused by name, or read so that no batch changes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from saten_edge.checkpoints.models import load_model
from saten_runtime.errors import ExportError

DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gpt2")
LONG = " ".join(["gar"] * 200)


@pytest.fixture
def altered(make_tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """altered(model_type, task, config={…}, tokenizer={…}, file={…}, **entries of the config) -> a folder of its own.

    config, tokenizer and file replace entries of config.json, tokenizer_config.json and tokenizer.json.
    """

    def make(model_type: str, task: str = "feature-extraction", **options: Any) -> Path:
        changes = {name: options.pop(name, {}) for name in ("config", "tokenizer", "file")}
        folder = shutil.copytree(make_tiny(model_type, task, **options), tmp_path / model_type)
        names = {"config": "config.json", "tokenizer": "tokenizer_config.json", "file": "tokenizer.json"}
        for name, file in names.items():
            data = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps({**data, **changes[name]}))
        return folder

    return make


def with_tokens(folder: Path, *tokens: str, **special: str) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return folder


class TestEveryIdHasARow:
    def test_an_added_token_without_one_is_named(self, altered):
        with pytest.raises(
            ExportError, match=r"'newword' the id 1200; its word table has the 1200 rows 0 … 1199; give"
        ):
            load_model(with_tokens(altered("bert"), "newword"))

    def test_of_several_the_first_is_named(self, altered):
        with pytest.raises(ExportError, match=r"'one' the id 1200, and 2 more; its word table"):
            load_model(with_tokens(altered("distilbert"), "one", "two", "three"))

    def test_a_padding_token_without_one_is_named(self, altered):
        with pytest.raises(ExportError, match=r"'<pad>' the id 1200; its word table"):
            load_model(with_tokens(altered("llama", "text-generation"), pad_token="<pad>"))

    def test_a_template_whose_id_is_not_in_the_vocabulary_is_named(self, altered):
        folder = altered("electra")
        data = json.loads((folder / "tokenizer.json").read_text())
        data["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [1300]
        (folder / "tokenizer.json").write_text(json.dumps(data))
        with pytest.raises(ExportError, match=r"'special token 1300' the id 1300; its word table"):
            load_model(folder)

    def test_a_resized_table_has_them_all(self, altered):
        folder = with_tokens(altered("bert"), "newword")
        model = transformers.AutoModel.from_pretrained(folder)
        model.resize_token_embeddings(1201)
        model.save_pretrained(folder)
        loaded = load_model(folder)
        batch = loaded.encode(["newword"])
        assert batch["input_ids"].max() == 1200
        assert torch.isfinite(loaded.model(**batch).last_hidden_state).all()

    def test_a_table_with_rows_to_spare_is_no_fault(self, make_tiny):
        assert load_model(make_tiny("qwen3", "text-generation", vocab_size=1216)).model.config.vocab_size == 1216

    def test_a_token_type_without_one_is_named(self, make_tiny):
        with pytest.raises(ExportError, match=r"makes the token type 1; its type table has 1 rows \(type_vocab_size\)"):
            load_model(make_tiny("bert", "question-answering", type_vocab_size=1))
        load_model(make_tiny("bert", "text-classification", type_vocab_size=1))  # texts are all of type 0


class TestPositions:
    @pytest.mark.parametrize(
        ("model_type", "pad"), [("roberta", 0), ("roberta", 1), ("roberta", 7), ("xlm-roberta", 1)]
    )
    def test_roberta_counts_from_the_row_after_its_padding(self, model_type, pad, altered):
        loaded = load_model(altered(model_type, config={"pad_token_id": pad}))
        batch = loaded.encode([LONG])
        assert batch["input_ids"].shape == (1, 96 - pad - 1)
        assert torch.isfinite(loaded.model(**batch).last_hidden_state).all()
        longer = torch.full((1, 96 - pad), 9)
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            loaded.model(input_ids=longer)

    def test_one_that_leaves_nothing_of_a_text_is_refused(self, altered):
        assert load_model(altered("bert", tokenizer={"model_max_length": 2})).max_length == 2
        with pytest.raises(ExportError, match=r"cut to 1 token \(model_max_length"):
            load_model(altered("electra", tokenizer={"model_max_length": 1}))

    def test_mpnet_counts_from_two_whatever_its_padding_is(self, altered):
        assert load_model(altered("mpnet", config={"pad_token_id": 7})).max_length == 94

    @pytest.mark.parametrize("model_type", ["bert", "electra", "distilbert", "modernbert", "gpt2", "llama"])
    def test_the_others_count_from_zero(self, model_type, make_tiny):
        assert load_model(make_tiny(model_type, "feature-extraction")).max_length == 96


def raw(folder: Path) -> Any:
    """The folder as transformers alone reads it."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return SimpleNamespace(model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(folder))


def alone(loaded: Any, texts: list[str]) -> list[torch.Tensor]:
    """What transformers' own tokenizer and model give for each text, without a batch and so without padding."""
    with torch.no_grad():
        rows = [loaded.model(**loaded.tokenizer(text, return_tensors="pt")) for text in texts]
    return [row["logits" if "logits" in row else "last_hidden_state"][0] for row in rows]


def together(loaded: Any, texts: list[str]) -> list[torch.Tensor]:
    batch = loaded.encode(texts)
    with torch.no_grad():
        found = loaded.model(**batch)
    if "logits" in found:
        return list(found.logits)
    return [row[mask.bool()] for row, mask in zip(found.last_hidden_state, batch["attention_mask"], strict=True)]


def agree(these: list[torch.Tensor], those: list[torch.Tensor]) -> bool:
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in zip(these, those, strict=True))


class TestPadding:
    @pytest.mark.parametrize("model_type", DECODERS)
    @pytest.mark.parametrize("own", [4, 1199, -1, None], ids=["mask", "word", "none", "absent"])
    def test_a_decoders_classifier_reads_the_last_token_of_each_text(self, own, model_type, altered, texts):
        folder = altered(model_type, "text-classification", config={"pad_token_id": own})
        loaded = load_model(folder)
        assert loaded.pad_id == loaded.model.config.pad_token_id == (0 if own in (-1, None) else own)
        expected = alone(raw(folder), texts[:5])
        assert agree(together(loaded, texts[:5]), expected)
        loaded.pad_id = 5  # an id that the classifier takes for text
        assert not agree(together(loaded, texts[:5]), expected)

    @pytest.mark.parametrize("pad", ["[SEP]", None])
    def test_one_whose_texts_end_with_their_padding_is_given_another(self, pad, altered, texts):
        changes = {"pad_token": pad, "eos_token": "[SEP]"}
        folder = altered("llama", "text-classification", config={"pad_token_id": None}, tokenizer=changes)
        expected = alone(raw(folder), texts[:5])
        loaded = load_model(folder)
        assert loaded.tokenizer.pad_token_id == 3
        assert loaded.pad_id == loaded.model.config.pad_token_id == 0
        assert agree(together(loaded, texts[:5]), expected)
        loaded.model.config.pad_token_id = 3
        assert not agree(together(loaded, texts[:5]), expected)

    def test_a_text_that_spells_the_padding_is_read_up_to_the_token_before(self, altered):
        """As by transformers, where the config names the padding; without one it takes no batch."""
        how = {"config": {"pad_token_id": None}, "tokenizer": {"pad_token": "[MASK]"}, "file": {"post_processor": None}}
        folder, spelled = altered("llama", "text-classification", **how), ["gar bel [MASK]", "dor"]
        named = raw(folder)
        unnamed = alone(named, spelled)
        named.model.config.pad_token_id = named.tokenizer.pad_token_id
        found = together(load_model(folder), spelled)
        assert agree(found, alone(named, spelled))
        assert agree(found[1:], unnamed[1:])
        assert not agree(found, unnamed)

    def test_one_without_any_padding_is_refused(self, altered):
        folder = altered(
            "gpt2",
            "text-classification",
            config={"pad_token_id": None},
            tokenizer={"pad_token": None, "eos_token": None},
            file={"post_processor": None},
        )
        with pytest.raises(
            ExportError, match=r"neither config\.json nor its tokenizer names a padding token; set pad_"
        ):
            load_model(folder)

    def test_a_padding_that_is_not_sought_is_the_tokenizers(self, altered):
        assert load_model(altered("llama", "text-generation", config={"pad_token_id": 9})).pad_id == 0

    @pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "gpt2", "qwen2"])
    @pytest.mark.parametrize(
        "changes",
        [
            {"padding_side": "left"},
            {"model_input_names": ["input_ids"]},
            {"pad_token": "[MASK]"},
        ],
        ids=["left", "no mask", "other padding"],
    )
    def test_a_batch_is_padded_as_on_a_device(self, changes, model_type, altered, texts):
        loaded = load_model(altered(model_type, tokenizer=changes))
        batch = loaded.encode(texts[:5])
        lengths = batch["attention_mask"].sum(1, keepdim=True)
        assert (batch["attention_mask"].bool() == (torch.arange(batch["input_ids"].shape[1]) < lengths)).all()
        expected = alone(loaded, texts[:5])
        assert agree(together(loaded, texts[:5]), expected)
        loaded.pad = lambda rows: {k: v.flip(0) for k, v in type(loaded).pad(loaded, rows).items()}
        assert not agree(together(loaded, texts[:5]), expected)
