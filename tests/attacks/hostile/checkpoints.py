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
from safetensors.torch import load_file, save_file

from hostile.case import MEBIBYTE, Case, Place, saten_edge
from hostile.sound import safetensors

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


def refused(threat: str, name: str, make: Make, words: str, *, run: Make = export, **options: Any) -> Case:
    """A folder or file that is no sound checkpoint."""
    return Case(threat, name, make, run, CHECKPOINT, words, **options)


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


def unchecked(index: int) -> torch.Tensor:
    """A sparse tensor of shape (3, 3) that names an entry outside of it."""
    with torch.sparse.check_sparse_tensor_invariants(False):
        return torch.sparse_coo_tensor(torch.tensor([[index], [0]]), torch.tensor([1.0]), (3, 3))


# --- the table -------------------------------------------------------------------------------------------------------

ONE = {"a": ("F32", (2, 2))}
BIG = 1 << 62

CONTAINERS = [
    refused("K1", "empty file", header({}, raw=b""), r"model\.safetensors: 0 bytes"),
    refused("K1", "seven bytes", header({}, raw=bytes(7)), r"model\.safetensors: 7 bytes"),
    refused("K1", "eight bytes", header({}, raw=bytes(8)), r"model\.safetensors: 8 bytes"),
    refused(
        "K1",
        "header of 2^63 bytes",
        header({}, raw=struct.pack("<Q", 1 << 63) + b"{}"),
        r"model\.safetensors: 10 bytes with a header of 9223372036854775808",
    ),
    refused("K1", "header longer than the file", header({}, raw=struct.pack("<Q", 1000) + b"{}"), "a header of 1000"),
    refused(
        "K1",
        "header of 17 MiB",
        header({"__metadata__": {"a": "b" * (17 * MEBIBYTE)}}),
        r"model\.safetensors: \d+ bytes with a header of",
    ),
    refused("K1", "header of zeros", header({}, raw=struct.pack("<Q", 64) + bytes(64)), "no JSON"),
    refused("K1", "header that is a list", header({}, raw=struct.pack("<Q", 2) + b"[]"), "JSON object"),
    refused("K2", "half of the file", content(lambda whole: whole[: len(whole) // 2]), "it is cut off"),
    refused("K2", "one byte less", content(lambda whole: whole[:-1]), "it is cut off or damaged"),
    refused("K2", "one byte less, dense", content(lambda whole: whole[:-1], "bert"), "it is cut off"),
    refused("K2", "one bit", content(lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])), "its sha256"),
    refused("K3", "a byte after the end", content(lambda whole: whole + b"\0", "bert"), "there are \\d+"),
    refused("K3", "a zip after the end", content(lambda whole: whole + b"PK\5\6" + bytes(18)), "there"),
    refused(
        "K3",
        "a hole",
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
        "begins at byte 4",
    ),
    refused(
        "K3",
        "two tensors in the same bytes",
        header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)),
        "the one before ends at 4",
    ),
    refused(
        "K3",
        "offsets that fall",
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        "a: -4 bytes",
    ),
    refused(
        "K4",
        "a tensor twice in the header",
        content(
            lambda whole: (
                lambda text: struct.pack("<Q", len(text)) + text + whole[8 + struct.unpack("<Q", whole[:8])[0] :]
            )(b'{"__metadata__":{"format":"pt"},' + whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]].lstrip(b"{")),
            "bert",
        ),
        r"model\.safetensors: its header: no JSON \(a key occurs twice\)",
    ),
    refused(
        "K4",
        "a field twice in an entry",
        header({}, raw=(lambda h: struct.pack("<Q", len(h)) + h)(b'{"a":{"dtype":"U8","dtype":"U8"}}')),
        "a key occurs twice",
    ),
    refused(
        "K5",
        "an unknown field",
        header({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], "hook": "x"}}, b""),
        "a: expected dtype, shape and data_offsets",
    ),
    refused(
        "K5",
        "an unknown type",
        header({"a": {"dtype": "F7", "shape": [0], "data_offsets": [0, 0]}}, b""),
        "a: is of type 'F7'",
    ),
    refused(
        "K5",
        "a type that is a list",
        header({"a": {"dtype": ["F32"], "shape": [0], "data_offsets": [0, 0]}}, b""),
        r"a: is of type \['F32'\]",
    ),
    refused(
        "K6",
        "a shape that overflows",
        header({"a": {"dtype": "F32", "shape": [BIG, 4], "data_offsets": [0, 0]}}, b""),
        "a: 0 bytes, its shape .* needs",
    ),
    refused(
        "K6",
        "an empty shape of 2^62",
        weights(lambda tensors: None, "bert"),
        r"encoder\.layer\.0\.output\.dense\.bias: 256 bytes, its shape",
        run=lambda place: _rewrite_header(place, "encoder.layer.0.output.dense.bias", [0, BIG, BIG]),
    ),
    refused(
        "K6",
        "an axis of true",
        header({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"\0"),
        r"a: shape \[True\]",
    ),
    refused(
        "K6",
        "a negative axis",
        header({"a": {"dtype": "U8", "shape": [-1, -1], "data_offsets": [0, 1]}}, b"\0"),
        r"a: shape \[-1, -1\]",
    ),
    refused(
        "K6",
        "seventeen axes",
        header({"a": {"dtype": "U8", "shape": [1] * 17, "data_offsets": [0, 1]}}, b"\0"),
        "a: shape",
    ),
    refused(
        "K7",
        "a hundred thousand and one tensors",
        header({f"t{k}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for k in range(100_001)}, b""),
        "100001 tensors",
        most_bytes=256 * MEBIBYTE,
    ),
    refused(
        "K7",
        "a header nested a hundred thousand times",
        header({}, raw=(lambda h: struct.pack("<Q", len(h)) + h)(b'{"a":' * 100_000)),
        "its header: no JSON",
    ),
    *(
        refused(
            "K8", f"a tensor called {label}", header({name: ("U8", (1,))}), r"model\.safetensors: a tensor is called '"
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
    refused(
        "K8",
        "a layer of a megabyte",
        config(lambda data: data["quantization_config"]["layers"].update({"a" * MEBIBYTE: {}})),
        r"config\.json: layer 'aaaa",
    ),
    refused(
        "K9",
        "a pickle that calls",
        state("state.bin", lambda path: path.write_bytes(pickle.dumps(Runs()))),
        r"state\.bin: ",
        run=bring_in,
    ),
    refused(
        "K9",
        "a state dict that calls",
        state("state.pt", lambda path: torch.save({"a.weight": Runs()}, path)),
        r"state\.pt: refused, it holds more than tensors",
        run=bring_in,
    ),
    refused(
        "K9",
        "a sparse index outside",
        state("state.pt", lambda path: torch.save({"a.weight": unchecked(10)}, path)),
        r"state\.pt: ",
        run=bring_in,
    ),
    refused(
        "K9",
        "one value that claims a trillion",
        state("state.pt", lambda path: torch.save({"a.weight": torch.zeros(1).expand(1 << 40)}, path)),
        r"state\.pt: is no state dict",
        run=bring_in,
    ),
    refused("K9", "a zip bomb", state("state.pt", zipped), r"state\.pt: unpacks to \d+ bytes", run=bring_in),
    refused(
        "K9",
        "no pickle at all",
        state("state.pt", lambda path: path.write_bytes(os.urandom(1000))),
        r"state\.pt: ",
        run=bring_in,
    ),
    refused(
        "K9",
        "a folder with a pickle alone",
        instead(WEIGHTS, lambda path: torch.save({}, path.with_name("pytorch_model.bin")), "bert"),
        "bert: ",
    ),
    refused(
        "K10",
        "another hash",
        config(lambda data: data["quantization_config"]["files"].update({WEIGHTS: "0" * 64})),
        r"model\.safetensors: its sha256 is not the one in config\.json",
    ),
    refused(
        "K10",
        "a hash for a file that is not there",
        config(lambda data: data["quantization_config"]["files"].update({"more.safetensors": "0" * 64})),
        r"lists the weight files .*more\.safetensors",
    ),
    refused(
        "K10",
        "an edited config",
        config_text('"layer_norm_eps"', '"layer_norm_epS"', "saten"),
        r"config\.json: is not the one that was sealed",
    ),
    refused("K10", "of the next version", config(saten(version=99)), "saten format version 99"),
    refused("K10", "of no version", config(saten(version="2")), "saten format version '2'"),
    refused(
        "K11",
        "a shard outside",
        sharded(lambda folder, files: files.update({next(iter(files)): "../x.safetensors"})),
        r"index\.json: .* is in '\.\./x\.safetensors'",
    ),
    refused(
        "K11",
        "a shard that is missing",
        sharded(lambda folder, files: (folder / "b.safetensors").unlink()),
        r"index\.json: .* is in 'b\.safetensors', which is no file",
    ),
    refused(
        "K11",
        "a tensor in two shards",
        sharded(lambda folder, files: (folder / "c.safetensors").write_bytes((folder / "a.safetensors").read_bytes())),
        r"c\.safetensors: holds .*, which another file",
    ),
    refused(
        "K11",
        "a tensor in the wrong shard",
        sharded(lambda folder, files: files.update({next(iter(files)): "b.safetensors"})),
        r"is not in b\.safetensors",
    ),
    refused(
        "K11",
        "a shard that is a number",
        sharded(lambda folder, files: files.update({next(iter(files)): 7})),
        r"index\.json: .* is in 7",
    ),
    refused("K12", "NaN", config_text('"hidden_size": 64', '"hidden_size": NaN'), "NaN is not JSON"),
    refused(
        "K12", "infinity", config_text('"hidden_size": 64', '"hidden_size": 1e999'), "the number 1e999 is too large"
    ),
    refused(
        "K12",
        "a key twice",
        config_text('"hidden_size": 64', '"hidden_size": 64, "hidden_size": 64'),
        "a key occurs twice",
    ),
    refused(
        "K12",
        "a number of 5000 digits",
        config_text('"hidden_size": 64', f'"hidden_size": {"9" * 5000}'),
        "no JSON .*digits",
    ),
    refused("K12", "nested", config_text("{", '{"a": ' + "[" * 100_000), r"config\.json: no JSON"),
    refused(
        "K12",
        "a billion layers",
        config(entries(num_hidden_layers=10**9), "bert"),
        r"config\.json: num_hidden_layers is 1000000000",
    ),
    refused(
        "K12",
        "a billion layers, Saten",
        config(entries(num_hidden_layers=10**9)),
        r"config\.json: num_hidden_layers is 1000000000",
    ),
    refused(
        "K12",
        "a layer count of a string",
        config(entries(num_hidden_layers="2"), "bert"),
        r"config\.json: num_hidden_layers is '2'",
    ),
    refused(
        "K12",
        "a width of 2^40",
        config(entries(hidden_size=1 << 40), "bert"),
        r"config\.json: hidden_size is 1099511627776",
    ),
    refused(
        "K12",
        "a width of a million",
        config(entries(hidden_size=1 << 20), "bert"),
        r"config\.json: describes a model of \d+ values",
    ),
    refused(
        "K12",
        "a vocabulary of ten million",
        config(entries(vocab_size=10**7), "bert"),
        r"config\.json: describes a model of \d+ values",
    ),
    refused("K12", "a string for a number", config(entries(hidden_size="64"), "bert"), "bert: cannot be loaded"),
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
    refused(
        "K13",
        "weights that are a link",
        instead(WEIGHTS, lambda path: path.symlink_to("/etc/hostname")),
        r"model\.safetensors: is a link",
    ),
    refused(
        "K13",
        "a config that is a link",
        instead("config.json", lambda path: path.symlink_to("/etc/hostname")),
        r"config\.json: is a link that leads out",
    ),
    refused("K13", "weights that are a pipe", instead(WEIGHTS, os.mkfifo), r"model\.safetensors: is no regular file"),
    refused(
        "K13",
        "a tokenizer that is a pipe",
        instead("tokenizer.json", os.mkfifo, "bert"),
        r"tokenizer\.json: is no regular file",
    ),
    refused(
        "K13",
        "weights that are a device",
        instead(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
        r"model\.safetensors: is a link",
    ),
    refused(
        "K13",
        "weights that are a folder",
        instead(WEIGHTS, lambda path: path.mkdir(), "bert"),
        r"model\.safetensors: is no regular file",
    ),
    refused(
        "K13",
        "a link that leads nowhere",
        instead("tokenizer.json", lambda path: path.symlink_to("gone.json"), "bert"),
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


def _reconstruction_bomb(place: Place) -> None:
    """A vocabulary of 2^24 words of 4096 values, all of them in a train of rank one."""
    config(
        lambda data: (
            entries(vocab_size=1 << 24, hidden_size=4096)(data),
            data["quantization_config"].update(layers={TABLE: data["quantization_config"]["layers"][TABLE]}),
            table_spec(shape=[1 << 24, 4096], cores=[[1, 4096, 1], [1, 4096, 1], [1, 4096, 1]], inputs=2)(data),
        )
    )(place)


CORES = f"{LAYER}.cores"
TRAINS = [
    refused(
        "T1",
        "ranks that do not chain",
        config(spec(cores=[[1, 64, 4], [5, 128, 1]], inputs=1)),
        rf"layer '{LAYER}': core 1: left rank 5, but the core before it ends in 4",
    ),
    refused(
        "T1",
        "a last rank of two",
        config(spec(cores=[[1, 64, 4], [4, 128, 2]], inputs=1)),
        rf"layer '{LAYER}': core 1: the last right rank is 2",
    ),
    refused(
        "T1",
        "a first rank of two",
        config(spec(cores=[[2, 64, 4], [4, 128, 1]], inputs=1)),
        rf"layer '{LAYER}': core 0: left rank 2",
    ),
    refused("T1", "a core of two axes", config(spec(cores=[[1, 64], [4, 128, 1]], inputs=1)), rf"layer '{LAYER}'"),
    refused("T1", "no cores", config(spec(cores=[])), rf"layer '{LAYER}': .*input cores"),
    refused(
        "T1",
        "a core of another shape in the file",
        weights(replaced(f"{CORES}.1", lambda core: core[:, :-1])),
        "saten: cannot be loaded",
    ),
    refused(
        "T1",
        "a core of whole numbers",
        weights(replaced(f"{CORES}.1", lambda core: torch.ones(core.shape, dtype=torch.int64))),
        rf"{CORES}\.1 is of type torch\.int64",
    ),
    refused(
        "T2", "another matrix", config(spec(shape=[64, 127])), rf"layer '{LAYER}' is described as linear \(64, 127\)"
    ),
    refused(
        "T2",
        "dims of another product",
        config(spec(cores=[[1, 63, 4], [4, 128, 1]], inputs=1)),
        rf"layer '{LAYER}': cores over \(63, 128\)",
    ),
    refused(
        "T2",
        "inputs and outputs changed over",
        config(spec(cores=[[1, 128, 4], [4, 64, 1]], inputs=1)),
        rf"layer '{LAYER}': cores over \(128, 64\)",
    ),
    refused(
        "T3",
        "a matrix of 2^80 values",
        config(spec(shape=[1 << 40, 1 << 40])),
        rf"layer '{LAYER}' is described as linear",
    ),
    refused(
        "T3",
        "a table of terabytes from small cores",
        _reconstruction_bomb,
        rf"layer '{TABLE}' stands for a matrix \(16777216, 4096\), more than 16 GiB",
    ),
    refused(
        "T4",
        "a product of cores larger than the matrix",
        config(spec(cores=[[1, 64, 1], [1, 1, 4000], [4000, 128, 1]], inputs=2)),
        rf"layer '{LAYER}' holds more values than 4|layer '{LAYER}' multiplies its cores",
    ),
    refused(
        "T4",
        "a middle tensor larger than all cores",
        config(spec(cores=[[1, 64, 1], [1, 1, 5000], [5000, 1, 1], [1, 128, 1]], inputs=2)),
        rf"layer '{LAYER}' multiplies its cores through 640000 values",
    ),
    refused(
        "T5",
        "a rank no SVD gives, beyond the cap",
        config(spec(cores=[[1, 64, 10**6], [10**6, 128, 1]], inputs=1)),
        rf"layer '{LAYER}' holds more values than 4 dense ones would",
    ),
    refused("T5", "a rank of 2^62", config(spec(cores=[[1, 64, BIG], [BIG, 128, 1]], inputs=1)), rf"layer '{LAYER}'"),
    *(
        refused(
            "T6",
            f"{label} in a core",
            weights(put(f"{CORES}.0", 3, value)),
            rf"{LAYER}\.cores\.0 holds 1 values that are NaN or infinite, the first at 3",
        )
        for label, value in {"NaN": math.nan, "infinity": math.inf}.items()
    ),
    refused(
        "T6",
        "NaN in what stays dense",
        weights(put("encoder.layer.0.output.LayerNorm.weight", 0, math.nan), "bert"),
        r"LayerNorm\.weight: holds values that are NaN",
        run=lambda place: saten_edge("compress", place.folder / "bert", "-o", place.out, "--quiet"),
    ),
    refused(
        "T6",
        "NaN in a dense matrix",
        weights(put(f"{LAYER}.weight", 5, math.nan), "bert"),
        rf"{LAYER}: .*NaN",
        run=lambda place: saten_edge("compress", place.folder / "bert", "-o", place.out, "--quiet"),
    ),
    refused(
        "T7",
        "a rank of zero",
        config(spec(cores=[[1, 64, 0], [0, 8, 0], [0, 16, 1]], inputs=1)),
        rf"layer '{LAYER}': core 0: shape \(1, 64, 0\) holds no value",
    ),
    refused(
        "T7",
        "a dim of zero",
        config(spec(cores=[[1, 0, 4], [4, 128, 1]], inputs=1)),
        rf"layer '{LAYER}': core 0: shape \(1, 0, 4\)",
    ),
    refused(
        "T7", "a single core", config(spec(cores=[[1, 8192, 1]], inputs=0)), rf"layer '{LAYER}': 0 input cores of 1"
    ),
    refused(
        "T7",
        "ten thousand cores",
        config(spec(cores=[[1, 1, 1]] * 10_000, inputs=1)),
        rf"layer '{LAYER}': 1 input cores of 10000",
    ),
    refused(
        "T7",
        "a negative dim",
        config(spec(cores=[[1, -64, 4], [4, -128, 1]], inputs=1)),
        rf"layer '{LAYER}' is not described",
    ),
]


INDICES, STEPS, LENGTHS = (f"{LAYER}.residual.{name}" for name in ("indices", "steps", "lengths"))
ROWS = f"{TABLE}.residual.indices"
NAMES_ENTRIES = rf"{LAYER}\.residual: its indices do not name one entry of a matrix 64 × 128"
SPARSE = [
    *(
        refused("S1", f"a column of {value}", weights(put(INDICES, 0, value)), NAMES_ENTRIES)
        for value in (-1, 64, 10**6, -(2**31), 2**31 - 1)
    ),
    refused(
        "S1", "a column that wraps int32 when multiplied", weights(put(INDICES, 0, 2**31 // 128 + 1)), NAMES_ENTRIES
    ),
    refused("S2", "row lengths that do not add up", weights(put(LENGTHS, 1, 60000), "unstructured"), NAMES_ENTRIES),
    refused(
        "S2", "row lengths of nothing", weights(lambda tensors: tensors[LENGTHS].zero_(), "unstructured"), NAMES_ENTRIES
    ),
    refused(
        "S2",
        "a row that runs over its end",
        weights(lambda tensors: tensors[STEPS].fill_(255), "unstructured"),
        NAMES_ENTRIES,
    ),
    refused(
        "S2",
        "lengths that are a matrix",
        config(spec(indices={"lengths": ["uint16", [64, 2]], "steps": ["uint8", [1]]}), "unstructured"),
        "unstructured: cannot be loaded|do not name",
    ),
    refused(
        "S3",
        "an entry twice",
        weights(lambda tensors: tensors[INDICES].view(-1)[1].copy_(tensors[INDICES].view(-1)[0])),
        NAMES_ENTRIES,
    ),
    refused(
        "S3",
        "an entry of a table twice",
        weights(
            lambda tensors: tensors[ROWS].view(torch.int16)[0, 1].copy_(tensors[ROWS].view(torch.int16)[0, 0]),
            "unstructured",
        ),
        rf"{TABLE}\.residual: its indices do not name",
    ),
    refused("S4", "a trillion values", config(spec(values=[10**12])), rf"layer '{LAYER}' holds more values than 4"),
    refused("S4", "2^62 values", config(spec(values=[BIG, BIG])), rf"layer '{LAYER}'"),
    refused(
        "S4",
        "fewer values than indices",
        weights(replaced(f"{LAYER}.residual.values", lambda values: values[..., :-1])),
        "saten: cannot be loaded",
    ),
    refused("S4", "values of NaN", weights(put(f"{LAYER}.residual.values", 0, math.nan)), "1 values"),
    refused(
        "S5",
        "three kept of two",
        config(spec(pattern="3:2")),
        rf"layer '{LAYER}': --pattern 3:2: expected N:M with 1 ≤ N ≤ M",
    ),
    refused("S5", "a pattern of another kind", config(spec(pattern="2:4")), NAMES_ENTRIES),
    refused("S5", "no such pattern", config(spec(pattern="blocky")), "no residual pattern 'blocky'"),
    refused("S5", "blocks of nothing", config(spec(group=0)), rf"layer '{LAYER}' is not described"),
    refused("S5", "blocks of another size", config(spec(group=7)), rf"{LAYER}"),
    refused("S5", "a type that is a function", config(spec(indices={"indices": ["load", [1]]})), LAYER),
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
    refused(
        "S7",
        "train and residual of different shape",
        config(spec(cores=[[1, 64, 4], [4, 64, 1]], inputs=1)),
        rf"layer '{LAYER}': cores over \(64, 64\)",
    ),
    refused(
        "S7",
        "neither train nor residual",
        config(spec(cores=[[1, 64, 0], [0, 128, 1]], inputs=1, pattern="none", values=[0], indices={})),
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
