"""`trim` on whole folders: every file is renumbered, and texts that keep their pieces get the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_tokenizers import CORPUS, ENDS, TOKENIZERS
from tiny_tokenizers import TEXTS as UNSEEN

import saten_edge
from saten_edge.checkpoints.models import load_model
from saten_edge.options import TrimOptions
from saten_edge.recipes import recorded
from saten_edge.texts import write_lines
from saten_edge.trimming import run as trimming
from saten_runtime import SatenError
from saten_runtime.errors import DataError, ExportError, ParityError, UsageError

Made = Callable[..., Path]
TEXTS = ["The number of the file.", "reads and returns", "bas dal", "path of the bal"]
OTHER = ["fon gusi mel", "lorken 42!"]
TASKS = [
    ("bert", "feature-extraction"),
    ("bert", "text-classification"),
    ("roberta", "token-classification"),
    ("distilbert", "question-answering"),
    ("electra", "text-classification"),
    ("mpnet", "feature-extraction"),
    ("modernbert", "text-classification"),
    ("gpt2", "text-generation"),
    ("llama", "text-generation"),
    ("mistral", "text-classification"),
]

ENCODING = dict.fromkeys(TOKENIZERS, "feature-extraction") | {"gemma": "text-generation"}


def trim(model: Path, out: Path, texts: list[str] = TEXTS, size: int | None = None, **more: Any) -> dict[str, Any]:
    return saten_edge.trim(model, out, texts, TrimOptions(vocabulary=size), **more)


def said(folder: Path, name: str = "config.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def changed(model: Path, out: Path, name: str = "config.json", **entries: Any) -> Path:
    """A copy of a folder in which one of its files says other things."""
    shutil.copytree(model, out)
    there = said(out, name) if (out / name).is_file() else {}
    (out / name).write_text(json.dumps({**there, **entries}))
    return out


def outputs(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    """What the base model makes of each text alone."""
    loaded = load_model(folder)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.data = parameter.data.clone()  # at an address like the other's, sums are rounded alike
        return [loaded.model.base_model(**loaded.encode([text])).last_hidden_state for text in texts]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize(("family", "task"), TASKS)
def test_texts_that_count_get_the_same_numbers(family: str, task: str, make_tiny: Made, tmp_path: Path) -> None:
    """Exactly; twin: others do not."""
    model = make_tiny(family, task)
    found = trim(model, tmp_path / "out")
    assert found["pieces"]["unchanged"] == 1
    assert found["outputs"]["largest_change"] == 0
    before, after = (outputs(folder, [*TEXTS, *OTHER]) for folder in (model, tmp_path / "out"))
    same = [torch.equal(first, second) for first, second in zip(before, after, strict=True)]
    assert same == [*[True] * len(TEXTS), *[False] * len(OTHER)]
    assert load_model(tmp_path / "out").task == load_model(model).task
    rows = said(tmp_path / "out")["vocab_size"]
    assert rows == found["table_rows"][1] < said(model)["vocab_size"]
    assert found["weights_bytes"][1] < found["weights_bytes"][0]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_classes_of_tokenizers_that_build_them_anew(family: str, make_tiny: Made, tmp_path: Path) -> None:
    """They read pieces and scores out of the files, and write the rest themselves."""
    tokenizer = TOKENIZERS[family]()
    model = tmp_path / "model"
    tiny = make_tiny(family, ENCODING[family], vocab_size=len(tokenizer), **ENDS[family])
    shutil.copytree(tiny, model, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    tokenizer.save_pretrained(model)
    found = trim(model, tmp_path / "out", CORPUS[:1])
    assert (found["pieces"]["unchanged"], found["outputs"]["largest_change"]) == (1, 0)
    read = [load_model(folder).tokenizer for folder in (model, tmp_path / "out")]
    assert type(read[0]) is type(read[1])
    now = said(tmp_path / "out")
    assert now["pad_token_id"] == read[1].pad_token_id
    for text in (*CORPUS, *UNSEEN):
        first, second = (each(text, add_special_tokens=False)["input_ids"] for each in read)
        assert second.count(read[1].unk_token_id) == first.count(read[0].unk_token_id)
        assert read[1].decode(second) == read[0].decode(first)
    assert read[0].tokenize(CORPUS[1]) != read[1].tokenize(CORPUS[1])


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_a_language_model_is_trimmed(tied: bool, make_tiny: Made, tmp_path: Path) -> None:
    model = make_tiny("llama", "text-generation", tie_word_embeddings=tied)
    trim(model, tmp_path / "out")
    old, new = load_model(model), load_model(tmp_path / "out")
    assert (new.model.lm_head.weight is new.model.model.embed_tokens.weight) == tied
    ids = [new.tokenizer.get_vocab(), old.tokenizer.get_vocab()]
    with torch.no_grad():
        logits = [loaded.model(**loaded.encode(TEXTS[:1])).logits for loaded in (new, old)]
    kept = sorted(ids[0], key=lambda text: ids[0][text])
    rows = torch.tensor([ids[1][text] for text in kept])
    assert torch.allclose(logits[0], logits[1][..., rows], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], logits[1][..., rows.flip(0)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "bias"), [("bert", "cls.predictions.bias"), ("roberta", "lm_head.bias")])
def test_the_head_of_a_masked_model_and_its_pooler_stay(
    family: str, bias: str, make_tiny: Made, tmp_path: Path
) -> None:
    """What no task here reads is written all the same."""
    model = tmp_path / "model"
    shutil.copytree(make_tiny(family, "feature-extraction"), model)
    config = transformers.AutoConfig.from_pretrained(model)
    whole = transformers.AutoModelForMaskedLM.from_config(config)
    whole.get_output_embeddings().bias.data.normal_()
    whole.save_pretrained(model)
    tensors = {**state(model), f"{family}.pooler.dense.weight": torch.randn(64, 64)}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    found = trim(model, tmp_path / "out")
    now, rows = state(tmp_path / "out"), found["table_rows"][1]
    assert tensors.keys() == now.keys()
    assert {name for name in now if now[name].shape != tensors[name].shape} == {
        name for name in now if tensors[name].shape[0] == config.vocab_size
    }
    assert now[bias].shape == (rows,)
    assert torch.equal(now[f"{family}.pooler.dense.weight"], tensors[f"{family}.pooler.dense.weight"])
    read = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert read.get_output_embeddings().bias.shape == (rows,)


def test_a_padded_table_loses_the_rows_of_nothing(make_tiny: Made, tmp_path: Path) -> None:
    """But for one that config.json names, which follows the tokens."""
    plain = make_tiny("gpt2", "text-generation")
    rows, spare = said(plain)["vocab_size"], 16
    padded = make_tiny("gpt2", "text-generation", vocab_size=rows + spare)
    model = changed(padded, tmp_path / "model", pad_token_id=rows + 3)
    small = trim(plain, tmp_path / "plain")["table_rows"][1]
    assert trim(model, tmp_path / "out")["table_rows"] == [rows + spare, small + 1]
    assert said(tmp_path / "out")["pad_token_id"] == small
    tables = [state(folder)["transformer.wte.weight"] for folder in (model, tmp_path / "out")]
    assert torch.equal(tables[0][rows + 3], tables[1][small])


def test_ids_in_configs_are_renumbered(make_tiny: Made, tmp_path: Path) -> None:
    dense = make_tiny("gpt2", "text-generation")
    ids = load_model(dense).tokenizer.get_vocab()
    last, before = sorted(ids, key=lambda text: ids[text])[:-3:-1]
    config = {"bos_token_id": ids[last], "eos_token_id": ids["[SEP]"], "decoder_start_token_id": ids[before]}
    model = changed(dense, tmp_path / "model", **config, sep_token_id=-1, num_labels=2)
    rules = {"eos_token_id": [ids[last], ids["[SEP]"]], "bad_words_ids": [[ids[before]]], "top_k": 7}
    (model / "generation_config.json").write_text(json.dumps({**rules, "suppress_tokens": [ids[last]]}))
    trim(model, tmp_path / "out")
    now, new = said(tmp_path / "out"), load_model(tmp_path / "out").tokenizer.get_vocab()
    assert new[last] < ids[last]
    wanted = {"bos_token_id": new[last], "eos_token_id": new["[SEP]"], "decoder_start_token_id": new[before]}
    assert {name: now[name] for name in wanted} == wanted
    assert now["sep_token_id"] == -1
    assert said(tmp_path / "out", "generation_config.json") == {
        **rules,
        "eos_token_id": [new[last], new["[SEP]"]],
        "bad_words_ids": [[new[before]]],
        "suppress_tokens": [new[last]],
    }


def test_an_id_that_only_the_family_names_is_written(make_tiny: Made, tmp_path: Path) -> None:
    """Llama's end of text is 2 where config.json says nothing, and the token with that id may move."""
    model = changed(make_tiny("llama", "text-generation"), tmp_path / "model")
    config = said(model)
    tokenizer = said(model, "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    spare = sorted(vocabulary, key=lambda text: vocabulary[text])[-2:]
    for text, number in zip(spare, (1, 2), strict=True):  # two words that no text uses take the first places
        taken = next(each for each in vocabulary if vocabulary[each] == number)
        vocabulary[taken], vocabulary[text] = vocabulary[text], number
    names = {token["content"]: vocabulary[token["content"]] for token in tokenizer["added_tokens"]}
    tokenizer["added_tokens"] = [{**token, "id": names[token["content"]]} for token in tokenizer["added_tokens"]]
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [names[token["id"]]]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    plain = {key: value for key, value in config.items() if key not in ("bos_token_id", "eos_token_id")}
    (model / "config.json").write_text(json.dumps(plain))
    trim(model, tmp_path / "out")
    new = load_model(tmp_path / "out").tokenizer.get_vocab()
    assert said(tmp_path / "out")["eos_token_id"] == new[spare[1]]


def test_sentence_transformers_files_are_carried_over(tiny_bert: Path, tmp_path: Path) -> None:
    model = changed(tiny_bert, tmp_path / "model", "config_sentence_transformers.json", prompts={"query": "gusi: "})
    trim(model, tmp_path / "out")
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tiny_bert / name).read_bytes()
    trim(tiny_bert, tmp_path / "without")
    found = [load_model(tmp_path / name).tokenizer for name in ("out", "without")]
    assert {*found[0].tokenize("gusi:")} == {*load_model(model).tokenizer.tokenize("gusi:")}
    assert {*found[1].tokenize("gusi:")} - {*found[0].tokenize("gusi:")}
    assert not list((tmp_path / "out").glob("vocab*"))


