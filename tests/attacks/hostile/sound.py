"""The sound files that hostile ones differ from by one thing, written byte by byte where bytes matter."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hostile.wire import bytes_field, packed, varint_field
from saten_runtime.bundle.manifest import FileEntry, Manifest, Postprocess, Tokenizer
from saten_runtime.records.files import digest_of, sha256_file

__all__ = [
    "WIDTH",
    "WORDS",
    "gguf_bytes",
    "gguf_text",
    "graph",
    "model",
    "node",
    "safetensors",
    "save_bundle",
    "seal_bundle",
    "tensor",
]

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{index}" for index in range(12))]
WIDTH = 4
FLOAT, INT64 = 1, 7
_ITEM = {"F32": 4, "U8": 1, "I32": 4, "BF16": 2}


def safetensors(tensors: dict[str, Any], body: bytes | None = None) -> bytes:
    """A safetensors file of {name: (dtype, shape)} or of raw header entries; the body is zeros unless given."""
    header: dict[str, Any] = {}
    position = 0
    for name, entry in tensors.items():
        header[name] = entry
        if isinstance(entry, tuple):
            start, position = position, position + math.prod(entry[1]) * _ITEM[entry[0]]
            header[name] = {"dtype": entry[0], "shape": list(entry[1]), "data_offsets": [start, position]}
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + (bytes(position) if body is None else body)


def gguf_text(value: str | bytes, length: int | None = None) -> bytes:
    """A text as the format has it: its length, true or not, and its bytes."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def gguf_bytes(
    entries: Mapping[str, tuple[int, bytes]],
    tensors: Mapping[str, tuple[int, tuple[int, ...], int]],
    body: bytes = b"",
    *,
    head: bytes = b"GGUF" + struct.pack("<I", 3),
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file of {key: (type, value)} and {name: (type, axes, offset)}; counts: of tensors and entries, true or not."""
    parts = [head, struct.pack("<QQ", *(counts or (len(tensors), len(entries))))]
    parts += [gguf_text(key) + struct.pack("<I", kind) + value for key, (kind, value) in entries.items()]
    for name, (kind, axes, offset) in tensors.items():
        parts.append(gguf_text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset))
    content = b"".join(parts)
    return content + bytes(-len(content) % 32) + body


def tensor(name: str, array: np.ndarray, *more: bytes, raw: bool = True) -> bytes:
    """A TensorProto of float32 or int64."""
    kind = FLOAT if array.dtype == np.float32 else INT64
    values = bytes_field(9, array.tobytes()) if raw else b""
    return packed(1, array.shape) + varint_field(2, kind) + bytes_field(8, name) + values + b"".join(more)


def external(name: str, shape: tuple[int, ...], **entries: object) -> bytes:
    """A TensorProto of float32 whose values lie in another file."""
    described = b"".join(
        bytes_field(13, bytes_field(1, key) + bytes_field(2, str(one))) for key, one in entries.items()
    )
    return packed(1, shape) + varint_field(2, FLOAT) + bytes_field(8, name) + described + varint_field(14, 1)


def node(op: str, inputs: Iterable[str], output: str, *attributes: bytes, domain: str = "") -> bytes:
    """A NodeProto with one output."""
    named = b"".join(bytes_field(1, name) for name in inputs)
    return (
        named
        + bytes_field(2, output)
        + bytes_field(4, op)
        + b"".join(bytes_field(5, one) for one in attributes)
        + bytes_field(7, domain)
    )


def _value(name: str, kind: int, *dims: str | int) -> bytes:
    axes = b"".join(
        bytes_field(1, bytes_field(2, dim) if isinstance(dim, str) else varint_field(1, dim)) for dim in dims
    )
    return bytes_field(1, name) + bytes_field(2, bytes_field(1, varint_field(1, kind) + bytes_field(2, axes)))


TABLE = external("table", (len(WORDS), WIDTH), location="model.onnx.data", offset=0, length=len(WORDS) * WIDTH * 4)
LOOKUP = node("Gather", ["table", "input_ids"], "last_hidden_state")


def graph(nodes: Iterable[bytes] = (LOOKUP,), initializers: Iterable[bytes] = (TABLE,), rest: bytes = b"") -> bytes:
    """input_ids (batch, tokens) → last_hidden_state (batch, tokens, WIDTH)."""
    return (
        b"".join(bytes_field(1, one) for one in nodes)
        + bytes_field(2, "g")
        + b"".join(bytes_field(5, one) for one in initializers)
        + bytes_field(11, _value("input_ids", INT64, "batch", "tokens"))
        + bytes_field(12, _value("last_hidden_state", FLOAT, "batch", "tokens", WIDTH))
        + rest
    )


def model(main: bytes | None = None, rest: bytes = b"", *, opset: int = 20, ir_version: int = 10) -> bytes:
    """A ModelProto."""
    imports = bytes_field(8, bytes_field(1, "") + varint_field(2, opset))
    return varint_field(1, ir_version) + bytes_field(7, graph() if main is None else main) + imports + rest


def save_bundle(folder: Path) -> Path:
    """A bundle that looks rows of a table up, a few hundred bytes of weights."""
    from tokenizers import Tokenizer as WordTokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    folder.mkdir(parents=True)
    table = np.random.default_rng(7).standard_normal((len(WORDS), WIDTH)).astype(np.float32)
    (folder / "model.onnx.data").write_bytes(table.tobytes())
    (folder / "model.onnx").write_bytes(model())
    words = WordTokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    words.save(str(folder / "tokenizer.json"))
    manifest = Manifest(
        schema_version=2,
        made_by={"saten-edge": "0.1.0"},
        name="lookup",
        source={"model": "lookup"},
        task="feature-extraction",
        precision="fp32",
        opset=20,
        ir_version=10,
        smallest_onnxruntime="1.23",
        inputs=["input_ids"],
        outputs=["last_hidden_state"],
        tokenizer=Tokenizer("tokenizer.json", 0, 16),
        postprocess=Postprocess("mean", True),
        tolerance={"relative": 1e-5},
    )
    (folder / "saten_edge.json").write_text(json.dumps(manifest.to_json()))
    return seal_bundle(folder)


def seal_bundle(folder: Path) -> Path:
    """Put the sizes and hashes that the files have now into the manifest, so that what lies behind it is tested."""
    path = folder / "saten_edge.json"
    manifest = json.loads(path.read_text())
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != path]
    manifest["files"] = {
        file.relative_to(folder).as_posix(): FileEntry(file.stat().st_size, sha256_file(file)).__dict__
        for file in files
    }
    manifest.pop("seal", None)
    path.write_text(json.dumps({**manifest, "seal": digest_of(manifest)}))
    return folder
