"""What a loaded model says of its layers, and how it prepares inputs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.checkpoints.modules import (
    saten_layers,
)
from saten_exporters.exportable import LayerParts


def hidden(loaded: LoadedModel, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(**loaded.encode(texts)).last_hidden_state


def add_residual(dense: np.ndarray, part: LayerParts) -> None:
    """Add S, as its layout is documented, to a matrix (in, out)."""
    if part.layout == "grouped":
        groups, size, kept = part.values.shape
        for group, place, column in np.ndindex(groups, size, kept):
            dense[part.indices["indices"][group, column], group * size + place] += part.values[group, place, column]
    elif part.layout == "csr":
        outputs = np.repeat(np.arange(part.shape[1]), np.diff(part.indices["indptr"]))
        dense[part.indices["indices"], outputs] += part.values
    elif part.layout == "rows":
        dense[part.indices["rows"]] += part.values
    elif part.layout == "ell":
        np.add.at(dense, (np.arange(len(dense))[:, None], part.indices["indices"]), part.values)
    else:
        assert part.layout == "none"


class TestLoadedModel:
    def test_side_files_say_what_follows_the_model(self, tiny_bert):
        loaded = load_model(tiny_bert)
        assert (loaded.postprocess.pooling, loaded.postprocess.normalize, loaded.max_length) == ("mean", True, 64)

    def test_without_side_files_the_mean_and_the_models_positions(self, tiny_bert, tmp_path):
        folder = shutil.copytree(tiny_bert, tmp_path / "bare")
        shutil.rmtree(folder / "1_Pooling")
        (folder / "modules.json").unlink()
        (folder / "sentence_bert_config.json").unlink()
        loaded = load_model(folder)
        assert (loaded.postprocess.pooling, loaded.postprocess.normalize, loaded.max_length) == ("mean", True, 96)

    def test_cls_pooling_without_normalization(self, tiny_bert, tmp_path, texts):
        folder = shutil.copytree(tiny_bert, tmp_path / "cls")
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
        (folder / "modules.json").write_text("[]")
        loaded = load_model(folder)
        states = hidden(loaded, texts[:3])
        assert torch.equal(loaded.pool(states, torch.ones(states.shape[:2])), states[:, 0])

    def test_pooling_leaves_padding_out(self, tiny_bert, texts):
        loaded = load_model(tiny_bert)
        batch = loaded.encode(texts[:6])
        mask = batch["attention_mask"]
        assert not mask.bool().all()
        states = hidden(loaded, texts[:6])
        kept = [row[: int(length)].mean(0) for row, length in zip(states, mask.sum(1), strict=True)]
        expected = torch.nn.functional.normalize(torch.stack(kept), dim=-1)
        assert torch.allclose(loaded.pool(states, mask), expected, atol=1e-6)
        assert not torch.allclose(loaded.pool(states, torch.ones_like(mask)), expected, atol=1e-3)

    def test_texts_are_cut_to_the_models_length(self, tiny_bert):
        long = " ".join(["gar"] * 500)
        assert load_model(tiny_bert).encode([long])["input_ids"].shape == (1, 64)
        assert load_model(tiny_bert).encode([long], 10)["input_ids"].shape == (1, 10)

    def test_the_pooler_is_not_loaded(self, tiny_bert):
        assert load_model(tiny_bert).model.pooler is None

    @pytest.mark.parametrize("fixture", ["tiny_saten", "tiny_saten_unstructured"])
    def test_layer_parts_are_the_numbers_of_the_layers(self, fixture, request):
        """A B + S of the parts, computed by numpy, is the matrix that torch multiplies with."""
        loaded = load_model(request.getfixturevalue(fixture))
        layers = saten_layers(loaded.model)
        parts = loaded.layer_parts()
        assert set(parts) == set(layers)
        for name, part in parts.items():
            dense = part.a.astype(np.float64) @ part.b
            add_residual(dense, part)
            matrix = layers[name].matrix().detach().numpy()
            scale = np.abs(part.a) @ np.abs(part.b) + np.abs(matrix)
            longest = 4 * sum(core[0] * core[1] for core in layers[name].spec.cores)
            assert (np.abs(dense - matrix) <= longest * np.finfo(np.float32).eps * scale.max()).all(), name

    def test_a_dense_model_has_no_layer_parts(self, tiny_bert):
        assert load_model(tiny_bert).layer_parts() == {}
