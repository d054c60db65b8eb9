"""Hostile GGUF files (K14): sizes, counts and offsets that are not theirs."""

from __future__ import annotations

import struct

from hostile.case import Case, saten_edge
from hostile.folders import CHECKPOINT
from hostile.sound import gguf_bytes, gguf_text

__all__ = ["CASES"]

GGUF = gguf_bytes(
    {"general.architecture": (8, gguf_text("llama")), "llama.block_count": (4, struct.pack("<I", 10**9))},
    {"a.weight": (0, (4, 2), 0)},
    bytes(32),
)

CASES = [
    Case(
        "K14",
        name,
        lambda place, content=content: (place.folder / "model.gguf").write_bytes(content),
        lambda place: saten_edge("export", place.folder / "model.gguf", "-o", place.out, "--quiet"),
        CHECKPOINT,
        words,
    )
    for name, content, words in (
        ("a GGUF file that is cut off", GGUF[:-16], r"model\.gguf: a\.weight ends at byte"),
        ("2^63 tensors", GGUF[:8] + b"\xff" * 7 + GGUF[15:], r"model\.gguf: \d+ bytes are said|\d+ tensors"),
        (
            "a text of 2^62 bytes",
            GGUF[:24] + b"\0" * 7 + b"\x40" + GGUF[32:],
            r"a text of 4611686018427387904 bytes",
        ),
        ("no tensors for its layers", GGUF, r"model\.gguf: llama\.block_count is 1000000000"),
    )
]
