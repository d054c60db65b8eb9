"""A GGUF file is read as far as what it says is there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.sound import gguf_bytes
from hostile.sound import gguf_text as text
from hypothesis import given, settings
from hypothesis import strategies as st

from saten_edge.checkpoints.gguf_header import BLOCKS, StoredTensor, read_gguf_header
from saten_runtime.errors import CheckpointError

U32, TEXT, LIST = 4, 8, 9
ENTRIES = {"general.architecture": (TEXT, text("llama")), "llama.block_count": (U32, struct.pack("<I", 1))}
TENSORS = {"a.weight": (0, (4, 2), 0), "b.weight": (8, (32, 3), 32)}  # 32 bytes, and 102 in blocks of 34
BODY = bytes(32 + 128)
SOUND = gguf_bytes(ENTRIES, TENSORS, BODY)


def read(tmp_path: Path, content: bytes):
    (tmp_path / "model.gguf").write_bytes(content)
    return read_gguf_header(tmp_path / "model.gguf")


def test_what_a_sound_file_says(tmp_path: Path) -> None:
    found = read(tmp_path, SOUND)
    assert found.metadata == {"general.architecture": "llama", "llama.block_count": 1}
    start = len(SOUND) - len(BODY)
    assert found.tensors == {
        "a.weight": StoredTensor(0, (2, 4), start, 32),
        "b.weight": StoredTensor(8, (3, 32), start + 32, 102),
    }


def test_the_last_tensor_may_end_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, SOUND[: -(128 - 102)]).tensors


def test_every_cut_is_refused(tmp_path: Path) -> None:
    for end in range(len(SOUND) - (128 - 102)):
        with pytest.raises(CheckpointError, match=r"model\.gguf"):
            read(tmp_path, SOUND[:end])


def entry(kind: int, value: bytes) -> bytes:
    return gguf_bytes({**ENTRIES, "odd": (kind, value)}, TENSORS, BODY)


def tensor(name: str, kind: int, axes: tuple[int, ...], offset: int = 32) -> bytes:
    return gguf_bytes(ENTRIES, {"a.weight": (0, (4, 2), 0), name: (kind, axes, offset)}, BODY)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "bytes are said to follow"),
    "another file": (lambda: b"PK\3\4" + SOUND[4:], "does not begin with the letters GGUF"),
    "version 1": (lambda: gguf_bytes(ENTRIES, TENSORS, BODY, head=b"GGUF" + struct.pack("<I", 1)), "version is 1"),
    "big-endian": (lambda: gguf_bytes(ENTRIES, TENSORS, BODY, head=b"GGUF" + struct.pack(">I", 3)), "big-endian"),
    "2^63 tensors": (lambda: gguf_bytes(ENTRIES, TENSORS, BODY, counts=(1 << 63, 2)), "9223372036854775808 tensors"),
    "2^63 entries": (lambda: gguf_bytes(ENTRIES, TENSORS, BODY, counts=(2, 1 << 63)), "9223372036854775808 entries"),
    "a long text": (lambda: entry(TEXT, text(b"x", 1 << 62)), "a text of 4611686018427387904 bytes"),
    "a text beyond the end": (lambda: entry(TEXT, text(b"x", 1 << 19)), "524288 bytes are said to follow"),
    "no UTF-8": (lambda: entry(TEXT, text(b"\xff\xfe")), "no UTF-8"),
    "a long list of numbers": (lambda: entry(LIST, struct.pack("<IQ", U32, 1 << 62)), "bytes are said to follow"),
    "a long list of texts": (lambda: entry(LIST, struct.pack("<IQ", TEXT, 1 << 62)), "bytes are said to follow"),
    "a list of lists": (lambda: entry(LIST, struct.pack("<IQ", LIST, 1)), "unknown type 9"),
    "an unknown value": (lambda: entry(77, b""), "odd has a value of the unknown type 77"),
    "an odd key": (
        lambda: gguf_bytes({**ENTRIES, "../\x1b[2J": (U32, bytes(4))}, TENSORS, BODY),
        "other characters than letters",
    ),
    "a key twice": (
        lambda: SOUND.replace(text("llama.block_count"), text("general.architecture")),
        "general.architecture is there twice",
    ),
    "an odd name": (lambda: tensor("../b", 8, (32, 3)), "other characters than letters"),
    "an unknown type": (lambda: tensor("b", 99, (32, 3)), "b is stored as type 99, which is not known"),
    "blocks that do not divide": (lambda: tensor("b", 8, (33, 3)), r"b of shape \[3, 33\] cannot be Q8_0"),
    "no axes": (lambda: tensor("b", 0, ()), "b has 0 axes"),
    "nine axes": (lambda: tensor("b", 0, (1,) * 9), "b has 9 axes"),
    "no rows": (lambda: tensor("b", 0, (32, 0)), "cannot be F32"),
    "more than the file": (lambda: tensor("b", 8, (1 << 40, 1 << 22)), "b ends at byte"),
    "a hole": (lambda: tensor("b", 8, (32, 3), 64), "b begins at byte"),
    "an overlap": (lambda: tensor("b", 8, (32, 3), 0), "begins at byte"),
    "bytes after the end": (lambda: SOUND + bytes(32), "its tensors end at byte"),
    "an alignment of 3": (
        lambda: gguf_bytes({**ENTRIES, "general.alignment": (U32, struct.pack("<I", 3))}, TENSORS, BODY),
        "general.alignment is 3",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    make, words = HOSTILE[name]
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, make())


def test_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    once = gguf_bytes(ENTRIES, {"a.weight": (0, (4, 2), 0), "c.weight": (0, (4, 2), 32)}, bytes(64))
    assert read(tmp_path, once).tensors.keys() == {"a.weight", "c.weight"}
    with pytest.raises(CheckpointError, match=r"a\.weight is there twice"):
        read(tmp_path, once.replace(b"c.weight", b"a.weight"))


def test_a_link_is_followed_and_a_folder_refused(tmp_path: Path) -> None:
    read(tmp_path, SOUND)
    (tmp_path / "link.gguf").symlink_to(tmp_path / "model.gguf")
    assert read_gguf_header(tmp_path / "link.gguf").tensors
    with pytest.raises(CheckpointError, match="no regular file"):
        read_gguf_header(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=9))
def test_damage_ends_in_our_error_or_in_a_whole_header(
    tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes
) -> None:
    content = SOUND[:place] + damage + SOUND[place + len(damage) :]
    try:
        found = read(tmp_path_factory.getbasetemp(), content)
    except CheckpointError:
        return
    assert all(tensor.offset + tensor.size_bytes <= len(content) for tensor in found.tensors.values())


def test_the_table_of_types_is_that_of_the_package() -> None:
    constants = pytest.importorskip("gguf.constants", reason="the package gguf is not installed")
    known = {kind.value: (kind.name, *size) for kind, size in constants.GGML_QUANT_SIZES.items()}
    assert {number: known[number] for number in BLOCKS} == BLOCKS
