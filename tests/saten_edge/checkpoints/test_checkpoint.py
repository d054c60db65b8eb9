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
import transformers
from safetensors.torch import load_file, save_file

from saten_edge.checkpoints.checkpoint import FORMAT_VERSION, seal
from saten_edge.checkpoints.compress import compress
from saten_edge.checkpoints.models import LoadedModel, load_model, save_model
from saten_edge.checkpoints.modules import (
    saten_layers,
)
from saten_edge.decomposition.recipe import Recipe
from saten_runtime.errors import CheckpointError, ExportError, UsageError
from saten_runtime.records.folders import MARK

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


@pytest.fixture(scope="module")
def whole(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`tiny_bert` compressed so that every layer has a train and a residual, by pattern."""
    folders = {}
    for pattern in ("grouped", "unstructured"):
        loaded = load_model(tiny_bert)
        compress(loaded, 0.5, pattern=pattern, group=8, recipe=Recipe(rounds=1, share=0.6))
        folders[pattern] = tmp_path_factory.mktemp("models") / pattern
        save_model(loaded, folders[pattern])
    return folders


@pytest.fixture
def damaged(whole: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """damaged(weights=…, config=…) -> a copy of a checkpoint after both callables changed its files.

    The digests are made anew, so that what lies behind them is tested.
    """

    def make(
        *,
        weights: Callable[[dict[str, torch.Tensor]], Any] = lambda tensors: None,
        config: Callable[[dict[str, Any]], Any] = lambda data: None,
        source: Path = whole["grouped"],
    ) -> Path:
        folder = shutil.copytree(source, tmp_path / "damaged")
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        data = json.loads((folder / "config.json").read_text())
        config(data)
        (folder / "config.json").write_text(json.dumps(data))
        if "layers" in data.get("quantization_config", {}):
            seal(folder)
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

    def test_one_changed_weight_changes_the_bits(self, damaged, whole, texts):
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{LAYER}.residual.values"][0, 0, 0] += 1

        assert not torch.equal(
            hidden(load_model(whole["grouped"]), texts[:4]), hidden(load_model(damaged(weights=change)), texts[:4])
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
        with pytest.raises(
            ExportError, match=r"model_type 'unheard-of' is not known; there are: bert, camembert, .*vit"
        ):
            load_model(folder)

    def test_a_newer_format_version(self, damaged):
        folder = damaged(config=lambda data: data["quantization_config"].update(version=FORMAT_VERSION + 1))
        message = f"saten format version {FORMAT_VERSION + 1}, this saten-edge reads {FORMAT_VERSION}; install"
        with pytest.raises(CheckpointError, match=message):
            load_model(folder)

    def test_a_layer_that_the_architecture_does_not_have(self, damaged):
        def move(data: dict[str, Any]) -> None:
            layers = data["quantization_config"]["layers"]
            layers["encoder.layer.9.dense"] = layers.pop(LAYER)

        with pytest.raises(CheckpointError, match=r"'encoder\.layer\.9\.dense' is not a layer of BertModel"):
            load_model(damaged(config=move))

    @pytest.mark.parametrize(
        "name",
        [f"{LAYER}.cores.1", f"{LAYER}.residual.values", f"{LAYER}.bias", "embeddings.LayerNorm.weight"],
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

    def test_an_entry_named_twice(self, damaged, whole):
        def change(tensors: dict[str, torch.Tensor]) -> None:
            rows = tensors["embeddings.word_embeddings.residual.indices"]
            rows[0, 1] = rows[0, 0].item()

        with pytest.raises(CheckpointError, match="its indices do not name one entry"):
            load_model(damaged(weights=change, source=whole["unstructured"]))

    def test_row_ends_that_fall(self, damaged, whole):
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{LAYER}.residual.lengths"][1] = 60000

        with pytest.raises(CheckpointError, match="its indices do not name one entry"):
            load_model(damaged(weights=change, source=whole["unstructured"]))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"shape": [64, 127]}, r"described as linear \(64, 127\) with bias, expected linear"),
            ({"shape": [2**40, 2**40]}, "described as linear"),
            ({"shape": [64, "128"]}, "is not described as saten-edge does it"),
            ({"shape": [64, -128]}, "is not described as saten-edge does it"),
            ({"kind": "embedding"}, "described as embedding"),
            ({"kind": "conv"}, "described as conv"),
            ({"bias": False}, "expected linear"),
            ({"inputs": 0}, "0 input cores"),
            ({"inputs": 1}, "fewer than the"),
            ({"cores": [[1, 64, 4], [5, 128, 1]], "inputs": 1}, "core 1: left rank 5"),
            ({"cores": [[1, 64, 4], [4, 128, 2]], "inputs": 1}, "last right rank is 2"),
            ({"cores": [[1, 64, 10**6], [10**6, 128, 1]], "inputs": 1}, "holds more values than 4 dense ones would"),
            ({"cores": [[1, 64, 2**62], [2**62, 128, 1]], "inputs": 1}, r"layer '.*'"),
            ({"cores": []}, "input cores"),
            ({"pattern": "blocky"}, "no residual pattern 'blocky'"),
            ({"group": 0}, "is not described as saten-edge does it"),
            ({"group": 7}, "its indices do not name"),
            ({"values": [10**12]}, "holds more values than 4 dense ones would"),
            ({"indices": {"indices": ["load", [1]]}}, "is not described as saten-edge does it"),
            ({"indices": 7}, "is not described as saten-edge does it"),
            ({"surprise": 1}, "is not described as saten-edge does it"),
        ],
    )
    def test_a_spec_that_does_not_fit(self, damaged, change, message):
        """Refused before anything of the sizes it names is allocated."""
        folder = damaged(config=lambda data: data["quantization_config"]["layers"][LAYER].update(change))
        with pytest.raises(CheckpointError, match=message) as caught:
            load_model(folder)
        assert LAYER in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("key", ["cores.0", "residual.values", "bias"])
    @pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
    def test_numbers_that_are_none(self, damaged, key, wrong):
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{LAYER}.{key}"].view(-1)[3] = wrong

        with pytest.raises(CheckpointError, match=rf"{LAYER}\.{key} holds 1 values that are NaN or infinite"):
            load_model(damaged(weights=change))

    def test_another_architecture(self, damaged):
        with pytest.raises(CheckpointError, match=r"is not a layer of|cannot be loaded"):
            load_model(damaged(config=lambda data: data.update(model_type="distilbert")))

    @pytest.mark.parametrize("content", ["{", '{"model_type": "bert", "model_type": "bert"}', '{"a": NaN}', "[]"])
    def test_a_config_that_is_no_strict_json(self, damaged, content):
        folder = damaged()
        (folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json: "):
            load_model(folder)

    def test_a_pooling_that_nobody_knows(self, damaged):
        folder = damaged()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": ["mean", "median"]}))
        seal(folder)
        with pytest.raises(CheckpointError, match=r"pooling by .*median"):
            load_model(folder)


class TestDigests:
    """Every file is what was written, weights also for plain transformers."""

    @pytest.fixture
    def small(self, tiny_saten: Path, tmp_path: Path) -> Path:
        return shutil.copytree(tiny_saten, tmp_path / "small")

    def test_every_truncation_and_flipped_bit_is_refused(self, small):
        """Of a sample of places: every byte of the header's start, and every 997th."""
        path = small / "model.safetensors"
        whole = path.read_bytes()
        places = [*range(0, 64), *range(64, len(whole), 9973)]
        for place in places:
            path.write_bytes(whole[:place])
            with pytest.raises(CheckpointError):
                load_model(small)
        for place in places[::3]:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match=r"its sha256 is not the one in config\.json"):
                transformers.AutoModel.from_pretrained(small)
        path.write_bytes(whole)
        load_model(small)

    def test_every_file_that_is_read_is_listed(self, small):
        listed = json.loads((small / "config.json").read_text())["quantization_config"]["files"]
        there = {path.relative_to(small).as_posix() for path in small.rglob("*") if path.is_file()}
        assert listed.keys() == there - {MARK}  # the mark is for --overwrite
        assert {"tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json"} < listed.keys()

    def test_a_tokenizer_of_another_model(self, small):
        path = small / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        *_, first, second = vocabulary
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]  # every id still has its row
        path.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: its sha256 .* remove it and config\.json from"):
            load_model(small)
        config = json.loads((small / "config.json").read_text())
        for name in ("tokenizer.json", "config.json"):
            del config["quantization_config"]["files"][name]
        (small / "config.json").write_text(json.dumps(config))
        load_model(small)  # as the message says

    def test_a_side_file_that_is_gone(self, small):
        (small / "modules.json").unlink()
        with pytest.raises(CheckpointError, match=r"lists 'modules\.json', which is not a file of the folder"):
            load_model(small)

    def test_a_file_more_or_less_than_listed(self, small):
        config = json.loads((small / "config.json").read_text())
        config["quantization_config"]["files"] = {"model.safetensors": "", "model-2.safetensors": "0" * 64}
        (small / "config.json").write_text(json.dumps(config))
        with pytest.raises(
            CheckpointError, match=r"lists the weight files model-2\.safetensors, model\.safetensors, found"
        ):
            load_model(small)

    def test_a_model_saved_by_transformers_alone_has_none_and_loads(self, tiny_saten, tmp_path, texts):
        """Its weights may have been trained since; digests of another file must not stick to it."""
        loaded = load_model(tiny_saten)
        with torch.no_grad():
            saten_layers(loaded.model)[LAYER].cores[0].mul_(1.5)
        loaded.model.save_pretrained(tmp_path / "plain")
        assert json.loads((tmp_path / "plain" / "config.json").read_text())["quantization_config"]["files"] == {}
        again = transformers.AutoModel.from_pretrained(tmp_path / "plain", add_pooling_layer=False)
        with torch.no_grad():
            assert torch.equal(again(**loaded.encode(texts[:4])).last_hidden_state, hidden(loaded, texts[:4]))


