"""The wire format of protobuf, as far as it takes to look into an ONNX file and to write a small one.

A message is a run of fields: a varint of number and wire type, then the value. Strings, bytes and
messages look the same (a length and bytes), so only the reader knows which fields to descend into;
all others are stepped over by their length. Nothing is allocated by what a length says: every
length is compared with the bytes that are there.

Source: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["BYTES", "VARINT", "Field", "bytes_field", "fields", "numbers", "packed", "varint_field"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MOST_VARINT_BYTES = 10

Field = tuple[int, int, int, int]
"""(number, wire type, start, end): a varint's value stands in both, of the rest it is [start, end) in the content."""


def fields(content: bytes, start: int, end: int) -> list[Field]:
    """The fields of the message at content[start:end], in the order of the file.

    Raises:
        ValueError: it is cut off, a length points beyond its end, or a wire type is unknown.
    """
    found: list[Field] = []
    position = start
    while position < end:
        key = content[position]
        position += 1
        if key > 0x7F:
            key, position = _varint(content, position - 1, end)
        wire = key & 7
        if wire == BYTES:
            if position >= end:
                raise ValueError("it is cut off")
            size = content[position]
            position += 1
            if size > 0x7F:
                size, position = _varint(content, position - 1, end)
            after = position + size
        elif wire == VARINT:
            value, position = _varint(content, position, end)
            found.append((key >> 3, VARINT, value, value))
            continue
        elif wire in (FIXED64, FIXED32):
            after = position + (8 if wire == FIXED64 else 4)
        else:
            raise ValueError(f"byte {position - 1} begins a field of wire type {wire}")
        if after > end:
            raise ValueError(f"a field at byte {position} ends at {after}, the message at {end}")
        found.append((key >> 3, wire, position, after))
        position = after
    return found


def numbers(content: bytes, start: int, end: int) -> list[int]:
    """The list of numbers that `packed` writes, at content[start:end].

    Raises:
        ValueError: it is cut off, or a number is too long.
    """
    found, position = [], start
    while position < end:
        value, position = _varint(content, position, end)
        found.append(value)
    return found


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(_MOST_VARINT_BYTES):
        if position >= end:
            raise ValueError("it is cut off")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise ValueError(f"a number at byte {position} is longer than {_MOST_VARINT_BYTES} bytes")


def varint_field(number: int, value: int) -> bytes:
    """A field that holds a number, 0 ≤ value < 2⁶⁴."""
    return _number(number << 3 | VARINT) + _number(value)


def bytes_field(number: int, value: bytes | str) -> bytes:
    """A field that holds a string, bytes or an encoded message."""
    raw = value.encode() if isinstance(value, str) else value
    return _number(number << 3 | BYTES) + _number(len(raw)) + raw


def packed(number: int, values: Iterable[int]) -> bytes:
    """A field that holds a list of numbers."""
    return bytes_field(number, b"".join(map(_number, values)))


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
