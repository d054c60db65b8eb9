"""Makers of hostile model folders, and what is done with one."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from hostile.case import Case, Place, saten_edge
from hostile.sound import safetensors

__all__ = [
    "BIG",
    "CHECKPOINT",
    "LAYER",
    "TABLE",
    "WEIGHTS",
    "Make",
    "Runs",
    "bring_in",
    "claiming",
    "config",
    "config_text",
    "content",
    "crash",
    "entries",
    "export",
    "header",
    "instead",
    "load",
    "numpy_objects",
    "put",
    "refused",
    "replaced",
    "saten",
    "sharded",
    "spec",
    "state",
    "table_spec",
    "unchecked",
    "weights",
    "zipped",
]

LAYER = "encoder.layer.0.intermediate.dense"  # (64, 128)
TABLE = "embeddings.word_embeddings"  # (1200, 64)
WEIGHTS = "model.safetensors"
CHECKPOINT = "CheckpointError"
BIG = 1 << 62
Make = Callable[[Place], Any]


def export(place: Place) -> int:
    (folder,) = (path for path in place.folder.iterdir() if path.name in place.sound)
    return saten_edge("export", folder, "-o", place.out, "--quiet")


def load(place: Place) -> None:
    from saten_edge.checkpoints.models import load_model

    load_model(place.folder / "bert")
    assert not (place.folder / "ran").exists()


def bring_in(place: Place) -> int:
    """Import what lies at `state.*`."""
    (state,) = place.folder.glob("state*")
    return saten_edge("import", state, "--base", place.sound["bert"], "-o", place.out, "--quiet")


def crash(place: Place) -> int:
    """Import it with a reader that a bug of torch would end."""
    from saten_edge.checkpoints import pickles

    pickles._CONVERTER = "import os; os.kill(os.getpid(), 11)"
    return bring_in(place)


def refused(threat: str, name: str, make: Make, words: str, *, run: Make = export, **options: Any) -> Case:
    """A folder or file that is no sound checkpoint."""
    return Case(threat, name, make, run, CHECKPOINT, words, **options)


def content(make: Callable[[bytes], bytes], source: str = "saten") -> Make:
    """The weight file with other bytes, under the old hash."""

    def change(place: Place) -> None:
        path = place.copy(source) / WEIGHTS
        path.write_bytes(make(path.read_bytes()))

    return change


def header(tensors: dict[str, Any], body: bytes | None = None, raw: bytes | None = None) -> Make:
    """A dense model's weight file with a header of one's own."""
    return content(lambda _: safetensors(tensors, body) if raw is None else raw, "bert")


def weights(change: Callable[[dict[str, torch.Tensor]], Any], source: str = "saten") -> Make:
    """Other tensors, sealed anew."""

    def make(place: Place) -> None:
        from saten_edge.checkpoints.checkpoint import seal

        folder = place.copy(source)
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if source != "bert":
            seal(folder)

    return make


def config(change: Callable[[dict[str, Any]], Any], source: str = "saten") -> Make:
    def make(place: Place) -> None:
        path = place.copy(source) / "config.json"
        data = json.loads(path.read_text())
        data.get("quantization_config", {}).get("files", {}).pop("config.json", None)
        change(data)
        path.write_text(json.dumps(data))

    return make


def config_text(old: str, new: str, source: str = "bert") -> Make:
    def make(place: Place) -> None:
        path = place.copy(source) / "config.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return make


def entries(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.update(values)


def spec(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["quantization_config"]["layers"][LAYER].update(values)


def table_spec(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["quantization_config"]["layers"][TABLE].update(values)


def saten(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["quantization_config"].update(values)


def put(name: str, place: int, value: float) -> Callable[[dict[str, torch.Tensor]], Any]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[place] = value

    return change


def replaced(name: str, by: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], Any]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = by(tensors[name]).contiguous()

    return change


def instead(file: str, by: Callable[[Path], Any], source: str = "saten") -> Make:
    """Something else where a file of the folder is."""

    def make(place: Place) -> None:
        path = place.copy(source) / file
        path.unlink()
        by(path)

    return make


def sharded(change: Callable[[Path, dict[str, str]], Any]) -> Make:
    """A dense model in two shards, with another index."""

    def make(place: Place) -> None:
        folder = place.copy("bert")
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(tensors)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, held in shards.items():
            save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
        weight_map = {name: file for file, held in shards.items() for name in held}
        change(folder, weight_map)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return make


def state(name: str, make: Callable[[Path], Any]) -> Make:
    return lambda place: make(place.folder / name)


class Runs:
    """A pickle that would leave a mark if anything in it were called."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def zipped(path: Path) -> None:
    """An archive as torch writes it, whose tensor of zeros is packed a thousandfold."""
    plain = io.BytesIO()
    torch.save({"a.weight": torch.zeros(64 << 20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))


def numpy_objects(path: Path) -> None:
    """What numpy stores of objects: a pickle, of which it says so."""
    with path.open("wb") as file:
        save = np.savez if path.suffix == ".npz" else np.save
        save(file, np.array([Runs()], dtype=object), allow_pickle=True)


def claiming(path: Path) -> None:
    """A pickle in torch's old format, whose storage says that it has 2³¹ - 1 values."""
    torch.save({"a.weight": torch.zeros(70_000)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    said = b"J" + struct.pack("<i", 70_000)  # BININT
    assert said in whole
    path.write_bytes(whole.replace(said, b"J" + struct.pack("<i", 2**31 - 1)))


def unchecked(index: int) -> torch.Tensor:
    """A sparse tensor of shape (3, 3) that names an entry outside of it."""
    with torch.sparse.check_sparse_tensor_invariants(False):
        return torch.sparse_coo_tensor(torch.tensor([[index], [0]]), torch.tensor([1.0]), (3, 3))


def swap(path: Path, old: bytes, new: bytes) -> None:
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new))


def rewrite_header(place: Place, name: str, shape: list[int]) -> int:
    """Another shape for a tensor, its bytes kept."""
    path = place.folder / "bert" / WEIGHTS
    whole = path.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    head = json.loads(whole[8 : 8 + size])
    head[name]["shape"] = shape
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    return export(place)


def point_to_code(place: Place, file: str, entry: dict[str, Any]) -> None:
    folder = place.copy("bert")
    (folder / "evil.py").write_text("import os\nos.mkdir('ran')\nclass Evil:\n    pass\n")
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **entry}))
