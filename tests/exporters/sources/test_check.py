"""Settings that are refused or reported by name, and settings that nobody knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from saten_exporters.sources.check import SETTINGS, check_settings
from saten_exporters.sources.setting import REFUSED, REPORTED
from saten_runtime.errors import ExportError
from saten_runtime.vocabulary.files import CONFIG_FILE, GENERATION_CONFIG_FILE, MODULES_FILE
from saten_runtime.vocabulary.tasks import FEATURE_EXTRACTION, TEXT_GENERATION

FOLDERS = {"pooling": "1_Pooling", "dense": "2_Dense", "layernorm": "3_LayerNorm", "normalize": "4_Normalize"}
CLASSES = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_LayerNorm": "LayerNorm"}
EVERY_MODULE = {**CLASSES, "4_Normalize": "Normalize"}
# A value that every setting would take as another than its default.
ODD = {
    "num_beams": 4,
    "encoder_repetition_penalty": 2.0,
    "encoder_no_repeat_ngram_size": 2,
    "cache_implementation": "quantized",
    "sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"},
}


class Generation(SimpleNamespace):
    """A generation config that nobody has looked at."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said

    def to_dict(self) -> dict[str, Any]:
        return {**transformers.GenerationConfig().to_dict(), **self.said}


def source(files: dict[str, Any], *, task: str = FEATURE_EXTRACTION.hub, prompt: str = "", **generation: Any) -> Any:
    """A model whose files say this."""
    return SimpleNamespace(
        task=task,
        processor=None,
        prompt=prompt,
        settings={MODULES_FILE: EVERY_MODULE, **files},
        source={"model": "m"},
        tokenizer=SimpleNamespace(
            clean_up_tokenization_spaces=False, backend_tokenizer=SimpleNamespace(model=transformers)
        ),
        model=SimpleNamespace(config=transformers.BertConfig(), generation_config=Generation(generation)),
    )


def saying(file: str, key: str, value: Any) -> Any:
    """A model one of whose files says one thing."""
    if file == GENERATION_CONFIG_FILE:
        return source({}, task=TEXT_GENERATION.hub, **{key: value})
    if file == MODULES_FILE:
        return source({MODULES_FILE: {**EVERY_MODULE, "5_Odd": key}})
    name = f"{FOLDERS[file]}/config.json" if file in FOLDERS else file
    prompt = "query: " if key == "include_prompt" else ""
    return source({name: {key: value}}, prompt=prompt)


def rows(treatment: str) -> list[tuple[str, str]]:
    return [(row.file, row.key) for row in SETTINGS.values() if row.treatment == treatment and row.file != MODULES_FILE]


@pytest.mark.parametrize(("file", "key"), rows(REFUSED))
def test_a_setting_that_cannot_be_honoured_is_refused(file: str, key: str) -> None:
    neutral = SETTINGS[file, key].neutral
    odd = ODD.get(key, False if True in neutral and neutral[0] is True else [[1, 2]])
    with pytest.raises(ExportError, match=rf"{key} = .* cannot be honoured; "):
        check_settings(saying(file, key, odd))
    for value in (None, *neutral):
        assert check_settings(saying(file, key, value)) == []


@pytest.mark.parametrize(("file", "key"), rows(REPORTED))
def test_a_setting_that_is_only_reported(file: str, key: str) -> None:
    value = {"query": "query: "} if key == "prompts" else ODD.get(key, "dot")
    (notice,) = check_settings(saying(file, key, value))
    assert notice == f"{file}: {key} = {value!r}: {SETTINGS[file, key].why}"
    assert all(check_settings(saying(file, key, each)) == [] for each in (SETTINGS[file, key].neutral or ()))


def test_prompts_that_are_empty_or_put_before_texts_are_not_reported() -> None:
    prompts = {"config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": ""}}}
    assert check_settings(source(prompts, prompt="query: ")) == []
    assert len(check_settings(source(prompts))) == 1


def test_tokens_of_a_prompt_that_there_is_not_need_no_pooling() -> None:
    assert check_settings(source({"1_Pooling/config.json": {"include_prompt": False}})) == []


