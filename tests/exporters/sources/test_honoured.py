"""Models whose files say something unusual: what their bundles compute is what Python computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from saten_edge.checkpoints.models import load_model
from saten_exporters import export
from saten_exporters.bundles.preparation import save_tokenizer
from saten_runtime import Runner, Sampling
from saten_runtime.bundle.folder import Bundle
from saten_runtime.cli import main
from saten_runtime.errors import UsageError
from saten_runtime.run.text import Encoder
from saten_runtime.vocabulary.tasks import TEXT_GENERATION

Changed = Callable[..., Path]
LONG = "gar bel [SEP] dor! " * 60


@pytest.fixture
def changed(tiny_bert: Path, tmp_path: Path) -> Changed:
    """changed(**settings of the tokenizer): a copy of the tiny BERT without sentence-transformers' files."""

    def change(**settings: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_bert, folder)
        for name in ("modules.json", "sentence_bert_config.json"):
            (folder / name).unlink()
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
        return folder

    return change


def on_the_device(folder: Path, target: Path) -> Encoder:
    """The tokenizer of a bundle, without its graph."""
    target.mkdir()
    loaded = load_model(folder)
    manifest: Any = type("Manifest", (), {"tokenizer": save_tokenizer(loaded, target), "inputs": [], "image": None})
    manifest.task = manifest.name = "feature-extraction"
    return Encoder(Bundle(target, manifest))


SETTINGS = {
    "none": {},
    "split": {"split_special_tokens": True},
    "short": {"model_max_length": 9},
    "left": {"model_max_length": 9, "truncation_side": "left"},
    "left and split": {"model_max_length": 9, "truncation_side": "left", "split_special_tokens": True},
    "padded": {"padding_side": "left", "pad_to_multiple_of": 8},
    "added": {"additional_special_tokens": ["bel"]},
}


def ids_of_both(name: str, changed: Changed, tmp_path: Path) -> tuple[list[list[int]], list[list[int]]]:
    texts = ["gar bel [SEP] dor", "Gar, bel?", LONG, ""]
    folder = changed(**SETTINGS[name])
    python = transformers.AutoTokenizer.from_pretrained(folder)
    longest = min(python.model_max_length, 96)
    wanted = [python(text, truncation=True, max_length=longest)["input_ids"] for text in texts]
    return [row.ids.tolist() for row in on_the_device(folder, tmp_path / "bundle").encode(texts)], wanted


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tokenizer_of_a_bundle_is_that_of_transformers(name: str, changed: Changed, tmp_path: Path) -> None:
    got, wanted = ids_of_both(name, changed, tmp_path)
    assert got == wanted


def test_special_tokens_in_a_text_are_text(changed: Changed, tiny_bert: Path, tmp_path: Path) -> None:
    got, _ = ids_of_both("split", changed, tmp_path)
    assert got[0] != load_model(tiny_bert).tokenizer("gar bel [SEP] dor")["input_ids"]


def test_a_text_is_cut_where_python_cuts_it(changed: Changed, tmp_path: Path) -> None:
    got, _ = ids_of_both("left", changed, tmp_path)
    assert [len(ids) for ids in got[2:]] == [9, 2]
    assert got[2] != load_model(tmp_path / "model").tokenizer(LONG, max_length=9, truncation=True)["input_ids"][::-1]


# --- whole bundles -----------------------------------------------------------------------------------------------

CHOICE = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3, "suppress_tokens": [11, 12], "min_new_tokens": 4}


def test_the_last_call_of_a_tokenizer_is_no_setting(tiny_bert: Path, tmp_path: Path) -> None:
    loaded, files = load_model(tiny_bert), []
    for place in ("before", "after"):
        (tmp_path / place).mkdir()
        save_tokenizer(loaded, tmp_path / place)
        files.append((tmp_path / place / "tokenizer.json").read_bytes())
        loaded.tokenizer(["gar", "bel dor"], truncation=True, max_length=5, padding=True)
    assert files[0] == files[1]
    assert loaded.tokenizer.backend_tokenizer.truncation["max_length"] == 5