def test_trimming_again_changes_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    first, second = trim(tiny_bert, tmp_path / "a"), trim(tmp_path / "a", tmp_path / "b")
    assert second["table_rows"] == [first["table_rows"][1]] * 2
    for name in ("tokenizer.json", "config.json", "model.safetensors", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_shards_stay_shards(tiny_bert: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    (model / "model.safetensors").unlink()
    loaded = transformers.AutoModel.from_pretrained(tiny_bert)
    loaded.save_pretrained(model, max_shard_size="100KB")
    trim(model, tmp_path / "out")
    trim(tiny_bert, tmp_path / "whole")
    index = said(tmp_path / "out", "model.safetensors.index.json")
    stored = sum(
        tensor.nbytes for path in (tmp_path / "out").glob("*.safetensors") for tensor in load_file(path).values()
    )
    assert index["metadata"]["total_size"] == stored
    parts = [outputs(tmp_path / name, TEXTS) for name in ("out", "whole")]
    assert all(torch.equal(*both) for both in zip(*parts, strict=True))


def test_what_was_measured(tiny_bert: Path, tmp_path: Path, run: Any) -> None:
    data, judge = tmp_path / "data.jsonl", tmp_path / "judge.jsonl"
    write_lines(data, [{"text": text, "label": 0} for text in TEXTS])
    write_lines(judge, [{"text": text} for text in (*TEXTS, *OTHER, "猫")])
    told = ("trim", tiny_bert, "-o", tmp_path / "out", "--data", data, "--judge", judge)
    code, out, _ = run(*told, "--json")
    assert code == 0
    found = json.loads(out)
    assert found == said(tmp_path / "out", "saten_trim.json")
    assert found["pieces"]["texts"] == 7
    assert found["pieces"]["unchanged"] == pytest.approx(5 / 7)
    assert found["pieces"]["unknown_pieces"] == [1, 1]
    assert found["pieces"]["pieces_per_text"][0] < found["pieces"]["pieces_per_text"][1]
    assert found["outputs"]["largest_change"] > found["outputs"]["mean_change"] > 0
    assert (found["outputs"]["texts_unchanged"], found["outputs"]["largest_change_of_these"]) == (5, 0)
    assert found["stage"]["stage"] == "trim"
    assert found["stage"]["options"] == recorded("trim", TrimOptions())
    assert found["stage"]["inputs"].keys() == {"model", "data", "judge"}
    code, out, shown = run(*told, "--overwrite")
    assert code == 0
    assert "71.43% of 7 texts keep their pieces" in out
    assert "count the pieces of 4 texts" in shown
    code, _, shown = run(*told, "--overwrite", "--quiet")
    assert (code, shown) == (0, "")


def test_a_recipe_says_the_size(tiny_bert: Path, tmp_path: Path, run: Any) -> None:
    least = trim(tiny_bert, tmp_path / "least")["vocabulary"]["needed"]
    write_lines(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS])
    (tmp_path / "recipe.yaml").write_text(f"- stage: trim\n  options: {{vocabulary: {least + 2}}}\n")
    told = ("trim", tiny_bert, "-o", tmp_path / "out", "--data", tmp_path / "data.jsonl")
    assert run(*told, "--recipe", tmp_path / "recipe.yaml", "-q")[0] == 0
    assert said(tmp_path / "out")["vocab_size"] == least + 2
    code, _, shown = run(*told, "--recipe", tmp_path / "recipe.yaml", "--vocabulary", least, "--overwrite")
    assert code == 2
    assert "contradicts it" in shown


# --- what is refused ---------------------------------------------------------------------------------------------


def refused(error: type[SatenError], words: str, model: Path, out: Path, *given: Any, **more: Any) -> None:
    with pytest.raises(error, match=words):
        trim(model, out, *given, **more)
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))


