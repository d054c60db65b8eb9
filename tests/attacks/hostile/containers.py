"""Hostile containers of a checkpoint (K): weight files, index, config, links, archives."""

from __future__ import annotations

import os
import pickle
import struct

import torch

from hostile.case import MEBIBYTE, Case
from hostile.folders import (
    BIG,
    WEIGHTS,
    Runs,
    bring_in,
    claiming,
    config,
    config_text,
    content,
    crash,
    entries,
    export,
    header,
    instead,
    load,
    numpy_objects,
    point_to_code,
    refused,
    rewrite_header,
    saten,
    sharded,
    state,
    swap,
    unchecked,
    weights,
    zipped,
)
from hostile.recipes import BAD_RECIPES

__all__ = ["CASES"]

ONE = {"a": ("F32", (2, 2))}

CASES = [
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
    refused("K1", "header of zeros", header({}, raw=struct.pack("<Q", 64) + bytes(64)), "not JSON"),
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
        r"model\.safetensors: its header: not JSON \(a key occurs twice\)",
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
        run=lambda place: rewrite_header(place, "encoder.layer.0.output.dense.bias", [0, BIG, BIG]),
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
        "its header: not JSON",
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
        r"state\.pt: is not a state dict",
        run=bring_in,
    ),
    refused("K9", "a zip bomb", state("state.pt", zipped), r"state\.pt: unpacks to \d+ bytes", run=bring_in),
    refused(
        "K9",
        "a short pickle that claims two billion values",
        state("state.pt", claiming),
        r"state\.pt: cannot be read as a state dict \(.*allocate",
        run=bring_in,
    ),
    refused(
        "K9",
        "a hundred names for the same values",
        state(
            "state.pt", lambda path: torch.save(dict.fromkeys((f"a{k}" for k in range(100)), torch.ones(9**6)), path)
        ),
        r"state\.pt: its tensors have \d+ bytes, more than 4 of such files",
        run=bring_in,
    ),
    refused(
        "K9",
        "a pickle that takes its reader down",
        state("state.pt", lambda path: torch.save({"a.weight": torch.ones(1)}, path)),
        r"state\.pt: the process that read it died \(worker killed by SIGSEGV\)",
        run=crash,
    ),
    refused(
        "K9",
        "a pipe among state dicts",
        state("state", lambda path: (path.mkdir(), os.mkfifo(path / "model.bin"))),
        r"state/model\.bin: is no regular file",
        run=bring_in,
    ),
    *(
        refused("K9", f"an archive of numpy, {suffix}", state(f"state.{suffix}", numpy_objects), words, run=bring_in)
        for suffix, words in {"npy": r"state\.npy: \d+ bytes with a header", "npz": r"state\.npz: \d+ bytes"}.items()
    ),
    refused(
        "K9",
        "an archive of numpy as a pickle",
        state("state.bin", numpy_objects),
        r"state\.bin: ",
        run=bring_in,
    ),
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
        r"config\.json: does not match its seal",
    ),
    refused(
        "K10",
        "an edited tokenizer",
        lambda place: swap(place.copy("saten") / "tokenizer.json", b'"[PAD]"', b'"[pad]"'),
        r"tokenizer\.json: its sha256 is not the one in config\.json",
    ),
    refused(
        "K10",
        "a hash for a file outside",
        config(lambda data: data["quantization_config"]["files"].update({"../bert/vocab.txt": "0" * 64})),
        r"config\.json: lists '\.\./bert/vocab\.txt', which is not a file of the folder",
    ),
    *(
        refused("K10", f"a recipe with {label}", config(saten(recipe=recipe)), f"config.json: recipe{words}")
        for label, (recipe, words) in BAD_RECIPES.items()
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
        r"index\.json: .* is in 'b\.safetensors', which is not a file",
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
        "not JSON .*digits",
    ),
    refused("K12", "nested", config_text("{", '{"a": ' + "[" * 100_000), r"config\.json: not JSON"),
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
            lambda place, file=file, entry=entry: point_to_code(place, file, entry),
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
