"""Models as other programs leave them: read where the numbers are there, else refused with the step to take."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saten_edge.checkpoints.models import load_model
from saten_edge.checkpoints.modules import saten_layers

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


@pytest.fixture
def model(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_pickled_model_is_the_same_model(parts: int, model: Path, saten_edge: Command, tmp_path: Path) -> None:
    options = ("--rounds", 1, "-q")
    whole = saten_edge("compress", model, "-o", tmp_path / "one", *options)
    assert whole.returncode == 0, whole.stderr
    tensors = list(load_file(model / "model.safetensors").items())
    for part in range(parts):
        file = "pytorch_model.bin" if parts == 1 else f"pytorch_model-{part + 1:05}-of-{parts:05}.bin"
        torch.save(dict(tensors[part::parts]), model / file)
    (model / "pytorch_model.bin.index.json").write_text("{}")  # which says nothing that the files do not
    (model / "model.safetensors").unlink()
    pickled = saten_edge("compress", model, "-o", tmp_path / "two", *options)
    assert pickled.returncode == 0, pickled.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert (tmp_path / "two" / "modules.json").is_file()


class Object:
    """Something that a pickle of a whole model holds."""


def test_a_pickle_of_objects_is_refused_with_what_to_save(model: Path, saten_edge: Command, tmp_path: Path) -> None:
    torch.save({"layer": Object()}, tmp_path / "objects.pth")
    done = saten_edge("import", tmp_path / "objects.pth", "--base", model, "-o", tmp_path / "out", "-q")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert 'torch.save(model.state_dict(), "state.pt")' in done.stderr


REFUSED = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "quantized already (quant_method gptq)"),
    "bitsandbytes": ({"load_in_4bit": True}, "quantized already (quant_method bitsandbytes)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_quantized_model_is_refused_by_its_method(
    name: str, model: Path, saten_edge: Command, tmp_path: Path
) -> None:
    settings, words = REFUSED[name]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    for command in ("compress", "export"):
        done = saten_edge(command, model, "-o", tmp_path / "out", "-q")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
        assert "take the model that was quantized" in done.stderr


def test_an_adapter_is_refused_with_its_base(saten_edge: Command, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    done = saten_edge("compress", tmp_path / "lora", "-o", tmp_path / "out", "-q")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is an adapter of owner/base, no model; merge the two first" in done.stderr
    assert f"saten-edge import {tmp_path / 'lora'} --base owner/base -o MERGED" in done.stderr


def test_names_after_the_authors_adapters(model: Path, saten_edge: Command, tmp_path: Path) -> None:
    """`base_model.model.` before all names and `base_layer` in some; an adapter needs its scale."""
    state = load_file(model / "model.safetensors")
    layer = "encoder.layer.0.attention.self.query"
    weight = state[f"{layer}.weight"]
    state[f"{layer}.factors.0"] = torch.eye(64)[None].contiguous()
    state[f"{layer}.factors.1"] = weight.T.contiguous()[:, :, None].contiguous()
    del state[f"{layer}.weight"]
    wrapped = {f"base_model.model.{name}".replace(layer, f"{layer}.base_layer"): value for name, value in state.items()}
    save_file(wrapped, tmp_path / "theirs.safetensors")
    done = saten_edge("import", tmp_path / "theirs.safetensors", "--base", model, "-o", tmp_path / "out", "-q")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out" / "saten_layers.json").read_text())["layers"]
    assert (row["name"], row["ranks"]) == (layer, [64])
    assert row["error"] < 1e-6
    wrapped[f"base_model.model.{layer}.lora_A.default.weight"] = torch.ones(4, 64)
    wrapped[f"base_model.model.{layer}.lora_B.default.weight"] = torch.ones(64, 4)
    save_file(wrapped, tmp_path / "unmerged.safetensors")
    done = saten_edge("import", tmp_path / "unmerged.safetensors", "--base", model, "-o", tmp_path / "other", "-q")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "put the adapter_config.json beside it" in done.stderr
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    done = saten_edge("import", tmp_path / "unmerged.safetensors", "--base", model, "-o", tmp_path / "other", "-q")
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "other" / "model.safetensors")
    train = found[f"{layer}.cores.0"][0] @ found[f"{layer}.cores.1"][..., 0]
    torch.testing.assert_close(train, weight.T + 8.0)  # 8 / 4 · 4


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """As peft saves one of rank 4, scale 3, with a head for three labels that was trained whole."""
    drawn = torch.Generator().manual_seed(1)
    layer = "base_model.model.bert.encoder.layer.1.intermediate.dense"
    state = {
        f"{layer}.lora_A.weight": torch.randn(4, 64, generator=drawn),
        f"{layer}.lora_B.weight": torch.randn(128, 4, generator=drawn),
        "base_model.model.classifier.weight": torch.randn(3, 64, generator=drawn),
        "base_model.model.classifier.bias": torch.randn(3, generator=drawn),
    }
    (tmp_path / "lora").mkdir()
    save_file(state, tmp_path / "lora" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "task_type": "SEQ_CLS", "base_model_name_or_path": "b"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    return tmp_path / "lora"


def test_an_adapter_is_merged_into_its_base(model: Path, adapter: Path, saten_edge: Command, tmp_path: Path) -> None:
    """The merged model is a dense one, and the next command takes it."""
    done = saten_edge("import", adapter, "--base", model, "-o", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert len(config["id2label"]) == 3
    base, merged = (load_file(each / "model.safetensors") for each in (model, tmp_path / "merged"))
    added = load_file(adapter / "adapter_model.safetensors")
    name = "encoder.layer.1.intermediate.dense"
    halves = [added[f"base_model.model.bert.{name}.lora_{half}.weight"] for half in "BA"]
    torch.testing.assert_close(merged[f"bert.{name}.weight"], base[f"{name}.weight"] + 3 * halves[0] @ halves[1])
    assert torch.equal(merged["classifier.weight"], added["base_model.model.classifier.weight"])
    other = "encoder.layer.0.output.dense.weight"
    assert torch.equal(merged[f"bert.{other}"], base[other])
    done = saten_edge("compress", tmp_path / "merged", "-o", tmp_path / "saten", "--rounds", 1, "-q")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "lora_alpha 12, use_dora; expected plain LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'; expected plain LORA"),
        ({"peft_type": "IA3"}, "says peft_type 'IA3'"),
        ({"lora_alpha": "x"}, "lora_alpha 'x'"),
    ],
)
def test_other_adapters_are_refused_by_what_they_are(
    changes: dict[str, object], words: str, model: Path, adapter: Path, saten_edge: Command, tmp_path: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    done = saten_edge("import", adapter, "--base", model, "-o", tmp_path / "out", "-q")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
    assert "model.merge_and_unload().save_pretrained(FOLDER)" in done.stderr


QUERY, KEY, VALUE = (f"encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value"))
FROZEN = "encoder.layer.1.attention.self.query"


def authors_layers() -> dict[str, dict[str, Any]]:
    """What their `save_model_params` pickles: a train with a residual, a train alone, an SVD, and a frozen layer."""

    def weight(*sizes: int, value: float = 1.0) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.full(sizes, value))

    cores = [torch.eye(64)[None], torch.eye(64)[..., None]]
    eye = torch.nn.ParameterList([torch.nn.Parameter(core) for core in cores])
    mask = (torch.arange(64 * 64).reshape(64, 64) % 7 == 0).float()
    common = {"bias": weight(64), "in_features": 64, "out_features": 64, "num_params": mask.sum(), "params_ratio": 0.5}
    train = {**common, "dim_list": [64, 64], "rank_list": [np.int64(1), 64, 1], "diag_weight": None}
    return {
        QUERY: {"factors": eye, "weight": weight(64, 64, value=2.0), "mask": mask, **train},
        KEY: {"decomp_format": "tt", "factors": eye, **train},
        VALUE: {"u": weight(64, 3), "v": weight(3, 64), "rank": 3, **common},
        FROZEN: {"factors": None, "weight": weight(64, 64, value=5.0), "mask": None, **train},
    }


def test_the_pickle_of_the_authors_code(model: Path, saten_edge: Command, tmp_path: Path) -> None:
    """The rest is the base's."""
    layers = authors_layers()
    torch.save(layers, tmp_path / "tm_params.pth")
    done = saten_edge("import", tmp_path / "tm_params.pth", "--base", model, "-o", tmp_path / "out", "-q")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "saten_layers.json").read_text())["layers"]
    expected = {QUERY: ([64], True), KEY: ([64], False), VALUE: ([3], False)}
    assert {row["name"]: (row["ranks"], row["nnz"] > 0) for row in rows} == expected
    effective = {name: layer.matrix().T for name, layer in saten_layers(load_model(tmp_path / "out").model).items()}
    torch.testing.assert_close(effective[QUERY], torch.eye(64) + 2 * layers[QUERY]["mask"])
    torch.testing.assert_close(effective[VALUE], torch.full((64, 64), 3.0))
    base, kept = (load_file(each / "model.safetensors") for each in (model, tmp_path / "out"))
    assert torch.equal(kept[f"{FROZEN}.weight"], torch.full((64, 64), 5.0))
    assert torch.equal(kept[f"{FROZEN}.bias"], torch.ones(64))
    assert torch.equal(kept["encoder.layer.1.output.dense.weight"], base["encoder.layer.1.output.dense.weight"])


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (KEY, {"decomp_format": "tucker"}, f"{KEY} is of the format 'tucker'; expected tt"),
        (KEY, {"diag_weight": torch.ones(64)}, f"{KEY} has diag_weight, which is not read"),
        (FROZEN, {}, "If all its layers are frozen (freez), it is a dense model"),
    ],
)
def test_what_else_their_pickle_may_hold_is_refused(
    name: str, changes: dict[str, Any], words: str, model: Path, saten_edge: Command, tmp_path: Path
) -> None:
    torch.save({name: authors_layers()[name] | changes}, tmp_path / "tm_params.pth")
    done = saten_edge("import", tmp_path / "tm_params.pth", "--base", model, "-o", tmp_path / "out", "-q")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