def test_what_cannot_be_trimmed(
    tiny_bert: Path, tiny_saten: Path, make_tiny: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    refused(UsageError, "is compressed already; trim the dense model", tiny_saten, out)
    refused(UsageError, "takes images", make_tiny("vit", "image-classification"), out)
    refused(DataError, "there are no texts", tiny_bert, out, [])
    refused(UsageError, "--vocabulary 3: expected ", tiny_bert, out, TEXTS, 3)
    refused(UsageError, "--vocabulary 9999: expected ", tiny_bert, out, TEXTS, 9999)
    with pytest.raises(UsageError, match="already"):
        trim(tiny_bert, tiny_saten)
    mixed = changed(tiny_bert, tmp_path / "mixed", sequence_bias=[[[5], 1.5]])
    refused(ExportError, "sequence_bias names ids among other numbers", mixed, out)


def test_a_tokenizer_in_python_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model, ignore=shutil.ignore_patterns("tokenizer*"))
    vocabulary = said(tiny_bert, "tokenizer.json")["model"]["vocab"]
    (model / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda text: vocabulary[text])))
    slow = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "basic"}
    (model / "tokenizer_config.json").write_text(json.dumps(slow))
    refused(ExportError, "BertJapaneseTokenizer, is a program in Python", model, tmp_path / "out")