def test_an_empty_second_text_of_a_pair_stays_one(changed: Changed, tmp_path: Path) -> None:
    """As in a call with columns of texts, which is what sentence-transformers' CrossEncoder makes."""
    folder = changed()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    columns = tokenizer(["gar", ""], ["", "bel"])
    found = on_the_device(folder, tmp_path / "bundle").encode([("gar", ""), ("", "bel")])
    assert [each.ids.tolist() for each in found] == columns["input_ids"]
    assert [each.types.tolist() for each in found] == columns["token_type_ids"]
    assert tokenizer("gar", "")["input_ids"] == columns["input_ids"][0][:-1]


@pytest.fixture(scope="module")
def decoder(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A decoder whose files have rules for generation, and its bundle."""
    folder = tmp_path_factory.mktemp("rules")
    shutil.copytree(make_tiny("llama", TEXT_GENERATION.hub), folder / "model")
    config = {"eos_token_id": [3, 5], "pad_token_id": 0, "bad_words_ids": [[13]], "brand_new": 1, **CHOICE}
    (folder / "model" / "generation_config.json").write_text(json.dumps(config))
    export(load_model(folder / "model"), folder / "bundle")
    return folder / "model", folder / "bundle"


def test_the_settings_of_generation(decoder: tuple[Path, Path]) -> None:
    folder, bundle = decoder
    runner = Runner.load(bundle)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found, plain = [], []
    for prompt in ("gar bel dor", "bel", "dor, gar!"):
        ids = runner.encoder.encode([prompt])[0].ids.tolist()
        out = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
        assert list(runner.generate_ids(prompt, Sampling(20))) == [token for token in out if token not in (3, 5)]
        found.append(out)
        model.generation_config, kept = transformers.GenerationConfig(eos_token_id=3), model.generation_config
        plain.append(model.generate(torch.tensor([ids]), max_new_tokens=20)[0, len(ids) :].tolist())
        model.generation_config = kept
    assert found != plain  # rules that are dropped would be seen
    assert runner.bundle.generation.stop_ids == [3, 5]


def test_what_is_reported_is_in_manifest_and_card(decoder: tuple[Path, Path]) -> None:
    (notice,) = Bundle.open(decoder[1]).manifest.notices
    assert "generation_config.json: brand_new = 1" in notice
    assert notice in (decoder[1] / "README.md").read_text("utf-8")


def test_a_prompt_beyond_the_context_is_refused(decoder: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner.load(decoder[1])
    for ask in (lambda: list(runner.generate(LONG)), lambda: runner.predict([LONG])):
        with pytest.raises(UsageError, match="takes at most 96 tokens, found"):
            ask()
    assert main(["generate", str(decoder[1]), LONG]) == 2
    assert main(["predict", str(decoder[1]), LONG]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("takes at most 96 tokens") == 2
    assert runner.surprise(LONG)[1] == 95  # a text is judged up to the end of the context


def test_a_bundle_embeds_as_sentence_transformers_does(tiny_bert: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.base.modules")
    more = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(0)
    parts = [modules.Transformer(str(tiny_bert)), more.Pooling(64, ("cls", "mean")), modules.Dense(128, 24)]
    model = package.SentenceTransformer(
        modules=[*parts, more.LayerNorm(24), modules.Normalize()], device="cpu", truncate_dim=10
    )
    model.prompts, model.default_prompt_name = {"query": "gar: ", "other": "bel: "}, "query"
    model.save(str(tmp_path / "model"))
    texts = ["gar bel dor", "Bel, gar!", "gar " * 90]
    wanted = package.SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts)
    export(load_model(tmp_path / "model"), tmp_path / "bundle")
    runner = Runner.load(tmp_path / "bundle")
    got = runner.predict(texts)
    assert got.shape == wanted.shape == (3, 10)
    # Within the bundle's own bound for the graph; what follows is a sum of 128 products and two norms.
    bound = 16 * runner.bundle.manifest.tolerance["relative"]
    assert np.abs(got - wanted).max() <= bound
    assert np.abs(np.roll(got, 1, axis=0) - wanted).max() > 10 * bound
    assert [notice.split(" = ")[0] for notice in runner.bundle.manifest.notices] == [
        "config_sentence_transformers.json: prompts"
    ]
