"""Hostile model folders: containers (K), tensor trains (T), sparse parts (S), and what an exporter is asked for (E)."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile.case import MEBIBYTE, Case, Place, saten_edge
from hostile.sound import safetensors
from safetensors.torch import load_file, save_file

__all__ = ["CASES"]

LAYER = "encoder.layer.0.intermediate.dense"  # (64, 128)
TABLE = "embeddings.word_embeddings"  # (1200, 64)
WEIGHTS = "model.safetensors"
CHECKPOINT = "CheckpointError"
Make = Callable[[Place], Any]


def export(place: Place) -> int:
    (folder,) = (path for path in place.folder.iterdir() if path.name in place.sound)
    return saten_edge("export", folder, "-o", place.out, "--quiet")


def load(place: Place) -> None:
    from saten_edge.models import load_model

    load_model(place.folder / "bert")
    assert not (place.folder / "ran").exists()


def bring_in(place: Place) -> int:
    """Import what lies at `state.*`."""
    (state,) = place.folder.glob("state*")
    return saten_edge("import", state, "--base", place.sound["bert"], "-o", place.out, "--quiet")


# --- makers ----------------------------------------------------------------------------------------------------------


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
        from saten_edge.checkpoint import seal

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


def unchecked(index: int) -> torch.Tensor:
    """A sparse tensor of shape (3, 3) that names an entry outside of it."""
    with torch.sparse.check_sparse_tensor_invariants(False):
        return torch.sparse_coo_tensor(torch.tensor([[index], [0]]), torch.tensor([1.0]), (3, 3))


# --- the table -------------------------------------------------------------------------------------------------------

ONE = {"a": ("F32", (2, 2))}
BIG = 1 << 62

CONTAINERS = [
    Case("K1", "empty file", header({}, raw=b""), export, CHECKPOINT, r"model\.safetensors: 0 bytes"),
    Case("K1", "seven bytes", header({}, raw=bytes(7)), export, CHECKPOINT, r"model\.safetensors: 7 bytes"),
    Case("K1", "eight bytes", header({}, raw=bytes(8)), export, CHECKPOINT, r"model\.safetensors: 8 bytes"),
    Case(
        "K1",
        "header of 2^63 bytes",
        header({}, raw=struct.pack("<Q", 1 << 63) + b"{}"),
        export,
        CHECKPOINT,
        r"model\.safetensors: 10 bytes with a header of 9223372036854775808",
    ),
    Case(
        "K1",
        "header longer than the file",
        header({}, raw=struct.pack("<Q", 1000) + b"{}"),
        export,
        CHECKPOINT,
        "a header of 1000",
    ),
    Case(
        "K1",
        "header of 17 MiB",
        header({"__metadata__": {"a": "b" * (17 * MEBIBYTE)}}),
        export,
        CHECKPOINT,
        r"model\.safetensors: \d+ bytes with a header of",
    ),
    Case("K1", "header of zeros", header({}, raw=struct.pack("<Q", 64) + bytes(64)), export, CHECKPOINT, "no JSON"),
    Case(
        "K1", "header that is a list", header({}, raw=struct.pack("<Q", 2) + b"[]"), export, CHECKPOINT, "JSON object"
    ),
    Case(
        "K2", "half of the file", content(lambda whole: whole[: len(whole) // 2]), export, CHECKPOINT, "it is cut off"
    ),
    Case("K2", "one byte less", content(lambda whole: whole[:-1]), export, CHECKPOINT, "it is cut off or damaged"),
    Case("K2", "one byte less, dense", content(lambda whole: whole[:-1], "bert"), export, CHECKPOINT, "it is cut off"),
    Case("K2", "one bit", content(lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])), export, CHECKPOINT, "its sha256"),
    Case(
        "K3", "a byte after the end", content(lambda whole: whole + b"\0", "bert"), export, CHECKPOINT, "there are \\d+"
    ),
    Case(
        "K3", "a zip after the end", content(lambda whole: whole + b"PK\5\6" + bytes(18)), export, CHECKPOINT, "there"
    ),
    Case(
        "K3",
        "a hole",
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
        export,
        CHECKPOINT,
        "begins at byte 4",
    ),
    Case(
        "K3",
        "two tensors in the same bytes",
        header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)),
        export,
        CHECKPOINT,
        "the one before ends at 4",
    ),
    Case(
        "K3",
        "offsets that fall",
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        export,
        CHECKPOINT,
        "a: -4 bytes",
    ),
    Case(
        "K4",
        "a tensor twice in the header",
        content(
            lambda whole: (
                lambda text: struct.pack("<Q", len(text)) + text + whole[8 + struct.unpack("<Q", whole[:8])[0] :]
            )(b'{"__metadata__":{"format":"pt"},' + whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]].lstrip(b"{")),
            "bert",
        ),
        export,
        CHECKPOINT,
        r"model\.safetensors: its header: no JSON \(a key occurs twice\)",
    ),
    Case(
        "K4",
        "a field twice in an entry",
        header({}, raw=(lambda h: struct.pack("<Q", len(h)) + h)(b'{"a":{"dtype":"U8","dtype":"U8"}}')),
        export,
        CHECKPOINT,
        "a key occurs twice",
    ),
    Case(
        "K5",
        "an unknown field",
        header({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], "hook": "x"}}, b""),
        export,
        CHECKPOINT,
        "a: expected dtype, shape and data_offsets",
    ),
    Case(
        "K5",
        "an unknown type",
        header({"a": {"dtype": "F7", "shape": [0], "data_offsets": [0, 0]}}, b""),
        export,
        CHECKPOINT,
        "a: is of type 'F7'",
    ),
    Case(
        "K5",
        "a type that is a list",
        header({"a": {"dtype": ["F32"], "shape": [0], "data_offsets": [0, 0]}}, b""),
        export,
        CHECKPOINT,
        r"a: is of type \['F32'\]",
    ),
    Case(
        "K6",
        "a shape that overflows",
        header({"a": {"dtype": "F32", "shape": [BIG, 4], "data_offsets": [0, 0]}}, b""),
        export,
        CHECKPOINT,
        "a: 0 bytes, its shape .* needs",
    ),
    Case(
        "K6",
        "an empty shape of 2^62",
        weights(lambda tensors: None, "bert"),
        lambda place: _rewrite_header(place, "encoder.layer.0.output.dense.bias", [0, BIG, BIG]),
        CHECKPOINT,
        r"encoder\.layer\.0\.output\.dense\.bias: 256 bytes, its shape",
    ),
    Case(
        "K6",
        "an axis of true",
        header({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"\0"),
        export,
        CHECKPOINT,
        r"a: shape \[True\]",
    ),
    Case(
        "K6",
        "a negative axis",
        header({"a": {"dtype": "U8", "shape": [-1, -1], "data_offsets": [0, 1]}}, b"\0"),
        export,
        CHECKPOINT,
        r"a: shape \[-1, -1\]",
    ),
    Case(
        "K6",
        "seventeen axes",
        header({"a": {"dtype": "U8", "shape": [1] * 17, "data_offsets": [0, 1]}}, b"\0"),
        export,
        CHECKPOINT,
        "a: shape",
    ),
    Case(
        "K7",
        "a hundred thousand and one tensors",
        header({f"t{k}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for k in range(100_001)}, b""),
        export,
        CHECKPOINT,
        "100001 tensors",
        most_bytes=256 * MEBIBYTE,
    ),
    Case(
        "K7",
        "a header nested a hundred thousand times",
        header({}, raw=(lambda h: struct.pack("<Q", len(h)) + h)(b'{"a":' * 100_000)),
        export,
        CHECKPOINT,
        "its header: no JSON",
    ),
    *(
        Case(
            "K8",
            f"a tensor called {label}",
            header({name: ("U8", (1,))}),
            export,
            CHECKPOINT,
            r"model\.safetensors: a tensor is called '",
        )
        for label, name in {
            "../../x": "../../x",
            "nothing": "",
            "a\\0b": "a\0b",
            "a megabyte": "a" * MEBIBYTE,
            "by a look-alike": "encоder.weight",  # the o is Cyrillic
            "by a terminal escape": "\x1b[2Jgone",
        }.items()
    ),
    Case(
        "K8",
        "a layer of a megabyte",
        config(lambda data: data["quantization_config"]["layers"].update({"a" * MEBIBYTE: {}})),
        export,
        CHECKPOINT,
        r"config\.json: layer 'aaaa",
    ),
    Case(
        "K9",
        "a pickle that calls",
        state("state.bin", lambda path: path.write_bytes(pickle.dumps(Runs()))),
        bring_in,
        CHECKPOINT,
        r"state\.bin: ",
    ),
    Case(
        "K9",
        "a state dict that calls",
        state("state.pt", lambda path: torch.save({"a.weight": Runs()}, path)),
        bring_in,
        CHECKPOINT,
        r"state\.pt: refused, it holds more than tensors",
    ),
    Case(
        "K9",
        "a sparse index outside",
        state("state.pt", lambda path: torch.save({"a.weight": unchecked(10)}, path)),
        bring_in,
        CHECKPOINT,
        r"state\.pt: ",
    ),
    Case(
        "K9",
        "one value that claims a trillion",
        state("state.pt", lambda path: torch.save({"a.weight": torch.zeros(1).expand(1 << 40)}, path)),
        bring_in,
        CHECKPOINT,
        r"state\.pt: is no state dict",
    ),
    Case("K9", "a zip bomb", state("state.pt", zipped), bring_in, CHECKPOINT, r"state\.pt: unpacks to \d+ bytes"),
    Case(
        "K9",
        "no pickle at all",
        state("state.pt", lambda path: path.write_bytes(os.urandom(1000))),
        bring_in,
        CHECKPOINT,
        r"state\.pt: ",
    ),
    Case(
        "K9",
        "a folder with a pickle alone",
        instead(WEIGHTS, lambda path: torch.save({}, path.with_name("pytorch_model.bin")), "bert"),
        export,
        CHECKPOINT,
        "bert: ",
    ),
    Case(
        "K10",
        "another hash",
        config(lambda data: data["quantization_config"]["files"].update({WEIGHTS: "0" * 64})),
        export,
        CHECKPOINT,
        r"model\.safetensors: its sha256 is not the one in config\.json",
    ),
    Case(
        "K10",
        "a hash for a file that is not there",
        config(lambda data: data["quantization_config"]["files"].update({"more.safetensors": "0" * 64})),
        export,
        CHECKPOINT,
        r"lists the weight files .*more\.safetensors",
    ),
    Case("K10", "of the next version", config(saten(version=99)), export, CHECKPOINT, "saten format version 99"),
    Case("K10", "of no version", config(saten(version="2")), export, CHECKPOINT, "saten format version '2'"),
    Case(
        "K11",
        "a shard outside",
        sharded(lambda folder, files: files.update({next(iter(files)): "../x.safetensors"})),
        export,
        CHECKPOINT,
        r"index\.json: .* is in '\.\./x\.safetensors'",
    ),
    Case(
        "K11",
        "a shard that is missing",
        sharded(lambda folder, files: (folder / "b.safetensors").unlink()),
        export,
        CHECKPOINT,
        r"index\.json: .* is in 'b\.safetensors', which is no file",
    ),
    Case(
        "K11",
        "a tensor in two shards",
        sharded(lambda folder, files: (folder / "c.safetensors").write_bytes((folder / "a.safetensors").read_bytes())),
        export,
        CHECKPOINT,
        r"c\.safetensors: holds .*, which another file",
    ),
    Case(
        "K11",
        "a tensor in the wrong shard",
        sharded(lambda folder, files: files.update({next(iter(files)): "b.safetensors"})),
        export,
        CHECKPOINT,
        r"is not in b\.safetensors",
    ),
    Case(
        "K11",
        "a shard that is a number",
        sharded(lambda folder, files: files.update({next(iter(files)): 7})),
        export,
        CHECKPOINT,
        r"index\.json: .* is in 7",
    ),
    Case("K12", "NaN", config_text('"hidden_size": 64', '"hidden_size": NaN'), export, CHECKPOINT, "NaN is not JSON"),
    Case(
        "K12",
        "infinity",
        config_text('"hidden_size": 64', '"hidden_size": 1e999'),
        export,
        CHECKPOINT,
        "the number 1e999 is too large",
    ),
    Case(
        "K12",
        "a key twice",
        config_text('"hidden_size": 64', '"hidden_size": 64, "hidden_size": 64'),
        export,
        CHECKPOINT,
        "a key occurs twice",
    ),
    Case(
        "K12",
        "a number of 5000 digits",
        config_text('"hidden_size": 64', f'"hidden_size": {"9" * 5000}'),
        export,
        CHECKPOINT,
        "no JSON .*digits",
    ),
    Case("K12", "nested", config_text("{", '{"a": ' + "[" * 100_000), export, CHECKPOINT, r"config\.json: no JSON"),
    Case(
        "K12",
        "a billion layers",
        config(entries(num_hidden_layers=10**9), "bert"),
        export,
        CHECKPOINT,
        r"config\.json: num_hidden_layers is 1000000000",
    ),
    Case(
        "K12",
        "a billion layers, Saten",
        config(entries(num_hidden_layers=10**9)),
        export,
        CHECKPOINT,
        r"config\.json: num_hidden_layers is 1000000000",
    ),
    Case(
        "K12",
        "a layer count of a string",
        config(entries(num_hidden_layers="2"), "bert"),
        export,
        CHECKPOINT,
        r"config\.json: num_hidden_layers is '2'",
    ),
    Case(
        "K12",
        "a width of 2^40",
        config(entries(hidden_size=1 << 40), "bert"),
        export,
        CHECKPOINT,
        r"config\.json: hidden_size is 1099511627776",
    ),
    Case(
        "K12",
        "a width of a million",
        config(entries(hidden_size=1 << 20), "bert"),
        export,
        CHECKPOINT,
        r"config\.json: describes a model of \d+ values",
    ),
    Case(
        "K12",
        "a vocabulary of ten million",
        config(entries(vocab_size=10**7), "bert"),
        export,
        CHECKPOINT,
        r"config\.json: describes a model of \d+ values",
    ),
    Case(
        "K12",
        "a string for a number",
        config(entries(hidden_size="64"), "bert"),
        export,
        CHECKPOINT,
        "bert: cannot be loaded",
    ),
    Case(
        "K12", "a list for the family", config(entries(model_type=["bert"]), "bert"), export, "ExportError", "\\['bert"
    ),
    *(
        Case(
            "K12",
            f"code named by {file}",
            lambda place, file=file, entry=entry: _point_to_code(place, file, entry),
            load,
            None,
            "",
            code=0,
        )
        for file, entry in {
            "config.json": {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}},
            "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
            "generation_config.json": {"model_file": "evil.py", "custom_generate": "evil.py"},
        }.items()
    ),
    Case(
        "K13",
        "weights that are a link",
        instead(WEIGHTS, lambda path: path.symlink_to("/etc/hostname")),
        export,
        CHECKPOINT,
        r"model\.safetensors: is a link",
    ),
    Case(
        "K13",
        "a config that is a link",
        instead("config.json", lambda path: path.symlink_to("/etc/hostname")),
        export,
        CHECKPOINT,
        r"config\.json: is a link that leads out",
    ),
    Case(
        "K13",
        "weights that are a pipe",
        instead(WEIGHTS, os.mkfifo),
        export,
        CHECKPOINT,
        r"model\.safetensors: is no regular file",
    ),
    Case(
        "K13",
        "a tokenizer that is a pipe",
        instead("tokenizer.json", os.mkfifo, "bert"),
        export,
        CHECKPOINT,
        r"tokenizer\.json: is no regular file",
    ),
    Case(
        "K13",
        "weights that are a device",
        instead(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
        export,
        CHECKPOINT,
        r"model\.safetensors: is a link",
    ),
    Case(
        "K13",
        "weights that are a folder",
        instead(WEIGHTS, lambda path: path.mkdir(), "bert"),
        export,
        CHECKPOINT,
        r"model\.safetensors: is no regular file",
    ),
    Case(
        "K13",
        "a link that leads nowhere",
        instead("tokenizer.json", lambda path: path.symlink_to("gone.json"), "bert"),
        export,
        CHECKPOINT,
        r"gone\.json: is no regular file",
    ),
]


def _rewrite_header(place: Place, name: str, shape: list[int]) -> int:
    """Another shape for a tensor, its bytes kept."""
    path = place.folder / "bert" / WEIGHTS
    whole = path.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    head = json.loads(whole[8 : 8 + size])
    head[name]["shape"] = shape
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    return export(place)


def _point_to_code(place: Place, file: str, entry: dict[str, Any]) -> None:
    folder = place.copy("bert")
    (folder / "evil.py").write_text("import os\nos.mkdir('ran')\nclass Evil:\n    pass\n")
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **entry}))


CORES = f"{LAYER}.cores"
TRAINS = [
    Case(
        "T1",
        "ranks that do not chain",
        config(spec(cores=[[1, 64, 4], [5, 128, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': core 1: left rank 5, but the core before it ends in 4",
    ),
    Case(
        "T1",
        "a last rank of two",
        config(spec(cores=[[1, 64, 4], [4, 128, 2]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': core 1: the last right rank is 2",
    ),
    Case(
        "T1",
        "a first rank of two",
        config(spec(cores=[[2, 64, 4], [4, 128, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': core 0: left rank 2",
    ),
    Case(
        "T1",
        "a core of two axes",
        config(spec(cores=[[1, 64], [4, 128, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}'",
    ),
    Case("T1", "no cores", config(spec(cores=[])), export, CHECKPOINT, rf"layer '{LAYER}': .*input cores"),
    Case(
        "T1",
        "a core of another shape in the file",
        weights(replaced(f"{CORES}.1", lambda core: core[:, :-1])),
        export,
        CHECKPOINT,
        "saten: cannot be loaded",
    ),
    Case(
        "T1",
        "a core of whole numbers",
        weights(replaced(f"{CORES}.1", lambda core: torch.ones(core.shape, dtype=torch.int64))),
        export,
        CHECKPOINT,
        rf"{CORES}\.1 is of type torch\.int64",
    ),
    Case(
        "T2",
        "another matrix",
        config(spec(shape=[64, 127])),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}' is described as linear \(64, 127\)",
    ),
    Case(
        "T2",
        "dims of another product",
        config(spec(cores=[[1, 63, 4], [4, 128, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': cores over \(63, 128\)",
    ),
    Case(
        "T2",
        "inputs and outputs changed over",
        config(spec(cores=[[1, 128, 4], [4, 64, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': cores over \(128, 64\)",
    ),
    Case(
        "T3",
        "a matrix of 2^80 values",
        config(spec(shape=[1 << 40, 1 << 40])),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}' is described as linear",
    ),
    Case(
        "T3",
        "a table of terabytes from small cores",
        lambda place: _reconstruction_bomb(place),
        export,
        CHECKPOINT,
        rf"layer '{TABLE}' stands for a matrix \(16777216, 4096\), more than 16 GiB",
    ),
    Case(
        "T4",
        "a product of cores larger than the matrix",
        config(spec(cores=[[1, 64, 1], [1, 1, 4000], [4000, 128, 1]], inputs=2)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}' holds more values than 4|layer '{LAYER}' multiplies its cores",
    ),
    Case(
        "T4",
        "a middle tensor larger than all cores",
        config(spec(cores=[[1, 64, 1], [1, 1, 5000], [5000, 1, 1], [1, 128, 1]], inputs=2)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}' multiplies its cores through 320000 values",
    ),
    Case(
        "T5",
        "a rank no SVD gives, beyond the cap",
        config(spec(cores=[[1, 64, 10**6], [10**6, 128, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}' holds more values than 4 dense ones would",
    ),
    Case(
        "T5",
        "a rank of 2^62",
        config(spec(cores=[[1, 64, BIG], [BIG, 128, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}'",
    ),
    *(
        Case(
            "T6",
            f"{label} in a core",
            weights(put(f"{CORES}.0", 3, value)),
            export,
            CHECKPOINT,
            rf"{LAYER}\.cores\.0 holds 1 values that are NaN or infinite, the first at 3",
        )
        for label, value in {"NaN": math.nan, "infinity": math.inf}.items()
    ),
    Case(
        "T6",
        "NaN in what stays dense",
        weights(put("encoder.layer.0.output.LayerNorm.weight", 0, math.nan), "bert"),
        lambda place: saten_edge("compress", place.folder / "bert", "-o", place.out, "--quiet"),
        CHECKPOINT,
        r"LayerNorm\.weight: holds values that are NaN",
    ),
    Case(
        "T6",
        "NaN in a dense matrix",
        weights(put(f"{LAYER}.weight", 5, math.nan), "bert"),
        lambda place: saten_edge("compress", place.folder / "bert", "-o", place.out, "--quiet"),
        CHECKPOINT,
        rf"{LAYER}: .*NaN",
    ),
    Case(
        "T7",
        "a rank of zero",
        config(spec(cores=[[1, 64, 0], [0, 8, 0], [0, 16, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': core 0: shape \(1, 64, 0\) holds no value",
    ),
    Case(
        "T7",
        "a dim of zero",
        config(spec(cores=[[1, 0, 4], [4, 128, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': core 0: shape \(1, 0, 4\)",
    ),
    Case(
        "T7",
        "a single core",
        config(spec(cores=[[1, 8192, 1]], inputs=0)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': 0 input cores of 1",
    ),
    Case(
        "T7",
        "ten thousand cores",
        config(spec(cores=[[1, 1, 1]] * 10_000, inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': 1 input cores of 10000",
    ),
    Case(
        "T7",
        "a negative dim",
        config(spec(cores=[[1, -64, 4], [4, -128, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}' is not described",
    ),
]


def _reconstruction_bomb(place: Place) -> None:
    """A vocabulary of 2^24 words of 4096 values, all of them in a train of rank one."""
    config(
        lambda data: (
            entries(vocab_size=1 << 24, hidden_size=4096)(data),
            data["quantization_config"].update(layers={TABLE: data["quantization_config"]["layers"][TABLE]}),
            table_spec(shape=[1 << 24, 4096], cores=[[1, 4096, 1], [1, 4096, 1], [1, 4096, 1]], inputs=2)(data),
        )
    )(place)


INDICES, STEPS, LENGTHS = (f"{LAYER}.residual.{name}" for name in ("indices", "steps", "lengths"))
ROWS = f"{TABLE}.residual.indices"
NAMES_ENTRIES = rf"{LAYER}\.residual: its indices do not name one entry of a matrix 64 × 128"
SPARSE = [
    *(
        Case("S1", f"a column of {value}", weights(put(INDICES, 0, value)), export, CHECKPOINT, NAMES_ENTRIES)
        for value in (-1, 64, 10**6, -(2**31), 2**31 - 1)
    ),
    Case(
        "S1",
        "a column that wraps int32 when multiplied",
        weights(put(INDICES, 0, 2**31 // 128 + 1)),
        export,
        CHECKPOINT,
        NAMES_ENTRIES,
    ),
    Case(
        "S2",
        "row lengths that do not add up",
        weights(put(LENGTHS, 1, 60000), "unstructured"),
        export,
        CHECKPOINT,
        NAMES_ENTRIES,
    ),
    Case(
        "S2",
        "row lengths of nothing",
        weights(lambda tensors: tensors[LENGTHS].zero_(), "unstructured"),
        export,
        CHECKPOINT,
        NAMES_ENTRIES,
    ),
    Case(
        "S2",
        "a row that runs over its end",
        weights(lambda tensors: tensors[STEPS].fill_(255), "unstructured"),
        export,
        CHECKPOINT,
        NAMES_ENTRIES,
    ),
    Case(
        "S2",
        "lengths that are a matrix",
        config(spec(indices={"lengths": ["uint16", [64, 2]], "steps": ["uint8", [1]]}), "unstructured"),
        export,
        CHECKPOINT,
        "unstructured: cannot be loaded|do not name",
    ),
    Case(
        "S3",
        "an entry twice",
        weights(lambda tensors: tensors[INDICES].view(-1)[1].copy_(tensors[INDICES].view(-1)[0])),
        export,
        CHECKPOINT,
        NAMES_ENTRIES,
    ),
    Case(
        "S3",
        "an entry of a table twice",
        weights(
            lambda tensors: tensors[ROWS].view(torch.int16)[0, 1].copy_(tensors[ROWS].view(torch.int16)[0, 0]),
            "unstructured",
        ),
        export,
        CHECKPOINT,
        rf"{TABLE}\.residual: its indices do not name",
    ),
    Case(
        "S4",
        "a trillion values",
        config(spec(values=[10**12])),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}' holds more values than 4",
    ),
    Case("S4", "2^62 values", config(spec(values=[BIG, BIG])), export, CHECKPOINT, rf"layer '{LAYER}'"),
    Case(
        "S4",
        "fewer values than indices",
        weights(replaced(f"{LAYER}.residual.values", lambda values: values[..., :-1])),
        export,
        CHECKPOINT,
        "saten: cannot be loaded",
    ),
    Case("S4", "values of NaN", weights(put(f"{LAYER}.residual.values", 0, math.nan)), export, CHECKPOINT, "1 values"),
    Case(
        "S5",
        "three kept of two",
        config(spec(pattern="3:2")),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': --pattern 3:2: expected N:M with 1 ≤ N ≤ M",
    ),
    Case("S5", "a pattern of another kind", config(spec(pattern="2:4")), export, CHECKPOINT, NAMES_ENTRIES),
    Case("S5", "no such pattern", config(spec(pattern="blocky")), export, CHECKPOINT, "no residual pattern 'blocky'"),
    Case("S5", "blocks of nothing", config(spec(group=0)), export, CHECKPOINT, rf"layer '{LAYER}' is not described"),
    Case("S5", "blocks of another size", config(spec(group=7)), export, CHECKPOINT, rf"{LAYER}"),
    Case(
        "S5", "a type that is a function", config(spec(indices={"indices": ["load", [1]]})), export, CHECKPOINT, LAYER
    ),
    *(
        Case("S6", f"{label}, which must work", weights(change), export, None, "", code=0, most_bytes=512 * MEBIBYTE)
        for label, change in {
            "an all-zero residual": lambda tensors: tensors[f"{LAYER}.residual.values"].zero_(),
            "an all-zero layer": lambda tensors: [
                tensors[name].zero_()
                for name in tensors
                if name.startswith(LAYER) and tensors[name].is_floating_point()
            ],
        }.items()
    ),
    Case(
        "S7",
        "train and residual of different shape",
        config(spec(cores=[[1, 64, 4], [4, 64, 1]], inputs=1)),
        export,
        CHECKPOINT,
        rf"layer '{LAYER}': cores over \(64, 64\)",
    ),
    Case(
        "S7",
        "neither train nor residual",
        config(spec(cores=[[1, 64, 0], [0, 128, 1]], inputs=1, pattern="none", values=[0], indices={})),
        export,
        CHECKPOINT,
        "saten: cannot be loaded",
    ),
]


def option(source: str = "bert", **values: Any) -> Make:
    return config(entries(**values), source)


def export_with(*arguments: object) -> Callable[[Place], int]:
    return lambda place: saten_edge("export", place.sound["bert"], "-o", place.out, "--quiet", *arguments)


def nothing(place: Place) -> None:
    """The input is in the arguments."""


def _corrupt_export(place: Place) -> int:
    """An exporter that writes another number than torch has."""
    from saten_exporters import bundle

    real = bundle._save_graph

    def wrong(exported: Any, *rest: Any) -> None:
        weights = [value for value in exported.program.graph.initializers.values() if value.const_value.size > 4000]
        array = weights[0].const_value.numpy().copy()
        array.flat[::7] += 0.5
        import onnx_ir as ir

        weights[0].const_value = ir.tensor(array, name=weights[0].name)
        real(exported, *rest)

    bundle._save_graph = wrong
    return saten_edge("export", place.sound["bert"], "-o", place.out, "--quiet")


EXPORTER = [
    Case(
        "E1", "an unknown family", option(model_type="unheard-of"), export, "ExportError", "'unheard-of' is not known"
    ),
    Case(
        "E1",
        "an option that cannot be expressed",
        option(position_embedding_type="relative_key"),
        export,
        "ExportError",
        "position_embedding_type = 'relative_key' cannot be expressed",
    ),
    Case("E1", "a decoder made of an encoder", option(is_decoder=True), export, "ExportError", "is_decoder = True"),
    Case("E2", "an unknown target", nothing, export_with("--target", "toaster"), "UsageError", "--target toaster"),
    Case("E2", "an unknown precision", nothing, export_with("--precision", "int3"), "UsageError", "--precision int3"),
    Case(
        "E4",
        "an output that exists",
        lambda place: place.out.mkdir(),
        export_with(),
        "UsageError",
        "out: already exists",
    ),
    Case(
        "E4",
        "an output that is a link",
        lambda place: place.out.symlink_to("/tmp"),
        export_with(),
        "UsageError",
        "out: already exists",
    ),
    Case(
        "E4",
        "an output below a file",
        lambda place: (place.folder / "file").write_text(""),
        lambda place: saten_edge("export", place.sound["bert"], "-o", place.folder / "file" / "x", "--quiet"),
        "FileExistsError",
        "file: File exists",
        most_bytes=512 * MEBIBYTE,
    ),
    Case(
        "E7",
        "a graph that computes another thing",
        nothing,
        _corrupt_export,
        "ParityError",
        "single|short|padded|ragged|differ",
        code=3,
        most_bytes=512 * MEBIBYTE,
    ),
]

CASES = [*CONTAINERS, *TRAINS, *SPARSE, *EXPORTER]
