"""How constant weights are kept at each precision, and the ONNX text that reads them: one row per precision.

Every form is written once over these rows. Texts are templates: {x} is multiplied or looked up, {y} is the
result, {w} and {s} are the names of the stored weight (or its codes) and of its scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saten_exporters.quantize import (
    OFFSET_INT4,
    OFFSET_LOW,
    PRECISIONS,
    Precision,
    as_fp16,
    as_fp32,
    pack_codes,
    quantize_blocks,
    quantize_int8,
    quantize_offsets,
)

__all__ = ["INT64_BYTES", "OFFSETS", "STORAGES", "Storage"]

Array = NDArray[Any]
Packed = tuple[Array, ...]

# Products of fewer inputs take x in float32 where a target says so: 48 → 3072 in 4 bits, 128 rows, one thread of an
# x86-64 server: 0.39 ms, not 0.86. From 128 inputs on that gains a tenth at most, and a decoder's token, a single row,
# pays for it: 576 → 3072: 0.16 ms, not 0.065.
FEW_INPUTS = 128
FLOAT_ACTIVATIONS, INT8_ACTIVATIONS = 0, 4
INT64_BYTES = 8  # of a size that a graph reads


@dataclass(frozen=True)
class Storage:
    """One precision's texts and packing.

    product: x (…, in) times a matrix (in, out); turned: x (…, out) times its transpose, perhaps with columns of zeros
    behind. lookup: rows of a table; by_rows: x times the transpose of a table. numbers: a batch of blocks (n, m, k)
    as float32; empty where they are stored so; table_numbers: the same of a table, where codes share a byte or a
    scale. pack_*: the weight → what is stored, codes before scales.
    multiple: tables and blocks have a width that it divides. sized: product needs the matrix' sizes as attributes.
    """

    precision: Precision
    product: str
    turned: str
    lookup: str
    by_rows: str
    numbers: str
    pack_product: Callable[[Array], Packed]
    pack_table: Callable[[Array], Packed]
    pack_blocks: Callable[[Array], Packed]
    table_numbers: str = ""
    scaled: bool = True
    multiple: int = 1
    sized: bool = False

    def names(self, codes: str, scale: str, plain: str | None = None) -> tuple[str, ...]:
        """Names of the inputs that hold one weight; `plain` is its name where it needs no decoding."""
        name = plain if plain is not None and not self.numbers else codes
        return (name, scale) if self.scaled else (name,)

    def multiply(self, x: str, y: str, w: str, s: str = "") -> str:
        """Text of y = x W."""
        return self.product.format(x=x, y=y, w=w, s=s)

    def multiply_turned(self, x: str, y: str, w: str, s: str = "") -> str:
        """Text of y = x Wᵀ."""
        return self.turned.format(x=x, y=y, w=w, s=s)

    def multiply_table(self, x: str, y: str, w: str, s: str = "") -> str:
        """Text of y = x Tᵀ for a table T."""
        return self.by_rows.format(x=x, y=y, w=w, s=s)

    def whole_blocks(self, width: int) -> int:
        """`width` inputs of a product, or the next larger number of whole blocks of it."""
        block = self.precision.for_inputs(width).block
        return width + (-width % block if block else 0)

    def product_bytes(self, shape: tuple[int, ...]) -> int:
        """Of what `pack_product` makes of a matrix (in, out)."""
        inputs, outputs = shape
        return outputs * self.precision.for_inputs(inputs).line_bytes(inputs, filled=True)

    def table_bytes(self, shape: tuple[int, ...]) -> int:
        """Of what `pack_table` or `pack_blocks` make of numbers (…, width), once they are `widened`."""
        return prod(shape[:-1]) * self.precision.line_bytes(self.wide(shape[-1]))

    def whole_bytes(self, shape: tuple[int, int]) -> int:
        """Of what `pack_whole` makes of a table (rows, width)."""
        return self.table_bytes(shape) + (INT64_BYTES if self.multiple > 1 else 0)

    def look_up(self, x: str, y: str, w: str, s: str = "") -> str:
        """Text of y = the rows x of a table."""
        return self.lookup.format(x=x, y=y, w=w, s=s)

    def table_names(self, plain: str) -> tuple[str, ...]:
        """Names of the inputs that hold a table whose rows are looked up as a whole."""
        return (*self.names("codes", "scale", plain), *(("width",) if self.multiple > 1 else ()))

    def look_up_whole(self, x: str, y: str, w: str, s: str = "", width: str = "") -> str:
        """Text of y = the rows x of a table, without the columns it was widened by."""
        return self.look_up(x, "wide", w, s) + _CROP.format(y=y, width=width) if width else self.look_up(x, y, w, s)

    def pack_whole(self, table: Array) -> Packed:
        """What `table_names` name."""
        width = (np.array([table.shape[1]], np.int64),) if self.multiple > 1 else ()
        return (*self.pack_table(self.widened(table)), *width)

    def decode(self, y: str, w: str, s: str = "") -> str:
        """Text of y = the blocks as float32."""
        return self.numbers.format(y=y, w=w, s=s)

    def attributes(self, *matrices: str) -> tuple[str, ...]:
        """Names of the attributes that products by `matrices` refer to."""
        return (*(f"{name}_{side}" for name in matrices for side in SIDES), "level") if self.sized else ()

    def sizes(self, matrices: Mapping[str, tuple[int, int]], floats: bool, *, table: bool = False) -> dict[str, int]:
        """The attributes' values for `matrices`, name → (in, out).

        floats: whether products of 4-bit weights with few inputs take activations in float32. table: the matrices are
        stored as tables.
        """
        if not self.sized:
            return {}
        few = any(inputs < FEW_INPUTS for inputs, _ in matrices.values())
        level = FLOAT_ACTIVATIONS if floats and few and self.precision.bits == 4 else INT8_ACTIVATIONS
        stored = [self.precision if table else self.precision.for_inputs(inputs) for inputs, _ in matrices.values()]
        sizes = ((*shape, how.block) for shape, how in zip(matrices.values(), stored, strict=True))
        values = (*(size for each in sizes for size in each), level)
        return dict(zip(self.attributes(*matrices), values, strict=True))

    def widened(self, table: Array) -> Array:
        """`table`, with zeros behind its last axis up to a width that `multiple` divides."""
        missing = self.wide(table.shape[-1]) - table.shape[-1]
        return np.pad(table, [(0, 0)] * (table.ndim - 1) + [(0, missing)])

    def wide(self, width: int) -> int:
        """`width`, or the next larger one that `multiple` divides."""
        return width + -width % self.multiple


SIDES = ("in", "out", "block")

# A weight that ONNX Runtime takes to depend on x: it would decode a constant once at load, and keep the result, several
# times as large. The shape is the weight's own, plus the smaller of x's first size and 0.
_LATE = """
        {y}_first = Shape <start = 0, end = 1> (x)
        {y}_none = Constant <value_ints = [0]> ()
        {y}_zero = Min ({y}_first, {y}_none)
        {y}_own = Shape ({w})
        {y}_shape = Add ({y}_own, {y}_zero)
        {y}_late = Reshape ({w}, {y}_shape)"""


_TRANSPOSED = """
        {y} = com.microsoft.FusedMatMul <transB = 1> ({x}, {w})"""

_LATE_TRANSPOSED = (
    _LATE
    + """
        {y}_matrix = Cast <to = 1> ({y}_late)
        {y} = com.microsoft.FusedMatMul <transB = 1> ({x}, {y}_matrix)"""
)

_CROP = """
        start = Constant <value_ints = [0]> ()
        last = Constant <value_ints = [-1]> ()
        {y} = Slice (wide, start, {width}, last)"""


def _one(weight: Array) -> Packed:
    return (as_fp32(weight),)


def _half(weight: Array) -> Packed:
    return (as_fp16(weight),)


def _int8_columns(matrix: Array) -> Packed:
    codes, scale = quantize_int8(matrix, axis=0)
    return codes, scale.reshape(-1)


def _int8_rows(table: Array) -> Packed:
    return quantize_int8(table, axis=1)  # a scale per row: one row is looked up at a time


def _int8_blocks(blocks: Array) -> Packed:
    return quantize_int8(blocks, axis=2)  # a scale per output


def _blockwise(precision: Precision) -> Storage:
    """Blocks of codes that share a scale: MatMulNBits and GatherBlockQuantized read them as they are.

    ONNX Runtime computes neither at load, even of constants.
    """
    bits, block = precision.bits, precision.block
    how = f"bits = {bits}, block_size = {block}"
    columns, rows, blocks = _block_packers(precision)
    return Storage(
        precision,
        product=f"""
        {{y}} = com.microsoft.MatMulNBits <{_sizes(bits)}> ({{x}}, {{w}}, {{s}})""",
        turned=_turned_blocks(how),
        by_rows=_blocks_by_rows(precision),
        lookup=f"""
        {{y}} = com.microsoft.GatherBlockQuantized <gather_axis = 0, quantize_axis = 1, {how}> ({{w}}, {{x}}, {{s}})""",
        numbers=_block_numbers(how),
        table_numbers=_block_table_numbers(how),
        pack_product=columns,
        pack_table=rows,
        pack_blocks=blocks,
        multiple=8 // bits,
        sized=True,
    )


def _sizes(bits: int) -> str:
    """The attributes of a product by {w}."""
    return (
        f"K: int = @{{w}}_in, N: int = @{{w}}_out, bits = {bits}, block_size: int = @{{w}}_block, "
        "accuracy_level: int = @level"
    )


def _block_packers(
    precision: Precision,
) -> tuple[Callable[[Array], Packed], Callable[[Array], Packed], Callable[[Array], Packed]]:
    """Pack a matrix by its columns, a table by its rows, and a batch of blocks."""
    bits = precision.bits

    def columns(matrix: Array) -> Packed:
        codes, scale = quantize_blocks(matrix.T, bits, precision.for_inputs(len(matrix)).block)
        return pack_codes(codes, bits), scale.reshape(-1)

    def rows(table: Array) -> Packed:
        codes, scale = quantize_blocks(table, bits, precision.block)
        return pack_codes(codes, bits).reshape(len(table), -1)[:, : table.shape[1] * bits // 8], scale

    def blocks(values: Array) -> Packed:
        codes, scale = rows(values.reshape(-1, values.shape[2]))
        return codes[None], scale[None]

    return columns, rows, blocks


def _turned_blocks(how: str) -> str:
    """Each block is read as a row of its own, which may be narrower than the blocks of `how`."""
    return f"""
        {{y}}_first = Constant <value_ints = [0]> ()
        {{y}}_one = Constant <value_ints = [1]> ()
        {{y}}_rest = Constant <value_ints = [-1]> ()
        {{y}}_count = Shape <start = 0, end = 1> ({{w}})
        {{y}}_bytes = Shape <start = 2, end = 3> ({{w}})
        {{y}}_lines = Concat <axis = 0> ({{y}}_one, {{y}}_rest, {{y}}_bytes)
        {{y}}_codes = Reshape ({{w}}, {{y}}_lines)
        {{y}}_column = Concat <axis = 0> ({{y}}_one, {{y}}_rest, {{y}}_one)
        {{y}}_scale = Reshape ({{s}}, {{y}}_column)
        {{y}}_numbers = com.microsoft.GatherBlockQuantized <gather_axis = 0, quantize_axis = 2, {how}> (
            {{y}}_codes, {{y}}_first, {{y}}_scale)
        {{y}}_shape = Concat <axis = 0> ({{y}}_count, {{y}}_rest)
        {{y}}_matrix = Reshape ({{y}}_numbers, {{y}}_shape)
        {{y}} = MatMul ({{x}}, {{y}}_matrix)"""


def _blocks_by_rows(precision: Precision) -> str:
    """The last block of a row is filled up with codes of zero."""
    bits = precision.bits
    stored = precision.block * bits // 8  # bytes of a block
    zero = sum(1 << k for k in range(bits - 1, 8, bits))  # a byte of codes of zero
    return f"""
        {{y}}_start = Constant <value_ints = [0, 0, 0]> ()
        {{y}}_block = Constant <value_ints = [{stored}]> ()
        {{y}}_zero = Constant <value = uint8 {{{{{zero}}}}}> ()
        {{y}}_rest = Constant <value_ints = [-1]> ()
        {{y}}_rows = Shape <start = 0, end = 1> ({{w}})
        {{y}}_bytes = Shape <start = 1, end = 2> ({{w}})
        {{y}}_blocks = Shape <start = 1, end = 2> ({{s}})
        {{y}}_whole = Mul ({{y}}_blocks, {{y}}_block)
        {{y}}_missing = Sub ({{y}}_whole, {{y}}_bytes)
        {{y}}_pads = Concat <axis = 0> ({{y}}_start, {{y}}_missing)
        {{y}}_padded = Pad ({{w}}, {{y}}_pads, {{y}}_zero)
        {{y}}_shape = Concat <axis = 0> ({{y}}_rows, {{y}}_blocks, {{y}}_block)
        {{y}}_codes = Reshape ({{y}}_padded, {{y}}_shape)
        {{y}}_scale = Reshape ({{s}}, {{y}}_rest)
        {{y}} = com.microsoft.MatMulNBits <{_sizes(bits)}> ({{x}}, {{y}}_codes, {{y}}_scale)"""


def _block_numbers(how: str) -> str:
    return f"""
        {{y}}_first = Constant <value_ints = [0]> ()
        {{y}}_rows = com.microsoft.GatherBlockQuantized <gather_axis = 0, quantize_axis = 2, {how}> (
            {{w}}, {{y}}_first, {{s}})
        {{y}}_groups = Shape <start = 0, end = 1> (indices)
        {{y}}_size = Constant <value_ints = [-1]> ()
        {{y}}_kept = Shape <start = 1, end = 2> (indices)
        {{y}}_blocks = Concat <axis = 0> ({{y}}_groups, {{y}}_size, {{y}}_kept)
        {{y}} = Reshape ({{y}}_rows, {{y}}_blocks)"""


def _block_table_numbers(how: str) -> str:
    return f"""
        {{y}}_first = Constant <value_ints = [0]> ()
        {{y}}_codes = Unsqueeze ({{w}}, {{y}}_first)
        {{y}}_scale = Unsqueeze ({{s}}, {{y}}_first)
        {{y}}_all = com.microsoft.GatherBlockQuantized <gather_axis = 0, quantize_axis = 2, {how}> (
            {{y}}_codes, {{y}}_first, {{y}}_scale)
        {{y}} = Squeeze ({{y}}_all, {{y}}_first)"""


STORAGES = {
    storage.precision.name: storage
    for storage in (
        Storage(
            PRECISIONS["fp32"],
            product="""
        {y} = MatMul ({x}, {w})""",
            turned=_TRANSPOSED,
            lookup="""
        {y} = Gather <axis = 0> ({w}, {x})""",
            by_rows=_TRANSPOSED,
            numbers="",
            pack_product=_one,
            pack_table=_one,
            pack_blocks=_one,
            scaled=False,
        ),
        Storage(
            PRECISIONS["fp16"],
            product=_LATE
            + """
        {y}_matrix = Cast <to = 1> ({y}_late)
        {y} = MatMul ({x}, {y}_matrix)""",
            turned=_LATE_TRANSPOSED,
            lookup="""
        {y}_halves = Gather <axis = 0> ({w}, {x})
        {y} = Cast <to = 1> ({y}_halves)""",
            by_rows=_LATE_TRANSPOSED,
            numbers=_LATE
            + """
        {y} = Cast <to = 1> ({y}_late)""",
            pack_product=_half,
            pack_table=_half,
            pack_blocks=_half,
            scaled=False,
        ),
        Storage(
            PRECISIONS["int8"],
            product="""
        {y} = com.microsoft.DynamicQuantizeMatMul ({x}, {w}, {s})""",
            # Codes ONNX Runtime turns once at load, in 8 bits, where it would repack them for the product anyway.
            turned="""
        {y}_scaled = Mul ({x}, {s})
        {y}_turned = Transpose <perm = [1, 0]> ({w})
        {y}_one = Constant <value_float = 1.0> ()
        {y} = com.microsoft.DynamicQuantizeMatMul ({y}_scaled, {y}_turned, {y}_one)""",
            by_rows="""
        {y}_turned = Transpose <perm = [1, 0]> ({w})
        {y}_all = Constant <value_ints = [-1]> ()
        {y}_scale = Reshape ({s}, {y}_all)
        {y} = com.microsoft.DynamicQuantizeMatMul ({x}, {y}_turned, {y}_scale)""",
            lookup="""
        {y}_codes = Gather <axis = 0> ({w}, {x})
        {y}_numbers = Cast <to = 1> ({y}_codes)
        {y}_scale = Gather <axis = 0> ({s}, {x})
        {y} = Mul ({y}_numbers, {y}_scale)""",
            # DequantizeLinear is never folded at load.
            numbers="""
        {y}_one = Constant <value_float = 1.0> ()
        {y}_numbers = DequantizeLinear ({w}, {y}_one)
        {y} = Mul ({y}_numbers, {s})""",
            pack_product=_int8_columns,
            pack_table=_int8_rows,
            pack_blocks=_int8_blocks,
        ),
        *(_blockwise(precision) for precision in PRECISIONS.values() if precision.block),
    )
}


class _WithOffsets(Storage):
    """Products have the sums of each block of x behind x, and a sixteenth of these."""

    def sizes(self, matrices: Mapping[str, tuple[int, int]], floats: bool, *, table: bool = False) -> dict[str, int]:
        return super().sizes({name: self._with_sums(shape) for name, shape in matrices.items()}, floats, table=table)

    def product_bytes(self, shape: tuple[int, ...]) -> int:
        return super().product_bytes(self._with_sums(shape))

    def _with_sums(self, shape: tuple[int, ...]) -> tuple[int, int]:
        inputs, outputs = shape
        return inputs + 2 * inputs // self.precision.block, outputs


def _offset_columns(matrix: Array) -> Packed:
    codes, scales = quantize_offsets(matrix.T, OFFSET_INT4.block)
    return pack_codes(codes, OFFSET_INT4.bits), scales.reshape(-1)


# Dense products alone are stored so, where `has_offsets` says it; all else is as at int4.
OFFSETS = _WithOffsets(
    **{
        **vars(STORAGES["int4"]),
        "precision": OFFSET_INT4,
        "pack_product": _offset_columns,
        "product": f"""
        {{y}}_lead = Shape <start = 0, end = -1> ({{x}})
        {{y}}_block = Constant <value_ints = [-1, {OFFSET_INT4.block}]> ()
        {{y}}_split = Concat <axis = 0> ({{y}}_lead, {{y}}_block)
        {{y}}_blocks = Reshape ({{x}}, {{y}}_split)
        {{y}}_axis = Constant <value_ints = [-1]> ()
        {{y}}_sums = ReduceSum <keepdims = 0> ({{y}}_blocks, {{y}}_axis)
        {{y}}_part = Constant <value_float = {1 / OFFSET_LOW}> ()
        {{y}}_low = Mul ({{y}}_sums, {{y}}_part)
        {{y}}_wide = Concat <axis = -1> ({{x}}, {{y}}_sums, {{y}}_low)"""
        + STORAGES["int4"].product.replace("({x}, ", "({y}_wide, "),
    }
)
