"""The table of precisions, and codes of weights. Factors, blocks, tables and dense layers all pass through here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saten_exporters.grids import keep_grids
from saten_exporters.two_bits import FINEST, nearest_codes
from saten_runtime.errors import ExportError
from saten_runtime.run.products import EXACT_BYTES

__all__ = [
    "INT8_LARGEST",
    "OFFSET_INT4",
    "PRECISIONS",
    "SCALE_BYTES",
    "SMALLEST_WEIGHT",
    "STORED",
    "Precision",
    "Unstorable",
    "as_fp16",
    "as_fp32",
    "check_storable",
    "has_offsets",
    "in_blocks",
    "pack_codes",
    "quantize_blocks",
    "quantize_int4",
    "quantize_int8",
    "quantize_offsets",
    "storing",
]

INT8_LARGEST, INT4_LARGEST = 127, 7
FP16, FP32 = np.finfo(np.float16), np.finfo(np.float32)
# The rounding of fp16's normal numbers, which `verify.DERIVED` counts on.
FP16_ROUNDING = 2.0**-11
# bits of a code → how many of the smallest scale that a block may get its largest weight is
_STEPS = {2: FINEST, 4: 7, 8: INT8_LARGEST}
_FP32, _OTHERS = "choose --precision fp32", "choose --precision fp32, int8-block or int4"
# A dense weight of fewer values stays in float32: scales and extra nodes would outweigh what is saved.
SMALLEST_WEIGHT = 4096


@dataclass(frozen=True)
class Precision:
    """How weights are stored.

    bits: of one weight. block: weights in a row that share a scale; 0 where an output or a row of a table
    has one scale, or none. suffix: what operator names end in. session_entries: what a session of ONNX Runtime must be
    configured with to multiply them rightly on every machine. smallest_onnxruntime: the oldest that multiplies them,
    where that is above the targets'. narrowest: the smallest block of a product, where that is below `block`.
    """

    name: str
    bits: int
    block: int
    suffix: str
    session_entries: Mapping[str, str] = field(default_factory=dict)
    smallest_onnxruntime: str = "0.0"
    narrowest: int = 0

    def for_inputs(self, inputs: int) -> Precision:
        """How products of so many inputs are stored: in the blocks, filled up to whole ones, that take fewest bytes."""
        if not self.narrowest:
            return self
        doublings = range((self.block // self.narrowest).bit_length())
        sizes = [self.block >> doubling for doubling in doublings]
        return replace(self, block=min(sizes, key=lambda size: -(-inputs // size) * (size * self.bits + SCALE_BITS)))

    def line_bytes(self, width: int, *, filled: bool = False) -> int:
        """Bytes of `width` weights in a row, and of their scales. filled: up to whole blocks."""
        blocks = -(-width // self.block) if self.block else int(self.bits < 16)
        stored = blocks * self.block if filled and self.block else width
        return (stored * self.bits + blocks * SCALE_BITS) // 8


SCALE_BITS, SCALE_BYTES = 32, 4
# With its float32 scale, a block of 32 four-bit codes takes 5 bits a weight, one of 128 of them 4.25, one of 64 codes
# of two bits 2.5, and one of 64 eight-bit codes 8.5.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", bits=32, block=0, suffix=""),
        Precision("fp16", bits=16, block=0, suffix="Half"),
        Precision("int8", bits=8, block=0, suffix="Int8", session_entries=dict([EXACT_BYTES])),
        Precision("int8-block", bits=8, block=64, suffix="Int8Block"),
        Precision("int4", bits=4, block=32, suffix="Int4"),
        Precision("int4-128", bits=4, block=128, suffix="Int4By128", narrowest=32),
        # 1.27 decodes two bits at every call, which takes fifty times as long; there is no 1.28 for browsers.
        Precision("int2", bits=2, block=64, suffix="Int2", smallest_onnxruntime="1.29"),
    )
}


# How a bundle at int4 stores dense weights that had 4 bits to begin with; nobody asks for it.
OFFSET_INT4 = Precision("int4-offset", bits=4, block=32, suffix="Int4Offset")
STORED = {**PRECISIONS, OFFSET_INT4.name: OFFSET_INT4}
# Offsets have 8 bits, as two codes of 4: 16 high + low. The largest is the largest that both can make.
OFFSET_LARGEST, OFFSET_LOW = 119, 16


class Unstorable(ValueError):
    """Numbers that a precision cannot hold; says which, and what the limit is."""


@contextlib.contextmanager
def storing(name: str) -> Iterator[None]:
    """Say of which tensor it is that the block finds numbers `Unstorable`.

    Raises:
        ExportError: naming the tensor.
    """
    try:
        yield
    except Unstorable as cause:
        raise ExportError(f"{name}: {cause}") from None


def as_fp32(weights: NDArray[Any]) -> NDArray[np.float32]:
    """The weights themselves.

    Raises:
        Unstorable: NaN or infinity.
    """
    bad = weights[~np.isfinite(weights)]
    if bad.size:
        raise Unstorable(f"{bad.size} of {weights.size} values are NaN or infinite; the model is damaged")
    return weights.astype(np.float32, copy=False)


def as_fp16(weights: NDArray[np.float32]) -> NDArray[np.float16]:
    """The weights rounded to half precision.

    Raises:
        Unstorable: NaN, infinity, a value beyond the largest number, or a tensor so small that its rounding loses more
            than that of normal numbers does.
    """
    peak = float(np.abs(as_fp32(weights)).max(initial=0.0))
    with np.errstate(over="ignore"):
        halves = weights.astype(np.float16)
    if not np.isfinite(halves).all():
        raise Unstorable(f"{peak:.6g} is beyond {FP16.max:.0f}, fp16's largest number; {_OTHERS}")
    # In units of the largest: squares of what is this small would vanish.
    lost = np.linalg.norm((halves.astype(np.float64) - weights) / (peak or 1.0))
    if lost > FP16_ROUNDING * np.linalg.norm(weights.astype(np.float64) / (peak or 1.0)):
        digits = f"{FP16.tiny:.2g}, from where on fp16 has all its digits"
        raise Unstorable(f"{peak:.3g}, its largest value, is too far below {digits}; {_OTHERS}")
    return halves


def check_storable(weights: NDArray[np.float32], precision: Precision) -> None:
    """Whether a weight can be stored at a precision.

    Raises:
        Unstorable: it cannot.
    """
    if precision.bits == 16:
        as_fp16(weights)
    elif precision.bits < 16:
        _check_scales(weights, _STEPS[precision.bits])
    else:
        as_fp32(weights)


def quantize_int8(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric codes and scales: weights ≈ codes · scales, one scale for each slice along all axes but `axis`.

    scales keep `axis` with length 1. A slice of zeros gets scale 1, and so does one so small that float32 has no normal
    number for its scale: it becomes zeros. The error is at most half a scale.

    Raises:
        Unstorable: NaN, infinity, or a tensor whose scales float32 cannot hold.
    """
    codes, scales = _symmetric(weights, axis, INT8_LARGEST)
    return codes.astype(np.int8), scales