# --- what nobody knows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "tokenizer.json", "sentence_bert_config.json"]
)
def test_a_setting_that_nobody_knows_is_reported(file: str) -> None:
    (notice,) = check_settings(source({file: {"brand_new": [1, 2]}}))
    assert notice == f"{file}: brand_new = [1, 2] is no setting known here; nothing was made of it"


def test_a_setting_of_generation_that_nobody_knows_is_reported() -> None:
    (notice,) = check_settings(source({}, task=TEXT_GENERATION.hub, brand_new=3))
    assert "generation_config.json: brand_new = 3" in notice


@pytest.mark.parametrize(
    ("task", "file"), [(FEATURE_EXTRACTION.hub, CONFIG_FILE), (TEXT_GENERATION.hub, GENERATION_CONFIG_FILE)]
)
def test_a_setting_that_only_the_library_knows_is_refused(
    task: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a newer transformers had one that this table lacks."""
    key = {CONFIG_FILE: "hidden_act", GENERATION_CONFIG_FILE: "repetition_penalty"}[file]
    monkeypatch.delitem(SETTINGS, (file, key))  # type: ignore[arg-type]
    files, generation = ({CONFIG_FILE: {key: "relu"}}, {}) if file == CONFIG_FILE else ({}, {key: 1.5})
    with pytest.raises(ExportError, match=rf"{key} = .* cannot be honoured; this version does not know the setting"):
        check_settings(source(files, task=task, **generation))
    default = ({CONFIG_FILE: {key: "gelu"}}, {}) if file == CONFIG_FILE else ({}, {})
    assert all(key in notice for notice in check_settings(source(default[0], task=task, **default[1])))


def test_a_long_value_is_cut_in_the_message() -> None:
    (notice,) = check_settings(source({"config.json": {"brand_new": "x" * 500}}))
    assert len(notice) < 160


def test_generated_text_that_transformers_would_repair_is_refused() -> None:
    model = source({}, task=TEXT_GENERATION.hub)
    model.tokenizer.clean_up_tokenization_spaces = True
    with pytest.raises(ExportError, match="clean_up_tokenization_spaces = True cannot be honoured"):
        check_settings(model)
    model.tokenizer.backend_tokenizer.model = type("BPE", (), {})()
    assert check_settings(model) == []


# --- what transformers' generate does not take ---------------------------------------------------------------------

BEYOND = transformers.BertConfig().vocab_size
NOT_TAKEN: list[dict[str, Any]] = [
    {"bad_words_ids": []},
    {"bad_words_ids": [[BEYOND]]},
    {"bad_words_ids": [[3], [BEYOND, 3]], "eos_token_id": 3},
    {"bad_words_ids": [[-1]]},
    {"bad_words_ids": [3]},
    {"repetition_penalty": 2},
    {"repetition_penalty": 0.0},
    {"temperature": 2, "do_sample": True},
]
TAKEN: list[dict[str, Any]] = [
    {"bad_words_ids": [[BEYOND - 1, 3]]},
    {"bad_words_ids": [[BEYOND]], "eos_token_id": BEYOND},  # what ends a text is no bad word
    {"repetition_penalty": 1},
    {"repetition_penalty": 2.0},
    {"suppress_tokens": [BEYOND]},
    {"temperature": 2},
    {"temperature": 2.0, "do_sample": True},
]


@pytest.fixture(scope="module")
def decoder() -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=BEYOND, **sizes))


@pytest.mark.parametrize(("said", "taken"), [*((said, True) for said in TAKEN), *((said, False) for said in NOT_TAKEN)])
def test_what_generate_refuses_is_refused(said: dict[str, Any], taken: bool, decoder: Any) -> None:
    ids = torch.tensor([[2]])
    options = {**said, "max_new_tokens": 1, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    model = source({}, task=TEXT_GENERATION.hub, **said)
    if taken:
        decoder.generate(ids, **options)
        assert check_settings(model) == []
        return
    with pytest.raises((TypeError, ValueError)):
        decoder.generate(ids, **options)
    with pytest.raises(ExportError, match=rf"generation_config.json: {next(iter(said))} = .* generate refuses it: "):
        check_settings(model)