def test_tables_that_do_not_fit(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    tensors, rows = state(model), said(model)["vocab_size"]
    save_file({**tensors, "words.again.weight": torch.ones(rows, 2)}, model / "model.safetensors", {"format": "pt"})
    refused(ExportError, "words.again.weight .* may have a row for each of", model, tmp_path / "out")


def test_a_word_that_became_unknown_is_a_defect(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saten_edge.trimming.pieces.Pieces._is_needed", lambda self, piece: False)
    write_lines(tmp_path / "judge.jsonl", [{"text": text} for text in OTHER])
    options = TrimOptions(judge=tmp_path / "judge.jsonl")
    with pytest.raises(ParityError, match="unknown pieces in 2 texts, and 0 before"):
        saten_edge.trim(tiny_bert, tmp_path / "out", TEXTS, options)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_read_otherwise_is_a_defect(tiny_bert: Path, tmp_path: Path) -> None:
    trim(tiny_bert, tmp_path / "fine")
    loaded = load_model(tmp_path / "fine")
    entries = trimming.Entries("here", loaded.tokenizer)
    numbers = {number: number for number in entries.ids.values()}
    trimming._refuse_other_ids("here", entries, numbers, loaded.tokenizer)
    first, second, *rest = numbers
    with pytest.raises(ParityError, match=r"here: .* reads .* as"):
        trimming._refuse_other_ids("here", entries, {**numbers, first: second, second: first}, loaded.tokenizer)
    assert rest