def quantize_int4(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """As `quantize_int8`, with codes from -7 to 7."""
    codes, scales = _symmetric(weights, axis, INT4_LARGEST)
    return codes.astype(np.int8), scales


def quantize_blocks(
    weights: NDArray[np.float32], bits: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes (n, blocks, block) and scales (n, blocks) of weights (n, width), each row cut into blocks.

    weights ≈ (codes − 2^(bits − 1)) · scales; the last block of a row is padded with codes of zero. The error is at
    most half a scale: the largest code is as far from zero as the smallest, so that nothing is cut off. That of two
    bits is at most two thirds of the largest weight of a block, see `saten_exporters.two_bits`. Blocks of 4 or 2 bits
    that had as many before are kept as they are, see `saten_exporters.grids`.

    Raises:
        Unstorable: as `quantize_int8`.
    """
    rows, width = weights.shape
    count = -(-width // block)
    padded = np.zeros((rows, count * block), np.float32)
    padded[:, :width] = weights
    blocks, zero = padded.reshape(rows, count, block), 1 << (bits - 1)
    if bits == 2:
        _check_scales(weights, FINEST)
        codes, scales = nearest_codes(blocks)
    else:
        codes, scales = _symmetric(blocks, 2, zero - 1, grids=bits == 4)
    return (codes + zero).astype(np.uint8), scales[..., 0]


def in_blocks(weights: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    """Weights (n, width) as a precision that is stored in blocks along the width says them.

    Raises:
        Unstorable: as `quantize_int8`.
    """
    codes, scales = quantize_blocks(weights, precision.bits, precision.block)
    numbers = (codes.astype(np.float32) - (1 << (precision.bits - 1))) * scales[..., None]
    return np.ascontiguousarray(numbers.reshape(len(weights), -1)[:, : weights.shape[1]])


def quantize_offsets(weights: NDArray[np.float32], block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes (n, blocks, block) and scales (n, blocks) in 4 bits of weights (n, width); `block` divides the width.

    A block's weights are (code − 8) · scale + its offset: from the smallest to the largest in 15 steps, as GGUF's Q4_1
    and Q4_K have them. The offsets, `width / block` high parts and as many low ones, stand behind the weights as if
    they were weights of `width / block` more inputs, the sums of each block of inputs, and of a sixteenth of these.

    Raises:
        Unstorable: as `quantize_int8`.
    """
    _check_scales(weights, 7)
    blocks = weights.reshape(len(weights), -1, block)
    codes, scales, offsets = _stepped(blocks)
    step = np.abs(offsets).max(axis=1, keepdims=True, initial=0.0) / OFFSET_LARGEST
    step = np.where(step >= float(FP32.tiny), step, 1).astype(np.float32)
    whole = np.rint(offsets / step)
    high = np.floor((whole + OFFSET_LOW / 2) / OFFSET_LOW)
    behind = np.concatenate([high, whole - OFFSET_LOW * high], axis=1)
    behind = np.pad(behind, ((0, 0), (0, -behind.shape[1] % block))).reshape(len(weights), -1, block)
    own = np.repeat(step * OFFSET_LOW, behind.shape[1], axis=1)
    return (np.concatenate([codes, behind], axis=1) + 8).astype(np.uint8), np.concatenate([scales, own], axis=1)


def has_offsets(weights: NDArray[np.float32], block: int) -> bool:
    """Whether weights (n, width) had 4 bits and an offset to begin with: these leave a quarter of the error or less."""
    if weights.shape[1] % block or not np.isfinite(weights).all():
        return False
    blocks = weights.reshape(len(weights), -1, block)
    peak = np.abs(blocks).max(initial=0.0) or 1.0  # in units of the largest, whose squares are numbers
    codes, scales, offsets = _stepped(blocks)
    with_offsets = np.linalg.norm((codes * scales[..., None] + offsets[..., None] - blocks) / peak)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    steps = np.where(largest > 0, largest / INT4_LARGEST, 1)
    keep_grids(blocks, largest, steps, INT4_LARGEST)
    return bool(with_offsets < 0.25 * np.linalg.norm((np.rint(blocks / steps) * steps - blocks) / peak))


def _stepped(blocks: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
    """Codes from −8 to 7, scales and offsets (n, blocks) that reach from the smallest weight to the largest."""
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    scales = (high / 15 - low / 15).astype(np.float32)
    flat = scales < float(FP32.tiny)  # all weights alike: codes of zero, and the offset
    scales[flat] = 1.0
    codes = np.clip(np.rint((blocks - low[..., None]) / scales[..., None]), 0, 15) - 8
    codes[flat] = 0.0
    return codes, scales, (low + np.where(flat, 0, 8 * scales)).astype(np.float32)


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """As many codes to a byte, along the last axis, as fill it; the first in the lowest bits."""
    each = 8 // bits
    shifted = (codes[..., k::each] << np.uint8(bits * k) for k in range(each))
    return functools.reduce(np.bitwise_or, shifted)


def _symmetric(
    weights: NDArray[np.float32], axis: int, largest: int, *, grids: bool = False
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Codes and scales; grids: blocks along the last axis that are on a coarser grid keep it."""
    _check_scales(weights, largest)
    peak: NDArray[Any] = np.abs(weights).max(axis=axis, keepdims=True, initial=0.0)
    peak = np.where(peak >= largest * float(FP32.tiny), peak, 0)
    scales = np.where(peak > 0, peak / largest, 1).astype(np.float32)
    if grids:
        keep_grids(weights, peak, scales, largest)
    return np.rint(weights / scales), scales


def _check_scales(weights: NDArray[np.float32], largest: int) -> None:
    peak, smallest = float(np.abs(as_fp32(weights)).max(initial=0.0)), largest * float(FP32.tiny)
    with np.errstate(over="ignore"):
        fits = peak == 0 or (peak >= smallest and np.isfinite(np.float32(peak / largest) * np.float32(largest)))
    if not fits:
        limits = f"{smallest:.2g} to {FP32.max:.5g}"
        raise Unstorable(f"{peak:.5g}, its largest value, needs a scale outside of float32's ({limits}); {_FP32}")
