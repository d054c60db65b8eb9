"""Models by their names on the hub, which is here a folder of files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

from saten_edge.checkpoints.models import load_model
from saten_edge.checkpoints.resolve import resolve_model
from saten_runtime.errors import CheckpointError


@pytest.fixture
def hub(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the one model on a hub; what is fetched of it goes to `cache`."""
    files, cache = Path(shutil.copytree(tiny_bert, tmp_path / "hub")), tmp_path / "cache"

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        assert name == "owner/model"
        known = [path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()]
        for file in filter_repo_objects(known, allow_patterns=allow_patterns):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files / file, cache / file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return files


def pickled(folder: Path) -> dict[str, Any]:
    """The weights of a folder, which it then has as torch pickles them, too."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def test_a_pickle_is_fetched_where_there_are_no_other_weights(hub: Path) -> None:
    weights = pickled(hub)
    (hub / "model.safetensors").unlink()
    found = load_model("owner/model").model.state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(found[name], weights[name])


def test_a_pickle_beside_safetensors_is_left_there(hub: Path) -> None:
    pickled(hub)
    assert {path.name for path in resolve_model("owner/model").glob("*model*")} == {"model.safetensors"}


def test_an_adapter_is_named_with_its_base(hub: Path) -> None:
    (hub / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"owner/model: has no config\.json"):
        resolve_model("owner/model")
    (hub / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    with pytest.raises(CheckpointError, match="is an adapter of owner/base, no model; merge the two first") as caught:
        resolve_model("owner/model")
    assert "saten-edge import " in str(caught.value)
