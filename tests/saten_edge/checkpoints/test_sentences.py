"""Folders of sentence-transformers against sentence-transformers itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saten_edge.checkpoints.models import LoadedModel, load_model, save_model
from saten_edge.checkpoints.sentences import read_sentences
from saten_exporters.sources.check import SETTINGS, check_settings
from saten_runtime.errors import CheckpointError, ExportError

WIDTH = 64
Written = Callable[..., Path]
PACKAGE = "sentence_transformers.models."


@pytest.fixture
def written(tiny_bert: Path, tmp_path: Path) -> Written:
    """written(files, modules): a copy of the tiny BERT, with these files over its own, and these modules' classes."""

    def write(files: dict[str, Any], modules: list[tuple[str, str]] | None = None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_bert, folder)
        if modules is not None:
            listed = [
                {"idx": k, "name": str(k), "path": path, "type": kind if "." in kind else PACKAGE + kind}
                for k, (path, kind) in enumerate(modules)
            ]
            (folder / "modules.json").write_text(json.dumps(listed))
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                (folder / name).write_text(json.dumps(content))
        return folder

    return write


def embedded(loaded: LoadedModel, texts: list[str]) -> np.ndarray:
    """Vectors by torch and the pooling of a device."""
    batch = loaded.encode(texts)
    with torch.no_grad():
        hidden = loaded.model(**batch).last_hidden_state
    return np.asarray(loaded.pool(hidden, batch["attention_mask"]).numpy())


def of_the_library(folder: Path, texts: list[str]) -> np.ndarray:
    package = pytest.importorskip("sentence_transformers")
    pytest.importorskip("sentence_transformers.base.modules")
    return np.asarray(package.SentenceTransformer(str(folder), device="cpu").encode(texts))


def same(got: np.ndarray, wanted: np.ndarray) -> bool:
    """As close as two float32 evaluations of two layers of 48 are."""
    return got.shape == wanted.shape and bool(np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max())


def weights(**tensors: torch.Tensor) -> bytes:
    from safetensors.torch import save

    return save({name.replace("__", "."): tensor for name, tensor in tensors.items()})


def dense(out: int, **config: Any) -> dict[str, Any]:
    """Files of a dense layer."""
    torch.manual_seed(out)
    tensors = {"linear__weight": torch.randn(out, WIDTH), "linear__bias": torch.randn(out)}
    config = {"in_features": WIDTH, "out_features": out, "bias": True, **config}
    return {"2_Dense/config.json": config, "2_Dense/model.safetensors": weights(**tensors)}


NORM = {
    "3_LayerNorm/config.json": {"dimension": WIDTH},
    "3_LayerNorm/model.safetensors": weights(
        norm__weight=torch.linspace(0.5, 2, WIDTH), norm__bias=torch.linspace(-1, 1, WIDTH)
    ),
}
BASE = [("", "Transformer"), ("1_Pooling", "Pooling")]
PROMPTED = {"prompts": {"query": "gar bel: ", "document": ""}, "default_prompt_name": "query"}
TANH = "torch.nn.modules.activation.Tanh"
# Files and modules, and the file whose loss must be seen.
FOLDERS: dict[str, tuple[dict[str, Any], list[tuple[str, str]] | None]] = {
    "as it is": ({}, None),
    "cls": ({"1_Pooling/config.json": {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True}}, None),
    "new spelling": ({"1_Pooling/config.json": {"embedding_dimension": WIDTH, "pooling_mode": "lasttoken"}}, BASE),
    "two poolings": ({"1_Pooling/config.json": {"embedding_dimension": WIDTH, "pooling_mode": ["max", "mean"]}}, BASE),
    "pooling elsewhere": (
        {"pool/config.json": {"embedding_dimension": WIDTH, "pooling_mode": "weightedmean"}},
        [("", "Transformer"), ("pool", "Pooling")],
    ),
    "dense": (dense(16, activation_function=TANH), [*BASE, ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]),
    "dense without activation": (
        dense(16, activation_function="torch.nn.modules.linear.Identity"),
        [*BASE, ("2_Dense", "Dense")],
    ),
    "dense, norm and dropout": (
        {
            **dense(WIDTH, activation_function="torch.nn.modules.activation.ReLU"),
            **NORM,
            "4_Dropout/config.json": {"dropout": 0.3},
        },
        [*BASE, ("2_Dense", "Dense"), ("3_LayerNorm", "LayerNorm"), ("4_Dropout", "Dropout")],
    ),
    "prompt": ({"config_sentence_transformers.json": PROMPTED}, None),
    "cut vectors": ({"config_sentence_transformers.json": {"truncate_dim": 5}}, None),
    "short texts": ({"sentence_bert_config.json": {"max_seq_length": 6}}, None),
    "an older name of a file": (
        {"sentence_bert_config.json": {}, "sentence_xlm-roberta_config.json": {"max_seq_length": 7}},
        None,
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_vectors_are_those_of_sentence_transformers(name: str, written: Written, texts: list[str]) -> None:
    files, modules = FOLDERS[name]
    folder = written(files, modules)
    some = [*texts[:3], "GAR Bel", "gar " * 40]
    assert same(embedded(load_model(folder), some), of_the_library(folder, some))


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "as it is"])
def test_the_check_of_vectors_catches_a_setting_that_is_dropped(
    name: str, written: Written, tiny_bert: Path, texts: list[str]
) -> None:
    files, modules = FOLDERS[name]
    some = [*texts[:3], "GAR Bel", "gar " * 40]
    assert not same(embedded(load_model(written(files, modules)), some), embedded(load_model(tiny_bert), some))


