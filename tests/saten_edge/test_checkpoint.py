"""Saten checkpoints: written and read back bit for bit, by us and by plain transformers; damaged ones refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saten_edge.models import LoadedModel, load_model, save_model
from saten_edge.modules import LayerSpec, SatenLinear, build_module, saten_layers
from saten_edge.residual import PATTERNS, pattern_named, scatter
from saten_edge.tt import tensor_train
from saten_runtime.errors import CheckpointError, UsageError

LAYER = "encoder.layer.0.intermediate.dense"
# Without saten_edge, transformers reads the folder as a dense model that lacks most of its weights.
TRANSFORMERS_FIRST = """
import numpy, torch, transformers
assert "Saten" not in repr(transformers.AutoModel.from_pretrained(sys.argv[1]))
import saten_edge
"""
READ = """
import sys
{imports}
model = transformers.AutoModel.from_pretrained(sys.argv[1], add_pooling_layer=False).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    batch = tokenizer(["Gar men.", "A file of numbers."], padding=True, return_tensors="pt")
    numpy.save(sys.argv[2], model(**batch).last_hidden_state.numpy())
"""


def hidden(loaded: LoadedModel, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(**loaded.encode(texts)).last_hidden_state


@pytest.fixture
def damaged(tiny_saten: Path, tmp_path: Path) -> Callable[..., Path]:
    """damaged(weights=…, config=…) -> a copy of `tiny_saten` after both callables changed its files."""

    def make(
        *,
        weights: Callable[[dict[str, torch.Tensor]], Any] = lambda tensors: None,
        config: Callable[[dict[str, Any]], Any] = lambda data: None,
        source: Path = tiny_saten,
    ) -> Path:
        folder = shutil.copytree(source, tmp_path / "damaged")
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        data = json.loads((folder / "config.json").read_text())
        config(data)
        (folder / "config.json").write_text(json.dumps(data))
        return folder

    return make


class TestRoundTrip:
    @pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_saten", "tiny_saten_unstructured"])
    def test_saved_and_loaded_again_gives_the_same_bits(self, fixture, request, tmp_path, texts):
        first = load_model(request.getfixturevalue(fixture))
        save_model(first, tmp_path / "again")
        second = load_model(tmp_path / "again")
        assert torch.equal(hidden(first, texts[:4]), hidden(second, texts[:4]))
        assert (first.postprocess, first.max_length) == (second.postprocess, second.max_length)

    def test_one_changed_weight_changes_the_bits(self, damaged, tiny_saten, texts):
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{LAYER}.residual.values"][0, 0, 0] += 1

        assert not torch.equal(
            hidden(load_model(tiny_saten), texts[:4]), hidden(load_model(damaged(weights=change)), texts[:4])
        )

    def test_the_compressed_model_differs_from_the_dense_one_and_resembles_it(self, tiny_bert, tiny_saten, texts):
        dense, saten = (load_model(path) for path in (tiny_bert, tiny_saten))
        error = (hidden(dense, texts[:8]) - hidden(saten, texts[:8])).norm() / hidden(dense, texts[:8]).norm()
        assert 0 < error < 1

    @pytest.mark.parametrize(
        "imports",
        [
            "import numpy, torch, saten_edge, transformers",
            TRANSFORMERS_FIRST,
        ],
        ids=["saten_edge first", "transformers first"],
    )
    def test_plain_transformers_reads_it(self, imports, tiny_saten, tmp_path, texts):
        out = tmp_path / "hidden.npy"
        code = READ.format(imports=imports)
        done = subprocess.run([sys.executable, "-c", code, tiny_saten, out], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ours = hidden(load_model(tiny_saten), ["Gar men.", "A file of numbers."])
        assert np.array_equal(np.load(out), ours.numpy())

    def test_saving_leaves_nothing_behind_when_it_fails(self, tiny_saten, tmp_path):
        with pytest.raises(ValueError, match="JSON compliant"):
            save_model(load_model(tiny_saten), tmp_path / "out", extra={"bad.json": float("nan")})
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_output_is_refused_and_left_alone(self, tiny_saten, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(UsageError, match="already exists"):
            save_model(load_model(tiny_saten), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_saving_and_loading_are_silent(self, tiny_saten, tmp_path, capfd):
        save_model(load_model(tiny_saten), tmp_path / "out")
        assert capfd.readouterr() == ("", "")


class TestRefusals:
    def test_a_folder_that_does_not_exist(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
            load_model(tmp_path / "nowhere")

    def test_a_folder_without_a_config(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            load_model(tmp_path)

    def test_a_config_of_no_known_architecture(self, damaged):
        folder = damaged(config=lambda data: data.update(model_type="unheard-of"))
        with pytest.raises(CheckpointError, match="cannot be loaded as a transformers model"):
            load_model(folder)

    def test_a_newer_format_version(self, damaged):
        folder = damaged(config=lambda data: data["quantization_config"].update(version=2))
        with pytest.raises(CheckpointError, match="saten format version 2, this saten-edge reads 1; install"):
            load_model(folder)

    def test_a_layer_that_the_architecture_does_not_have(self, damaged):
        def move(data: dict[str, Any]) -> None:
            layers = data["quantization_config"]["layers"]
            layers["encoder.layer.9.dense"] = layers.pop(LAYER)

        with pytest.raises(CheckpointError, match=r"'encoder\.layer\.9\.dense' is none of BertModel's layers"):
            load_model(damaged(config=move))

    @pytest.mark.parametrize(
        "name",
        [f"{LAYER}.cores.1", f"{LAYER}.residual.values", f"{LAYER}.bias", "embeddings.position_embeddings.weight"],
    )
    def test_missing_weights(self, damaged, name):
        with pytest.raises(CheckpointError, match=f"{name} is missing from its safetensors files"):
            load_model(damaged(weights=lambda tensors: tensors.pop(name)))

    def test_missing_weights_of_a_dense_model(self, damaged, tiny_bert):
        def drop(tensors: dict[str, torch.Tensor]) -> None:
            del tensors[f"{LAYER}.weight"], tensors[f"{LAYER}.bias"]

        with pytest.raises(CheckpointError, match=f"{LAYER}.bias and 1 more weights are missing"):
            load_model(damaged(weights=drop, source=tiny_bert))

    def test_weights_of_another_shape(self, damaged):
        def cut(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{LAYER}.cores.1"] = tensors[f"{LAYER}.cores.1"][:, :-1].clone()

        with pytest.raises(CheckpointError, match="cannot be loaded"):
            load_model(damaged(weights=cut))

    @pytest.mark.parametrize("wrong", [10**6, -1])
    def test_indices_outside_the_matrix(self, damaged, wrong):
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{LAYER}.residual.indices"][0, -1] = wrong

        with pytest.raises(CheckpointError, match=rf"{LAYER}\.residual: its indices do not name .* 64 × 128"):
            load_model(damaged(weights=change))

    def test_an_entry_named_twice(self, damaged, tiny_saten_unstructured):
        def change(tensors: dict[str, torch.Tensor]) -> None:
            rows = tensors["embeddings.word_embeddings.residual.indices"]
            rows[0, 1] = rows[0, 0].item()

        with pytest.raises(CheckpointError, match="its indices do not name one entry"):
            load_model(damaged(weights=change, source=tiny_saten_unstructured))

    def test_row_ends_that_fall(self, damaged, tiny_saten_unstructured):
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{LAYER}.residual.indptr"][1] = 10**6

        with pytest.raises(CheckpointError, match="its indices do not name one entry"):
            load_model(damaged(weights=change, source=tiny_saten_unstructured))

    def test_two_poolings_at_once(self, damaged):
        folder = damaged()
        modes = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
        with pytest.raises(CheckpointError, match=r"pooling by .*max_tokens"):
            load_model(folder)


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
            width = part.shape[1]
            pattern = pattern_named(part.pattern, part.kind, group=layers[name].spec.group, width=width)
            indices = {key: torch.from_numpy(array) for key, array in part.indices.items()}
            where = pattern.positions(indices, part.shape).numpy()
            dense = part.a.astype(np.float64) @ part.b
            dense.reshape(-1)[where.reshape(-1)] += part.values.reshape(-1)
            matrix = layers[name].matrix().detach().numpy()
            scale = np.abs(part.a) @ np.abs(part.b) + np.abs(matrix)
            longest = 4 * sum(core[0] * core[1] for core in layers[name].spec.cores)
            assert (np.abs(dense - matrix) <= longest * np.finfo(np.float32).eps * scale.max()).all(), name

    def test_a_dense_model_has_no_layer_parts(self, tiny_bert):
        assert load_model(tiny_bert).layer_parts() == {}


def small_linear(pattern: str = "grouped", dtype: torch.dtype = torch.float64) -> SatenLinear:
    """(6 → 8), bond 2, with a residual of 2 outputs per block or of 8 entries."""
    generator = torch.Generator().manual_seed(3)
    train = tensor_train(
        torch.randn(6, 2, generator=generator, dtype=dtype),
        torch.randn(2, 8, generator=generator, dtype=dtype),
        ((2, 3), (4, 2)),
    )
    chosen = pattern_named(pattern, "linear", group=2, width=8)
    matrix = torch.randn(6, 8, generator=generator, dtype=dtype)
    residual = chosen.extract(matrix, chosen.select(matrix.square(), 8))
    spec = LayerSpec(
        kind="linear",
        shape=(6, 8),
        cores=tuple(tuple(core.shape) for core in train.cores),
        inputs=2,
        pattern=pattern,
        group=2,
        values=tuple(residual.values.shape),
        indices={
            name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in residual.indices.items()
        },
        bias=True,
        padding_idx=None,
        error=0.0,
    )
    module = build_module("small", spec, dtype)
    assert isinstance(module, SatenLinear)
    module.set_parts(train, residual)
    torch.nn.init.normal_(module.bias, generator=generator)
    return module


class TestSatenLinear:
    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_forward_is_train_plus_residual_plus_bias(self, pattern):
        module = small_linear(pattern)
        x = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        where = module.residual.pattern.positions(module.residual.index_tensors(), (6, 8))
        dense = module.train_part().dense() + scatter(module.residual.values, where, (6, 8))
        assert torch.allclose(module(x), torch.einsum("bti,io->bto", x, dense) + module.bias, rtol=0, atol=1e-13)

    def test_each_part_matters(self):
        x = torch.eye(6, dtype=torch.float64)
        for part in ("cores.0", "cores.3", "residual.values", "bias"):
            module = small_linear()
            before = module(x)
            with torch.no_grad():
                module.get_parameter(part).zero_()
            assert not torch.allclose(module(x), before, atol=1e-3), part

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_gradients_reach_every_core_and_value(self, pattern):
        """Against central differences, whose own error is O(h²) + eps / h."""
        module = small_linear(pattern)
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

        def loss() -> torch.Tensor:
            return module(x).square().sum()

        loss().backward()
        step = 1e-5
        for name, parameter in module.named_parameters():
            flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
            for k in range(flat.numel()):
                kept = flat[k].item()
                flat[k] = kept + step
                above = loss().item()
                flat[k] = kept - step
                below = loss().item()
                flat[k] = kept
                assert gradient[k].item() == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-6), name
            assert (gradient != 0).any(), name

    def test_specs_survive_json(self):
        spec = small_linear("unstructured").spec
        assert LayerSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
