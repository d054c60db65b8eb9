"""Every truncation and every single-bit flip of a small checkpoint and of a small bundle is refused.

Or it says what it said: a number such as 1e-05 may be written 1E-05.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.sound import safetensors, seal_bundle

from saten_edge.checkpoints.checkpoint import seal, verify_files, verify_folder
from saten_edge.checkpoints.guard import read_header, read_headers
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import SatenError

BODY_BYTES = 4 * (8 + 3)
WORDS = json.dumps({"model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}})
# Beside weights, graph, config and manifest, which are made from scratch.
CHECKPOINT_SIDE = {
    "tokenizer.json": WORDS,
    "tokenizer_config.json": '{"model_max_length": 16}',
    "modules.json": "[]",
    "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
    "sentence_bert_config.json": '{"max_seq_length": 16}',
    "saten_layers.json": '{"layers": [], "dense": []}',
    "metrics.json": '{"steps": 1}',
    "vocab.txt": "[UNK]\na\n",
}
BUNDLE_SIDE = {
    "config.json": '{"model_type": "bert"}',
    "export.json": '{"task": "feature-extraction"}',
    "README.md": "# lookup\n",
    "validation/input_ids.npy": "numbers",
    "validation/report.json": "{}",
}
Reader = Callable[[Path], object]


def checkpoint(folder: Path) -> Reader:
    """Two tensors and a config, and what is looked at before transformers sees them."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors({"a.cores.0": ("F32", (1, 4, 2)), "a.bias": ("F32", (3,))}))
    put(folder, CHECKPOINT_SIDE)
    config = {"model_type": "bert", "layer_norm_eps": 1e-12, "quantization_config": {"quant_method": "saten"}}
    (folder / "config.json").write_text(json.dumps(config))
    seal(folder)

    def read(path: Path) -> object:
        headers = read_headers(path)
        verify_folder(path, headers)
        config = json.loads((path / "config.json").read_text())
        verify_files(config["quantization_config"]["files"], [path / "model.safetensors"])
        return headers, config

    return read


def put(folder: Path, contents: dict[str, str]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def bundle(folder: Path) -> Reader:
    return lambda path: Bundle.open(path).manifest


def damages(whole: bytes) -> Iterator[bytes]:
    for end in range(len(whole)):
        yield whole[:end]
    for place in range(len(whole)):
        for bit in range(8):
            yield whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]


def taken(folder: Path, read: Reader, name: str) -> tuple[int, list[bytes]]:
    """How many damaged contents of a file were tried, and those that read as another thing than the sound one."""
    path = folder / name
    whole, said = path.read_bytes(), read(folder)
    count, wrong = 0, []
    for content in damages(whole):
        count += 1
        path.write_bytes(content)
        with contextlib.suppress(SatenError):
            if read(folder) != said:
                wrong.append(content)
    path.write_bytes(whole)
    assert read(folder) == said
    return count, wrong


def test_every_file_of_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    read = checkpoint(folder)
    tried = {name: taken(folder, read, name) for name in names(folder)}
    assert tried.keys() == {"model.safetensors", "config.json", *CHECKPOINT_SIDE}
    assert sum(count for count, _ in tried.values()) >= 10_000
    assert {name: wrong for name, (_, wrong) in tried.items() if wrong} == {}


def test_every_file_of_a_bundle(lookup_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lookup_bundle, tmp_path / "small")
    (folder / "tokenizer.json").write_text(WORDS)
    put(folder, BUNDLE_SIDE)
    seal_bundle(folder)
    tried = {name: taken(folder, bundle(folder), name) for name in names(folder)}
    assert tried.keys() == {"model.onnx", "model.onnx.data", "saten_edge.json", "tokenizer.json", *BUNDLE_SIDE}
    assert sum(count for count, _ in tried.values()) >= 10_000
    assert {name: wrong for name, (_, wrong) in tried.items() if wrong} == {}


def test_without_hashes_some_would_be_taken(tmp_path: Path) -> None:
    """The twin: what these tests see is the hashes' work."""
    checkpoint(tmp_path / "small")

    def unhashed(path: Path) -> object:
        return read_header(path / "model.safetensors"), (path / "model.safetensors").read_bytes()[-BODY_BYTES:]

    assert len(taken(tmp_path / "small", unhashed, "model.safetensors")[1]) >= 8 * BODY_BYTES
