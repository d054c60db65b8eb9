"""Checkpoints of FLAT: what is read again, what may follow, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import saten_edge
from saten_edge.checkpoints.models import load_model
from saten_edge.checkpoints.modules import saten_layers
from saten_edge.decomposition.recipe import Recipe
from saten_edge.options import CompressOptions
from saten_runtime.errors import CheckpointError, UsageError

FLAT = CompressOptions(method="flat")


@pytest.fixture(scope="module")
def flat_bert(tiny_bert: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flat") / "out"
    saten_edge.compress(tiny_bert, out, FLAT, calibration=texts[:16])
    return out


def test_a_flat_model_is_fine_tuned_and_then_decomposed(flat_bert, tiny_bert, texts, tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts[:16]))
    schedule = saten_edge.Schedule(steps=2, batch_size=8)
    tuning = saten_edge.FinetuneOptions(teacher=str(tiny_bert), schedule=schedule)
    saten_edge.finetune(flat_bert, tmp_path / "tuned", str(data), tuning)
    options = CompressOptions(0.4, group=8, allocation="uniform", recipe=Recipe(rounds=1))
    saten_edge.compress(tmp_path / "tuned", tmp_path / "both", options)
    both = load_model(tmp_path / "both")
    assert [stage.stage for stage in both.recipe.stages] == ["flat", "finetune", "compress"]
    assert both.model.config.quantization_config.sizes == {
        f"encoder.layer.{block}": {"value": 12, "intermediate": 96} for block in range(2)
    }
    with torch.no_grad():
        assert torch.isfinite(both.model(**both.encode(texts[64:72])).last_hidden_state).all()


def test_trains_in_smaller_layers_are_fine_tuned_towards_the_dense_model(tiny_bert, texts, tmp_path):
    """Errors are those of the layers that FLAT left as large as they were; it made the others smaller."""
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts[:16]))
    options = CompressOptions(0.4, method="flat", then="saten", group=8, recipe=Recipe(rounds=1))
    saten_edge.compress(tiny_bert, tmp_path / "both", options, calibration=texts[:16])
    tuning = saten_edge.FinetuneOptions(teacher=str(tiny_bert), schedule=saten_edge.Schedule(steps=2, batch_size=8))
    errors = saten_edge.finetune(tmp_path / "both", tmp_path / "tuned", str(data), tuning)["layer_errors"]
    both, dense = load_model(tmp_path / "both"), load_model(tiny_bert)
    smaller = {
        name
        for name, layer in saten_layers(both.model).items()
        if layer.matrix().numel() < dense.model.get_submodule(name).weight.numel()
    }
    assert any("intermediate" in name for name in smaller)
    assert errors.keys() == saten_layers(both.model).keys() - smaller


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 0.75),
        ({"keep": 0.6}, 0.6),
        ({"then": "saten"}, 0.75),
        ({"then": "saten", "budget": 0.25}, 0.75),
        ({"then": "saten", "budget": 0.2}, 0.5),
        ({"then": "saten", "budget": 0.2, "keep": 0.9}, 0.9),
        ({"then": "ptnn"}, 0.75),
    ],
)
def test_what_is_kept_depends_on_what_is_to_be_left(options, kept):
    assert CompressOptions(method="flat", **options).kept == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, r"--keep 0: expected a share above 0 and below 1"),
        ({"keep": 1.0}, r"--keep 1: expected a share above 0 and below 1"),
        ({"keep": 1.5}, r"--keep 1.5: expected a share above 0 and below 1"),
        ({"keep": float("nan")}, r"--keep nan: expected a share above 0 and below 1"),
        ({"head_keep": 0.0}, r"--head-keep 0: expected a share above 0, and 1 at most"),
        ({"head_keep": 1.1}, r"--head-keep 1.1: expected a share above 0, and 1 at most"),
        ({"ranks": "equal"}, r"--ranks equal: there is no such one; there are: iprs, uniform"),
        ({"method": "flatter"}, r"--method flatter: there is no such one; there are: saten, flat, ptnn, gptq"),
        ({"then": "flat"}, r"--then flat cannot follow --method flat"),
        ({"method": "saten", "then": "saten"}, r"--then saten cannot follow --method saten"),
        ({"method": "saten", "keep": 0.5}, r"--keep is for --method flat, but this is --method saten"),
        ({"budget": 0.5}, r"--budget is for --method saten, but this is --method flat"),
        ({"recipe": Recipe(rounds=1)}, r"an option of the recipe is for --method saten"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        CompressOptions(**{"method": "flat", **options})


@pytest.mark.parametrize(
    ("options", "calibration", "message"),
    [
        ({}, 0, "--method flat chooses by what texts or images show; pass --calibration"),
        ({"keep": 0.999}, 4, r"--keep 0.999: every block keeps all it has; lower --keep"),
        (
            {"then": "saten", "budget": 0.95},
            4,
            r"--budget 0.95: --method flat alone leaves 0.9\d\d of the bytes, and .* 0.\d\d\d; choose a budget between",
        ),
    ],
)
def test_what_cannot_be_done_leaves_nothing(options, calibration, message, tiny_bert, texts, tmp_path):
    told = CompressOptions(**{"method": "flat", **options})
    with pytest.raises(UsageError, match=message):
        saten_edge.compress(tiny_bert, tmp_path / "out", told, calibration=texts[:calibration])
    assert not (tmp_path / "out").exists()


def test_a_compressed_model_is_not_flattened(tiny_saten, texts, tmp_path):
    with pytest.raises(UsageError, match="compressed already"):
        saten_edge.compress(tiny_saten, tmp_path / "out", FLAT, calibration=texts[:4])


def test_a_flat_model_is_not_flattened_again(flat_bert, texts, tmp_path):
    with pytest.raises(UsageError, match="the model has smaller blocks already; start from the dense one"):
        saten_edge.compress(flat_bert, tmp_path / "out", FLAT, calibration=texts[:4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layer.0": {"value": 5}}, "value of encoder.layer.0 is 5, expected a multiple of 4 up to 16"),
        ({"encoder.layer.0": {"value": 32}}, "value of encoder.layer.0 is 32, expected a multiple of 4 up to 16"),
        ({"encoder.layer.0": {"intermediate": 0}}, "intermediate of encoder.layer.0 is 0, expected a multiple of 1"),
        ({"encoder.layer.0": {"intermediate": True}}, "intermediate of encoder.layer.0 is True"),
        ({"encoder.layer.0": {"intermediate": 10**9}}, "intermediate of encoder.layer.0 is 1000000000"),
        ({"encoder.layer.9": {"value": 8}}, "sizes of 'encoder.layer.9' do not fit BertModel"),
        ({"encoder.layer.0": {"qk": 8}}, "sizes of 'encoder.layer.0' do not fit BertModel"),
        ({"encoder.layer.0": {}}, "sizes of 'encoder.layer.0' do not fit BertModel"),
        ([3], "sizes of blocks are no object"),
        ({}, "cannot be loaded|size|mismatch"),
    ],
)
def test_sizes_from_a_file_are_checked(change, message, flat_bert, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(flat_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["sizes"] = change
    config["quantization_config"]["files"] = {}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_another_attention_function_is_refused_by_name(flat_bert):
    with pytest.raises(UsageError, match="attn_implementation 'eager'"):
        AutoModel.from_pretrained(flat_bert, attn_implementation="eager")


def test_a_damaged_weight_file_is_refused(flat_bert, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(flat_bert, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="sha256"):
        load_model(folder)
