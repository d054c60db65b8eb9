"""A residual of n of every m inputs, for some of the outputs.

The file holds a few bits for each value: its place among its m inputs. As for compressed rows, the body rebuilds the
matrix, which is folded once at load. A kernel of the same name multiplies the entries alone. Values of 4 bits become
8-bit codes at load, too; then all is as with these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saten_exporters.exportable import LayerParts
from saten_exporters.forms.form import NATIVE, Form, Weights, Work, product
from saten_exporters.forms.storage import INT64_BYTES, STORAGES, Storage
from saten_exporters.quantize import SCALE_BYTES, pack_codes, quantize_int4, quantize_int8

__all__ = ["nofm_linear", "nofm_linear_int4"]

# codes (bytes), stored (kept, k), sizes [in, out, n, m] → input (kept, k): ⌈log₂ m⌉ bits, lowest first, are the place
# of a value among its m inputs, of which every n values share one group. A zero is put before them, so that the product
# that adds up their bits has something to add where there are none (m = 1).
_UNPACK = """
        in, out, n, m = Split <axis = 0, num_outputs = 4> (sizes)
        zero = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        powers = Constant <value_ints = [1, 2, 4, 8, 16, 32, 64, 128]> ()
        below = Less (powers, m)
        counted = Cast <to = 7> (below)
        bits = ReduceSum (counted)
        octet = Unsqueeze (codes, one)
        shifts = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
        shifted = BitShift <direction = "RIGHT"> (octet, shifts)
        lowest = Constant <value = uint8 {1}> ()
        bit = BitwiseAnd (shifted, lowest)
        all = Constant <value_ints = [-1]> ()
        stream = Reshape (bit, all)
        lines = Shape (stored)
        count = ReduceProd (lines)
        bit_count = Mul (count, bits)
        used = Slice (stream, zero, bit_count)
        code_shape = Concat <axis = 0> (count, bits)
        by_code = Reshape <allowzero = 1> (used, code_shape)
        read = Cast <to = 1> (by_code)
        column = Concat <axis = 0> (count, one)
        nothing = ConstantOfShape (column)
        digits = Concat <axis = 1> (nothing, read)
        own_powers = Slice (powers, zero, bits)
        worth = Concat <axis = 0> (zero, own_powers)
        factors = Cast <to = 1> (worth)
        codes_read = MatMul (digits, factors)
        codes_by_line = Reshape (codes_read, lines)
        place = Cast <to = 6> (codes_by_line)
        first = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        kept_outputs, k = Split <axis = 0, num_outputs = 2> (lines)
        k_alone = Squeeze (k)
        nth = Range (first, k_alone, step)
        group = Div (nth, n)
        group_start = Mul (group, m)
        start = Cast <to = 6> (group_start)
        input = Add (place, start)
        output = Cast <to = 7> (outputs)"""

_SCATTER = """
        line_shape = Concat <axis = 0> (kept_outputs, in)
        line_zeros = ConstantOfShape <value = {type}[1] {{0}}> (line_shape)
        filled = ScatterElements <axis = 1> (line_zeros, input, stored)
        table_shape = Concat <axis = 0> (out, in)
        table_zeros = ConstantOfShape <value = {type}[1] {{0}}> (table_shape)
        row = Unsqueeze (output, one)
        table = ScatterND (table_zeros, row, filled)
        matrix = Transpose <perm = [1, 0]> (table)"""

_SPREAD_SCALE = """
        ones = ConstantOfShape <value = float[1] {1}> (out)
        scales = ScatterElements <axis = 0> (ones, output, scale)"""

# nibbles: two codes + 8 to a byte, the last half empty where they are odd, sizes [in, out, n, m], scale (kept,) →
# codes (kept, k); k is n for each whole group of m inputs, and n at most for the rest of them.
_WIDEN = """
        in, out, n, m = Split <axis = 0, num_outputs = 4> (sizes)
        one = Constant <value_ints = [1]> ()
        zero = Constant <value_ints = [0]> ()
        groups = Div (in, m)
        grouped = Mul (groups, n)
        left = Mod (in, m)
        of_rest = Min (n, left)
        k = Add (grouped, of_rest)
        kept = Shape <start = 0, end = 1> (scale)
        lines = Concat <axis = 0> (kept, k)
        count = Mul (kept, k)
        octet = Unsqueeze (nibbles, one)
        shifts = Constant <value = uint8[2] {0, 4}> ()
        shifted = BitShift <direction = "RIGHT"> (octet, shifts)
        lowest = Constant <value = uint8 {15}> ()
        pairs = BitwiseAnd (shifted, lowest)
        all = Constant <value_ints = [-1]> ()
        stream = Reshape (pairs, all)
        used = Slice (stream, zero, count)
        whole = Cast <to = 6> (used)
        eight = Constant <value_int = 8> ()
        middle = Cast <to = 6> (eight)
        signed = Sub (whole, middle)
        narrow = Cast <to = 3> (signed)
        stored = Reshape <allowzero = 1> (narrow, lines)"""

# precision → the type of what is scattered
_TYPES = {"fp32": "float", "fp16": "float16", "int8": "int8"}


def nofm_linear(storage: Storage) -> Form:
    """X (…, in) → x S; one scale per output that has values, where they are 8-bit codes."""
    name = storage.precision.name
    stored = storage.names("stored", "scale")

    def pack(parts: LayerParts) -> Weights:
        packed = _int8_lines(parts) if storage.scaled else storage.pack_table(parts.values)
        return _packed(parts, dict(zip(stored, packed, strict=True)))

    def stored_bytes(parts: LayerParts) -> int:
        scales = storage.scaled * SCALE_BYTES * len(parts.values)
        return _place_bytes(parts) + storage.precision.bits // 8 * parts.values.size + scales

    def native(parts: LayerParts) -> tuple[Work, ...]:
        values = parts.values.size
        return (Work("native-blocks-1", values, values, sum(parts.shape)),)

    spread = _SPREAD_SCALE if storage.scaled else ""
    return Form(
        "NOfM",
        "linear",
        name,
        ("outputs", "codes", *stored, "sizes"),
        _UNPACK + _SCATTER.format(type=_TYPES[name]) + spread + storage.multiply("x", "y", "matrix", "scales"),
        pack,
        stored_bytes,
        lambda parts: (product(parts.shape),),  # the body multiplies the rebuilt matrix
        native=native if name in NATIVE else None,
    )


def nofm_linear_int4() -> Form:
    """X (…, in) → x S; codes of 4 bits with one scale per output that has values, multiplied as those of 8 bits are."""
    whole = nofm_linear(STORAGES["int8"])

    def pack(parts: LayerParts) -> Weights:
        codes, scale = quantize_int4(parts.values, axis=1)
        stream = (codes + 8).astype(np.uint8).reshape(-1)
        nibbles = pack_codes(np.pad(stream, (0, stream.size % 2)), 4)
        return _packed(parts, {"nibbles": nibbles, "scale": scale[:, 0]})

    return Form(
        "NOfM",
        "linear",
        "int4",
        tuple("nibbles" if name == "stored" else name for name in whole.inputs),
        _WIDEN + whole.call("y"),
        pack,
        lambda parts: _place_bytes(parts) + -(-parts.values.size // 2) + SCALE_BYTES * len(parts.values),
        lambda parts: (),
        parts=(whole,),
    )


def _packed(parts: LayerParts, values: Weights) -> Weights:
    """Where the values stand, and the values, in the order of the inputs."""
    where = {key: parts.indices[key] for key in ("outputs", "codes")}
    return {**where, **values, "sizes": np.array([*parts.shape, *parts.indices["numbers"]], np.int64)}


def _place_bytes(parts: LayerParts) -> int:
    """Of all that `_packed` adds to the values."""
    return parts.indices["outputs"].nbytes + parts.indices["codes"].nbytes + 4 * INT64_BYTES


def _int8_lines(parts: LayerParts) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    codes, scale = quantize_int8(parts.values, axis=1)
    return codes, scale[:, 0]