def test_texts_are_made_lower_case(written: Written, tiny_bert: Path) -> None:
    tokenizer = json.loads((tiny_bert / "tokenizer.json").read_text())
    settings = {"max_seq_length": 64, "do_lower_case": True}
    folder = written({"tokenizer.json": {**tokenizer, "normalizer": None}, "sentence_bert_config.json": settings})
    some = ["GAR Bel", "gar bel"]
    vectors = embedded(load_model(folder), some)
    assert same(vectors, of_the_library(folder, some))
    assert same(vectors[:1], vectors[1:])
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    assert not same(embedded(load_model(folder), some), vectors)


def test_a_saved_model_keeps_all_of_it(written: Written, tmp_path: Path, texts: list[str]) -> None:
    files, modules = FOLDERS["dense, norm and dropout"]
    loaded = load_model(written({**files, "config_sentence_transformers.json": PROMPTED}, modules))
    save_model(loaded, tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert same(embedded(again, texts[:3]), embedded(loaded, texts[:3]))
    assert again.prompt == "gar bel: "
    assert len(again.steps) == 2


@pytest.mark.parametrize("model_too", [False, True])
def test_a_layer_that_torch_pickled_is_read_as_its_safetensors(
    model_too: bool, written: Written, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older versions of sentence-transformers wrote them. model_too: the weights of the model are pickled, too."""
    folder = written(*FOLDERS["dense, norm and dropout"])
    wanted = embedded(load_model(folder), texts[:3])
    for file in (*folder.glob("*_*/model.safetensors"), *[folder / "model.safetensors"] * model_too):
        torch.save(load_file(file), file.with_name("pytorch_model.bin"))
        file.unlink()
    for module in ("foreign", "sentences"):  # its process takes seconds, and has tests of its own
        monkeypatch.setattr(f"saten_edge.checkpoints.{module}.convert_pickle", converted)
    loaded = load_model(folder)
    assert same(embedded(loaded, texts[:3]), wanted)
    save_model(loaded, tmp_path / "again")
    assert same(embedded(load_model(tmp_path / "again"), texts[:3]), wanted)
    layer = folder / next(iter(loaded.sentences.weights))
    torch.save({"other": torch.ones(2)}, layer.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match=f"^{layer.parent}: holds other"):  # and not a copy's path
        load_model(folder)


def converted(file: Path, target: Path) -> None:
    save_file(torch.load(file, weights_only=True), target, {"format": "pt"})


CUSTOM = "custom_code.MyModule"


@pytest.mark.parametrize(
    ("files", "modules", "words"),
    [
        ({}, [*BASE, ("2_LSTM", "LSTM")], "LSTM cannot be expressed"),
        ({}, [("", "Transformer"), ("1_W", "WeightedLayerPooling"), ("1_Pooling", "Pooling")], "WeightedLayerPooling"),
        ({}, [("", "StaticEmbedding")], "StaticEmbedding cannot be expressed"),
        ({}, [*BASE, ("2_Normalize", "Normalize"), ("2_Dense", "Dense")], "this order|Normalize"),
        ({}, [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")], "in the folder itself"),
        ({}, [*BASE, ("2_Mine", CUSTOM)], "code of its own"),
        ({}, [*BASE, ("../2_Dense", "Dense")], "no folder in this one"),
        ({}, [*BASE, ("/etc", "Dense")], "no folder in this one"),
        ({"modules.json": {"a": 1}}, None, "no list of modules"),
        ({"modules.json": [[1]]}, None, "no list of modules"),
        ({"modules.json": [{"type": "x"}]}, None, "no list of modules"),
        ({"modules.json": b"["}, None, "no list of modules"),
        (dense(4, activation_function="torch.nn.modules.activation.GELU"), [*BASE, ("2_Dense", "Dense")], "GELU"),
        (dense(4, activation_function="mine.tanh"), [*BASE, ("2_Dense", "Dense")], "mine.tanh"),
        ({"2_Dense/config.json": {}}, [*BASE, ("2_Dense", "Dense")], "is missing"),
        (
            {"2_Dense/config.json": {}, "2_Dense/model.safetensors": weights(other=torch.ones(2))},
            [*BASE, ("2_Dense", "Dense")],
            "holds other",
        ),
        ({"1_Pooling/config.json": {"pooling_mode": "attention"}}, None, r"pooling by \['attention'\]"),
        (
            {"config_sentence_transformers.json": {"default_prompt_name": "query"}},
            None,
            "default_prompt_name is 'query'",
        ),
        ({"config_sentence_transformers.json": {"prompts": ["query: "]}}, None, "expected a text for each name"),
        ({"config_sentence_transformers.json": {"truncate_dim": 0}}, None, "truncate_dim is 0; expected a whole"),
        ({"sentence_bert_config.json": {"max_seq_length": "9"}}, None, "max_seq_length is '9'; expected a whole"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_module_that_cannot_be_expressed_is_refused(
    files: dict[str, Any], modules: Any, words: str, written: Written
) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_sentences(written(files, modules))


def test_output_flags_change_nothing(written: Written, tiny_bert: Path, texts: list[str]) -> None:
    config = json.loads((tiny_bert / "config.json").read_text())
    flags = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}
    folder = written({"config.json": {**config, **flags}})
    loaded = load_model(folder)
    assert same(embedded(loaded, texts[:3]), embedded(load_model(tiny_bert), texts[:3]))
    assert len(loaded.model(**loaded.encode(texts[:1]))) == 1


def test_what_transformers_does_not_read_changes_nothing(written: Written, tiny_bert: Path, texts: list[str]) -> None:
    me = "test_what_transformers_does_not_read_changes_nothing"
    odd: dict[str, Any] = {row.key: 3 for row in SETTINGS.values() if row.test == me}
    assert {"n_ctx", "pruned_heads", "rope_interleaved"} <= set(odd)
    config = json.loads((tiny_bert / "config.json").read_text())
    folder = written({"config.json": {**config, **odd, "pruned_heads": {"0": [1]}}})
    assert same(embedded(load_model(folder), texts[:3]), embedded(load_model(tiny_bert), texts[:3]))


# --- cross-encoders ----------------------------------------------------------------------------------------------

PAIRS = [("GAR bel", "bel dor! " * 9), ("gar", "x9, bel?"), ("", "bel"), ("gar", "")]


@pytest.fixture
def cross_encoder(make_tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A cross-encoder as the library saves it, with a prompt, a length, and texts in lower case."""
    package = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "base"
    shutil.copytree(make_tiny("bert", "text-classification", num_labels=1), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": None}))
    model = package.CrossEncoder(
        str(folder),
        device="cpu",
        prompts={"query": "Gar: "},
        default_prompt_name="query",
        activation_fn=torch.nn.Identity(),
    )
    model.save_pretrained(str(tmp_path / "cross"))
    side = tmp_path / "cross" / "sentence_bert_config.json"
    side.write_text(json.dumps({**json.loads(side.read_text()), "max_seq_length": 16, "do_lower_case": True}))
    return tmp_path / "cross"


def scores(folder: Path) -> np.ndarray:
    """By what is loaded of it."""
    loaded = load_model(folder)
    with torch.no_grad():
        return np.asarray(loaded.model(**loaded.encode(PAIRS)).logits[:, 0])


def test_a_cross_encoder_scores_as_in_sentence_transformers(cross_encoder: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    wanted = package.CrossEncoder(str(cross_encoder), device="cpu").predict(PAIRS)
    found = scores(cross_encoder)
    assert same(found, wanted)
    assert load_model(cross_encoder).task == "text-classification"
    for name, change in {
        "config_sentence_transformers.json": {"default_prompt_name": None},
        "sentence_bert_config.json": {"max_seq_length": 8},
    }.items():
        path = cross_encoder / name
        kept = path.read_text()
        path.write_text(json.dumps({**json.loads(kept), **change}))
        assert not same(scores(cross_encoder), found)
        path.write_text(kept)


def test_settings_of_a_cross_encoder_are_looked_at(cross_encoder: Path) -> None:
    assert check_settings(load_model(cross_encoder)) == []
    path = cross_encoder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "activation_fn": TANH}))
    (notice,) = check_settings(load_model(cross_encoder))
    assert notice.startswith("config_sentence_transformers.json: activation_fn = 'torch.nn.modules.activation.Tanh': ")
    side = cross_encoder / "sentence_bert_config.json"
    side.write_text(json.dumps({**json.loads(side.read_text()), "module_output_name": "token_embeddings_2"}))
    with pytest.raises(ExportError, match="module_output_name = 'token_embeddings_2' cannot be honoured"):
        check_settings(load_model(cross_encoder))


def test_a_saved_cross_encoder_keeps_its_prompt(cross_encoder: Path, tmp_path: Path) -> None:
    save_model(load_model(cross_encoder), tmp_path / "again")
    assert same(scores(tmp_path / "again"), scores(cross_encoder))
    assert load_model(tmp_path / "again").prompt == "Gar: "
