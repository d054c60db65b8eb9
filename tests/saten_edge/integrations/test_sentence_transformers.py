"""Bundles in sentence-transformers, against `Runner` and against the model that they were made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saten_edge.checkpoints.models import load_model
from saten_exporters import export
from saten_runtime import Runner
from saten_runtime.errors import UsageError

library = pytest.importorskip(
    "sentence_transformers", reason="needs sentence-transformers (extra saten-edge[sentence-transformers])"
)
pytest.importorskip("sentence_transformers.base.modules", reason="needs sentence-transformers 6 or newer")

from saten_edge.integrations.sentence_transformers import BundleModule, sentence_transformer  # noqa: E402

WIDTH, OUT = 64, 16
PROMPTS = {"query": "gar bel: ", "document": "tor: "}
# Two float32 evaluations of two layers and one of 64 products after them.
TORCH = 1e-4


def save_with_all_modules(folder: Path, tiny_bert: Path) -> None:
    """The tiny BERT with a pooling, a dense layer, a normalization, prompts and a similarity."""
    shutil.copytree(tiny_bert, folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    dense = {
        "in_features": WIDTH,
        "out_features": OUT,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    torch.manual_seed(OUT)
    weights = {"linear.weight": torch.randn(OUT, WIDTH), "linear.bias": torch.randn(OUT)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(modules))
    config = {"prompts": PROMPTS, "default_prompt_name": "document", "similarity_fn_name": "dot"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def model(tiny_bert: Path, shared: Any) -> Path:
    return shared("models/sentences", lambda folder: save_with_all_modules(folder, tiny_bert))


@pytest.fixture(scope="module")
def bundle(model: Path, shared: Any) -> Path:
    return shared("bundles/sentences", lambda out: export(load_model(model), out, name="sentences"))


@pytest.fixture(scope="module")
def theirs(model: Path) -> Any:
    return library.SentenceTransformer(str(model), device="cpu")


def test_vectors_are_those_of_the_runner(bundle: Path, texts: list[str]) -> None:
    expected = Runner.load(bundle).predict(texts)
    for ours in (sentence_transformer(bundle), library.SentenceTransformer(modules=[BundleModule(bundle)])):
        found = ours.encode(texts, batch_size=7)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.abs(found[::-1] - expected).max() > 1e-3  # another order would be seen
        assert ours.get_embedding_dimension() == found.shape[1] == OUT


@pytest.mark.parametrize("way", ["encode", "encode_query", "encode_document"])
def test_every_way_to_encode_and_its_prompt_are_those_of_the_model(
    way: str, bundle: Path, theirs: Any, texts: list[str]
) -> None:
    ours = sentence_transformer(bundle)
    expected = getattr(theirs, way)(texts[:12])
    np.testing.assert_allclose(getattr(ours, way)(texts[:12]), expected, atol=TORCH)
    assert np.abs(ours.encode(texts[:12], prompt="") - expected).max() > 10 * TORCH  # the prompt is not for nothing


@pytest.mark.parametrize(
    "how",
    [
        {"prompt": "bel "},
        {"truncate_dim": 5},
        {"normalize_embeddings": True, "truncate_dim": 5},
        {"prompt_name": "query"},
    ],
    ids=str,
)
def test_settings_of_a_call_do_what_they_do_to_the_model(
    how: dict[str, Any], bundle: Path, theirs: Any, texts: list[str]
) -> None:
    np.testing.assert_allclose(
        sentence_transformer(bundle).encode(texts[:6], **how), theirs.encode(texts[:6], **how), atol=TORCH
    )


def test_similarity_is_the_models(bundle: Path, theirs: Any, texts: list[str]) -> None:
    ours = sentence_transformer(bundle)
    queries, documents = ours.encode_query(texts[:3]), ours.encode_document(texts[3:8])
    found = ours.similarity(queries, documents)
    assert ours.similarity_fn_name == theirs.similarity_fn_name == "dot"
    np.testing.assert_allclose(found, queries @ documents.T, atol=1e-6)
    expected = theirs.similarity(theirs.encode_query(texts[:3]), theirs.encode_document(texts[3:8]))
    np.testing.assert_allclose(found, expected, atol=10 * TORCH)


def test_texts_are_cut_where_the_model_cuts_them(bundle: Path, theirs: Any) -> None:
    ours, long = sentence_transformer(bundle), ["gar bel tor " * 20]
    assert ours.max_seq_length == theirs.max_seq_length == 64
    whole = ours.encode(long)
    ours.max_seq_length = theirs.max_seq_length = 9
    try:
        np.testing.assert_allclose(ours.encode(long), theirs.encode(long), atol=TORCH)
        assert np.abs(ours.encode(long) - whole).max() > 10 * TORCH
    finally:
        theirs.max_seq_length = 64
    with pytest.raises(UsageError, match="takes texts of 1 to 64 tokens, not 65"):
        ours.max_seq_length = 65


def test_vectors_of_tokens(bundle: Path, theirs: Any, texts: list[str]) -> None:
    ours = sentence_transformer(bundle).encode(texts[:4], output_value="token_embeddings")
    for found, expected in zip(ours, theirs.encode(texts[:4], output_value="token_embeddings"), strict=True):
        np.testing.assert_allclose(found, expected, atol=10 * TORCH)


def test_a_folder_that_it_saves_is_loaded_with_trust_alone(bundle: Path, texts: list[str], tmp_path: Path) -> None:
    ours = sentence_transformer(bundle)
    ours.save_pretrained(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(again.encode_query(texts[:5]), ours.encode_query(texts[:5]))
    np.testing.assert_array_equal(again.encode(texts[:5]), ours.encode(texts[:5]))


def test_what_a_bundle_cannot_is_refused(bundle: Path, make_tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="processing_kwargs"):
        sentence_transformer(bundle).encode(["gar"], processing_kwargs={"text": {"max_length": 3}})
    classifier = make_tiny("bert", "text-classification")
    export(load_model(classifier), tmp_path / "classifier")
    with pytest.raises(UsageError, match="expected one that embeds texts"):
        BundleModule(tmp_path / "classifier")
