"""Models as other programs leave them: read where the numbers are there, else refused with the step to take."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


@pytest.fixture
def model(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def test_a_pickled_model_is_the_same_model(model: Path, saten_edge: Command, tmp_path: Path) -> None:
    options = ("--rounds", 1, "-q")
    whole = saten_edge("compress", model, "-o", tmp_path / "one", *options)
    assert whole.returncode == 0, whole.stderr
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    pickled = saten_edge("compress", model, "-o", tmp_path / "two", *options)
    assert pickled.returncode == 0, pickled.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    assert (tmp_path / "two" / "modules.json").is_file()


class Object:
    """Something that a pickle of a whole model holds."""


def test_a_pickle_of_objects_is_refused_with_what_to_save(model: Path, saten_edge: Command, tmp_path: Path) -> None:
    """As the authors' code leaves its `tm_params.pth`."""
    torch.save({"layer": Object()}, tmp_path / "tm_params.pth")
    done = saten_edge("import", tmp_path / "tm_params.pth", "--base", model, "-o", tmp_path / "out", "-q")
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
    assert "is an adapter of owner/base, no model; merge the two with peft first" in done.stderr


def test_names_after_the_authors_adapters(model: Path, saten_edge: Command, tmp_path: Path) -> None:
    """`base_model.model.` before all names and `base_layer` in some; what is not merged is refused."""
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
    wrapped[f"base_model.model.{layer}.lora_A.default.weight"] = torch.zeros(4, 64)
    save_file(wrapped, tmp_path / "unmerged.safetensors")
    done = saten_edge("import", tmp_path / "unmerged.safetensors", "--base", model, "-o", tmp_path / "other", "-q")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "merge_and_unload().state_dict()" in done.stderr
