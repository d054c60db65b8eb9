"""What a GGUF file says of itself, looked at before transformers opens it.

Readers of the format slice a mapped file by the lengths that it states, and keep what they get where it is shorter.
Here every count, length, offset and type is held against the bytes that are there. `read_gguf_header` refuses

- another magic or version, big-endian files, and files cut off anywhere,
- more than 4096 entries of metadata, lists in lists, a text above 1 MiB, a header above 256 MiB,
- a name that is none, an entry or a tensor that is there twice,
- a tensor of an unknown type, with a shape that its blocks do not divide, or with bytes outside of the file,
- holes, overlaps, and bytes that no tensor claims.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saten_edge.checkpoints.guard import TENSOR_NAME
from saten_runtime.errors import CheckpointError
from saten_runtime.records.files import open_regular

__all__ = ["BLOCKS", "GgufHeader", "StoredTensor", "is_gguf", "read_gguf_header"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Number of a type → its name, the values of one block, and the bytes of one.
BLOCKS: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}

_KEY = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
_MOST_HEADER_BYTES = 256 << 20
_MOST_TEXT_BYTES = 1 << 20
_MOST_ENTRIES, _MOST_TENSORS, _MOST_AXES = 4096, 100_000, 4
_MOST_ALIGNMENT = 1 << 16
_SCALARS = dict(enumerate("BbHhIif?", start=0)) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_ADVICE = "the file is damaged or cut off, download it again"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: the number of its type in `BLOCKS`, its shape in torch's order, and where its bytes are."""

    type: int
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key and tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name: what is in it is looked at later."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def read_gguf_header(path: Path) -> GgufHeader:
    """Metadata and tensors of a GGUF file, if they are exactly what it holds.

    Raises:
        CheckpointError: they are not, see the module.
    """
    with open_regular(path.resolve(), CheckpointError) as file:
        there = os.fstat(file.fileno()).st_size
        cursor = _Cursor(path, file.read(min(there, _MOST_HEADER_BYTES)))
    cursor.expect_magic()
    count, entries = cursor.number("Q"), cursor.number("Q")
    if entries > _MOST_ENTRIES or count > _MOST_TENSORS:
        raise CheckpointError(
            f"{path}: {entries} entries and {count} tensors; up to {_MOST_ENTRIES} and {_MOST_TENSORS} are read"
        )
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.name(_KEY, metadata)
        metadata[key] = cursor.value(cursor.number("I"), key)
    described: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(count):
        name = cursor.name(TENSOR_NAME, described)
        described[name] = cursor.tensor(name)
    return GgufHeader(path, metadata, _placed(path, metadata, described, cursor.position, there))


class _Cursor:
    """A place in the first bytes of a file, from which its values are read one after the other."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self.position = path, data, 0

    def expect_magic(self) -> None:
        if self._take(4) != MAGIC:
            raise CheckpointError(f"{self._path}: is no GGUF file, it does not begin with the letters GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            wrong = "the file is big-endian" if version >> 16 and not version & 0xFFFF else f"its version is {version}"
            raise CheckpointError(f"{self._path}: {wrong}; expected a little-endian GGUF of version 2 or 3")

    def number(self, code: str) -> Any:
        return self._numbers(code, 1)[0]

    def name(self, allowed: re.Pattern[str], taken: Mapping[str, Any]) -> str:
        text = self._text()
        if not allowed.fullmatch(text):
            raise CheckpointError(f"{self._path}: the name {text!r:.80} has other characters than letters and digits")
        if text in taken:
            raise CheckpointError(f"{self._path}: {text} is there twice; {_ADVICE}")
        return text

    def value(self, kind: int, key: str) -> Any:
        """One value of metadata: a number, a text, or a list of one of the two."""
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self.number(self._code(kind, key))
        kind, count = self.number("I"), self.number("Q")
        if kind != _TEXT:
            return list(self._numbers(self._code(kind, key), count))
        self._refuse_beyond(count * 8)  # each text has its length before it
        return [self._text() for _ in range(count)]

    def tensor(self, name: str) -> tuple[int, tuple[int, ...], int]:
        """Type, shape in torch's order, and offset among the tensors."""
        axes = self.number("I")
        if not 1 <= axes <= _MOST_AXES:
            raise CheckpointError(f"{self._path}: {name} has {axes} axes, expected 1 to {_MOST_AXES}; {_ADVICE}")
        shape = tuple(reversed(self._numbers("Q", axes)))
        return self.number("I"), shape, self.number("Q")

    def _code(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            raise CheckpointError(f"{self._path}: {key} has a value of the unknown type {kind}; {_ADVICE}")
        return _SCALARS[kind]

    def _text(self) -> str:
        length = self.number("Q")
        if length > _MOST_TEXT_BYTES:
            raise CheckpointError(f"{self._path}: a text of {length} bytes, more than {_MOST_TEXT_BYTES}; {_ADVICE}")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._path}: a text at byte {self.position} is no UTF-8; {_ADVICE}") from None

    def _numbers(self, code: str, count: int) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}")
        self._refuse_beyond(size * count)
        return struct.unpack(f"<{count}{code}", self._take(size * count))

    def _take(self, size: int) -> bytes:
        self._refuse_beyond(size)
        self.position += size
        return self._data[self.position - size : self.position]

    def _refuse_beyond(self, size: int) -> None:
        if size > len(self._data) - self.position:
            raise CheckpointError(
                f"{self._path}: {size} bytes are said to follow byte {self.position}, there are "
                f"{len(self._data) - self.position}; {_ADVICE}"
            )


def _placed(
    path: Path,
    metadata: Mapping[str, Any],
    described: Mapping[str, tuple[int, tuple[int, ...], int]],
    end: int,
    there: int,
) -> dict[str, StoredTensor]:
    """The tensors with the place of their bytes, which follow each other to the end of the file."""
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment is {alignment!r:.40}, expected a power of two up to 65536")
    position, placed = _aligned(end, alignment), {}
    start = position
    for name, (kind, shape, offset) in sorted(described.items(), key=lambda item: item[1][2]):
        if start + offset != position:
            raise CheckpointError(f"{path}: {name} begins at byte {start + offset}, expected {position}; {_ADVICE}")
        placed[name] = StoredTensor(kind, shape, position, _size_bytes(path, name, kind, shape))
        position += placed[name].size_bytes
        if position > there:
            raise CheckpointError(f"{path}: {name} ends at byte {position}, the file has {there}; {_ADVICE}")
        position = _aligned(position, alignment)
    if placed and not position - alignment < there <= position:
        raise CheckpointError(f"{path}: its tensors end at byte {position}, the file has {there}; {_ADVICE}")
    return {name: placed[name] for name in described}


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _size_bytes(path: Path, name: str, kind: int, shape: tuple[int, ...]) -> int:
    if kind not in BLOCKS:
        known = ", ".join(known for known, _, _ in BLOCKS.values())
        raise CheckpointError(f"{path}: {name} is stored as type {kind}, which is not known; there are {known}")
    title, values, size = BLOCKS[kind]
    if 0 in shape or shape[-1] % values:
        raise CheckpointError(f"{path}: {name} of shape {list(shape)} cannot be {title}, in blocks of {values}")
    return math.prod(shape) // values * size
