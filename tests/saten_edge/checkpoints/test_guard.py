"""Folders as the hub's cache lays them out are read; links elsewhere are not. Hostile ones: tests/attacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saten_edge.checkpoints.guard import Entry, read_header, read_headers
from saten_edge.checkpoints.models import load_model
from saten_runtime.errors import CheckpointError


@pytest.fixture
def cached(tiny_bert: Path, tmp_path: Path) -> Path:
    """A model as the hub's cache keeps it: files by hash, and a snapshot of links to them."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    for source in (path for path in tiny_bert.rglob("*") if path.is_file()):
        link = snapshot / source.relative_to(tiny_bert)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / f"{abs(hash(source)):x}"
        shutil.copyfile(source, blob)
        link.symlink_to(blob)
    return snapshot


def test_the_hubs_cache(cached: Path) -> None:
    assert load_model(cached).max_length == 64
    (cached / "config.json").unlink()
    (cached / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=r"config\.json: is a link that leads out of the folder"):
        load_model(cached)


def test_a_link_inside_the_folder(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    assert read_headers(folder)["embeddings.word_embeddings.weight"].shape == (1200, 64)


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    """Every type that torch has, no values at all, and a scalar."""
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint16, torch.bool, torch.float8_e4m3fn)
    tensors = {f"t{k}": torch.zeros(k, 2).to(kind) for k, kind in enumerate(kinds)} | {"one": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "a.safetensors")
    assert {name: entry.shape for name, entry in found.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert found["t1"] == Entry("BF16", (1, 2))
    assert found["t1"].numel == 2
