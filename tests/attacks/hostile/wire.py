"""Protobuf's wire format, written by nothing that is under attack: a slip of the runtime's own would hide itself.

Source: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["bytes_field", "packed", "varint_field"]

VARINT, LENGTH = 0, 2


def varint(number: int) -> bytes:
    """Seven bits a byte, the least first; all bytes but the last have their top bit set."""
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def varint_field(field: int, number: int) -> bytes:
    """A number."""
    return varint(field * 8 + VARINT) + varint(number)


def bytes_field(field: int, content: bytes | str) -> bytes:
    """A string, bytes or a message."""
    content = content.encode() if isinstance(content, str) else content
    return varint(field * 8 + LENGTH) + varint(len(content)) + content


def packed(field: int, numbers: Iterable[int]) -> bytes:
    """A list of numbers."""
    return bytes_field(field, b"".join(varint(number) for number in numbers))