class TestTransformers:
    """What else transformers does with a checkpoint."""

    @pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
    def test_device_maps(self, device_map, tiny_saten, texts):
        model = transformers.AutoModel.from_pretrained(tiny_saten, add_pooling_layer=False, device_map=device_map)
        loaded = load_model(tiny_saten)
        with torch.no_grad():
            assert torch.equal(model(**loaded.encode(texts[:4])).last_hidden_state, hidden(loaded, texts[:4]))

    def test_shards(self, tiny_saten, tmp_path, texts):
        loaded = load_model(tiny_saten)
        save_model(loaded, tmp_path / "sharded", max_shard_size="40KB")
        files = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
        assert len(files) > 2
        listed = json.loads((tmp_path / "sharded" / "config.json").read_text())["quantization_config"]["files"]
        assert sorted(name for name in listed if name.endswith(".safetensors")) == files
        assert torch.equal(hidden(load_model(tmp_path / "sharded"), texts[:4]), hidden(loaded, texts[:4]))
        (tmp_path / "sharded" / files[1]).write_bytes((tmp_path / "sharded" / files[0]).read_bytes())
        with pytest.raises(CheckpointError, match=f"is not in {files[1]}"):
            load_model(tmp_path / "sharded")

    def test_an_index_that_leads_elsewhere(self, tiny_saten, tmp_path):
        save_model(load_model(tiny_saten), tmp_path / "sharded", max_shard_size="40KB")
        index = tmp_path / "sharded" / "model.safetensors.index.json"
        first = sorted(json.loads(index.read_text())["weight_map"].values())[0]
        index.write_text(index.read_text().replace(first, "../elsewhere.safetensors"))
        with pytest.raises(CheckpointError, match=r"is in '\.\./elsewhere\.safetensors', which is not a file"):
            load_model(tmp_path / "sharded")

    def test_half_precision(self, tiny_saten, texts):
        loaded = load_model(tiny_saten)
        half = transformers.AutoModel.from_pretrained(tiny_saten, add_pooling_layer=False, dtype=torch.bfloat16)
        with torch.no_grad():
            got = half(**loaded.encode(texts[:4])).last_hidden_state
        assert got.dtype == torch.bfloat16
        # bfloat16 has 8 bits; two layers of sums of some hundred terms lose a few more.
        wanted = hidden(loaded, texts[:4])
        assert 0 < (got.float() - wanted).norm() <= 16 * 2**-8 * wanted.norm()

    def test_the_body_of_a_saved_encoder_takes_a_new_head(self, tiny_saten, texts):
        loaded = load_model(tiny_saten, "text-classification", num_labels=3)
        assert set(saten_layers(loaded.model)) == {
            f"bert.{name}" for name in saten_layers(load_model(tiny_saten).model)
        }
        assert loaded.layer_parts()[f"bert.{LAYER}"].name == f"bert.{LAYER}"
        with torch.no_grad():
            states = loaded.model.bert(**loaded.encode(texts[:4])).last_hidden_state
        assert torch.equal(states, hidden(load_model(tiny_saten), texts[:4]))

    def test_a_compressed_head_stays_behind_where_it_is_not_asked_for(self, make_tiny, tmp_path, texts):
        loaded = load_model(make_tiny("roberta", "text-classification"))
        compress(loaded, 0.5, group=8, recipe=Recipe(rounds=1, share=0.6))
        assert "classifier.dense" in saten_layers(loaded.model)
        save_model(loaded, tmp_path / "saten")
        body = load_model(tmp_path / "saten", "feature-extraction")
        with torch.no_grad():
            wanted = loaded.model.roberta(**loaded.encode(texts[:4])).last_hidden_state
        assert torch.equal(hidden(body, texts[:4]), wanted)
