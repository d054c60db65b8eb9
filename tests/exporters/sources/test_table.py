"""The table of settings against what the installed libraries define, and against the page that lists them."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.processing_utils import ImagesKwargs

from saten_edge.checkpoints.architectures import ARCHITECTURES
from saten_edge.checkpoints.sentences import LAYERS, OLD_POOLINGS
from saten_exporters.sources.check import SETTINGS
from saten_exporters.sources.setting import REFUSED, TREATMENTS
from saten_runtime.run.pooling import STEPS
from saten_runtime.vocabulary.files import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    MODULES_FILE,
    PREPROCESSOR_CONFIG_FILE,
    PROMPTS_FILE,
    TOKENIZER_CONFIG_FILE,
    TRANSFORMER_FILE,
    TRANSFORMER_FILES,
)

ROOT = Path(__file__).parents[3]


def unlisted(file: str, keys: Iterable[str]) -> list[str]:
    """Settings that the table says nothing of."""
    return sorted(key for key in set(keys) if (file, key) not in SETTINGS)


def taken(function: Any) -> set[str]:
    """Names of the parameters of a function, and of what it takes out of its keywords."""
    source = inspect.getsource(function)
    named = set(inspect.signature(function).parameters) - {"self", "args", "kwargs"}
    return named | set(re.findall(r'kwargs\.(?:pop|get|setdefault)\(\s*"(\w+)"', source))


# --- transformers ------------------------------------------------------------------------------------------------


def entries_of(config: type) -> set[str]:
    """What a config has, and what it takes out of its keywords, such as older spellings."""
    made: Any = config()
    builders = (vars(each).get(name) for each in config.__mro__ for name in ("__post_init__", CONVERTS))
    return {*made.to_dict(), *vars(made), *(key for build in builders if build for key in taken(build))}


CONVERTS = "convert_rope_params_to_dict"


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_table_names_every_entry_of_a_familys_config(model_type: str) -> None:
    assert unlisted(CONFIG_FILE, entries_of(CONFIG_MAPPING[model_type])) == []


def test_the_table_names_every_setting_of_generation() -> None:
    assert unlisted(GENERATION_CONFIG_FILE, vars(transformers.GenerationConfig())) == []
    assert unlisted(CONFIG_FILE, transformers.GenerationConfig._get_default_generation_params()) == []


@pytest.mark.parametrize(
    "model_type", [*(row.model_type for row in ARCHITECTURES.values() if row.kind != "vision"), ""]
)
def test_the_table_names_every_setting_of_a_tokenizer(model_type: str) -> None:
    name = TOKENIZER_MAPPING_NAMES.get(model_type) or "PreTrainedTokenizerFast"
    tokenizer = getattr(transformers, name)
    keys = set().union(*(taken(each.__init__) for each in tokenizer.__mro__[:-1] if "__init__" in vars(each)))
    assert {"split_special_tokens", "truncation_side", "model_max_length", "pad_token"} <= keys | {"pad_token"}
    assert unlisted(TOKENIZER_CONFIG_FILE, {*keys, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES}) == []


def test_the_table_names_every_part_of_a_tokenizer() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    assert unlisted("tokenizer.json", json.loads(Tokenizer(WordLevel({}, unk_token="")).to_str())) == []


@pytest.mark.parametrize("name", ["ViTImageProcessorPil", "DeiTImageProcessorPil", "CLIPImageProcessorPil"])
def test_the_table_names_every_setting_of_pictures(name: str) -> None:
    keys = {*getattr(transformers, name)().to_dict(), *ImagesKwargs.__annotations__}
    assert unlisted(PREPROCESSOR_CONFIG_FILE, keys) == []


# --- sentence-transformers ---------------------------------------------------------------------------------------


def sentence_modules() -> dict[str, type]:
    """Every class of the installed sentence-transformers that may stand in a modules.json."""
    package = pytest.importorskip("sentence_transformers")
    base = pytest.importorskip("sentence_transformers.base.modules").Module
    for found in pkgutil.walk_packages(package.__path__, "sentence_transformers."):
        if ".modules" in found.name:
            importlib.import_module(found.name)
    classes, open_ = set(), [base]
    while open_:
        each = open_.pop()
        classes.add(each)
        open_ += [child for child in each.__subclasses__() if child.__module__.startswith("sentence_transformers.")]
    return {each.__name__: each for each in classes}


def test_the_table_names_every_module_of_sentence_transformers() -> None:
    found = sentence_modules()
    assert {"Transformer", "Pooling", "Dense", "Normalize"} <= set(found)
    assert unlisted(MODULES_FILE, found) == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (TRANSFORMER_FILE, "Transformer"),
        *((each.lower(), each) for each in ("Pooling", *LAYERS, "Normalize", "Dropout")),
    ],
)
def test_the_table_names_every_setting_of_a_module(file: str, name: str) -> None:
    module = sentence_modules()[name]
    keys: set[str] = {*module.config_keys, *getattr(module, "config_key_renames", {})}
    assert unlisted(file, keys) == []


def test_the_table_names_every_setting_of_an_embedding_model() -> None:
    sentence_modules()
    from sentence_transformers import SentenceTransformer

    source = "".join(inspect.getsource(each) for each in SentenceTransformer.__mro__[:2])
    read = set(re.findall(r'model_config(?:\.get\(|\[)"(\w+)"', source))
    assert {"prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim"} <= read
    assert unlisted(PROMPTS_FILE, read) == []


def test_the_table_names_every_setting_of_a_cross_encoder() -> None:
    sentence_modules()
    from sentence_transformers import CrossEncoder

    source = inspect.getsource(CrossEncoder)
    read = set(re.findall(r'model_config(?:\.get\(|\[)"(\w+)"', source))
    assert {"activation_fn", "keep_in_fp32_modules"} <= read
    assert unlisted(PROMPTS_FILE, read) == []
    assert unlisted(CONFIG_FILE, re.findall(r'hasattr\(config, "(sbert_\w+|sentence_\w+)"', source)) == []


def test_older_names_of_a_file_are_those_of_sentence_transformers() -> None:
    source = inspect.getsource(sentence_modules()["Transformer"].load_config)
    assert re.findall(r'"(sentence_[\w-]+_config\.json)",', source) == list(TRANSFORMER_FILES)


def test_old_spellings_of_poolings_are_those_of_sentence_transformers() -> None:
    pooling = pytest.importorskip("sentence_transformers.sentence_transformer.modules.pooling")
    assert list(OLD_POOLINGS.items()) == list(pooling._LEGACY_POOLING_MODE_KWARGS.items())


# --- the table itself --------------------------------------------------------------------------------------------


class NewerConfig(transformers.BertConfig):
    """As if the library had an entry more, and took another out of its keywords."""

    model_type = "newer"
    brand_new: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("older_spelling", None)
        super().__post_init__(**kwargs)


class NewerTokenizer(transformers.PreTrainedTokenizerFast):
    def __init__(self, *args: Any, brand_new: bool = False, **kwargs: Any) -> None:
        kwargs.pop("older_spelling", None)
        super().__init__(*args, **kwargs)


class NewerGeneration(transformers.GenerationConfig):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.brand_new = 1


class NewerPictures(transformers.ViTImageProcessorPil):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.brand_new = 1


def test_a_setting_that_is_added_is_missed() -> None:
    assert unlisted(CONFIG_FILE, entries_of(NewerConfig)) == ["brand_new", "older_spelling"]
    assert unlisted(TOKENIZER_CONFIG_FILE, taken(NewerTokenizer.__init__)) == ["brand_new", "older_spelling"]
    assert unlisted(GENERATION_CONFIG_FILE, vars(NewerGeneration())) == ["brand_new"]
    assert unlisted(PREPROCESSOR_CONFIG_FILE, NewerPictures().to_dict()) == ["brand_new"]
    assert unlisted(MODULES_FILE, ["Pooling", "BrandNew"]) == ["BrandNew"]
    assert unlisted("pooling", ["pooling_mode", "attention_pooling"]) == ["attention_pooling"]


def test_layers_are_the_same_on_both_sides() -> None:
    assert len(LAYERS) == len(STEPS)
    assert all((MODULES_FILE, name) in SETTINGS for name in LAYERS)


def functions_of_tests() -> set[str]:
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "tests").rglob("test_*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_has_a_treatment_a_reason_and_a_test() -> None:
    written = functions_of_tests()
    rows = SETTINGS.values()
    assert {row.treatment for row in rows} == set(TREATMENTS)
    assert all(row.why for row in rows)
    assert {row.test for row in rows} - written == set()
    assert "test_that_nobody_wrote" not in written


def listed(page: str, treatment: str) -> set[tuple[str, str]]:
    """(file, key) of the rows of a treatment in the table of a page: | file | treatment | `key` `key` | why |."""
    found = set()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[1] == treatment:
            found |= {(cells[0].strip("`"), key) for key in re.findall(r"`([\w.]+)`", cells[2])}
    return found


def test_the_page_on_exporting_names_every_setting_that_is_refused() -> None:
    page = (ROOT / "docs" / "exporting.md").read_text("utf-8")
    refused = {row.key for row in SETTINGS.values() if row.treatment == REFUSED and row.file != MODULES_FILE}
    passing = {key for file, key in SETTINGS if file == MODULES_FILE and SETTINGS[file, key].treatment != REFUSED}
    assert unnamed(page, refused | passing) == []
    assert unnamed(page.replace("`stop_strings`", "stops").replace("`Dropout`", ""), refused | passing) == [
        "Dropout",
        "stop_strings",
    ]


def unnamed(page: str, keys: set[str]) -> list[str]:
    """Keys that a page does not name."""
    return sorted(keys - set(re.findall(r"`(\w+)`", page)))


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_the_page_lists_every_setting(treatment: str) -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    wanted = {(row.file, row.key) for row in SETTINGS.values() if row.treatment == treatment}
    assert listed(page, treatment) == wanted
    assert listed(page.replace("`repetition_penalty` ", "").replace("`num_beams` ", ""), REFUSED) != {
        (row.file, row.key) for row in SETTINGS.values() if row.treatment == REFUSED
    }
