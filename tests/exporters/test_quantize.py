from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from saten_exporters.forms import STORAGES
from saten_exporters.quantize import (
    PRECISIONS,
    Unstorable,
    as_fp16,
    has_offsets,
    in_blocks,
    pack_codes,
    quantize_blocks,
    quantize_int8,
    quantize_offsets,
    storing,
)
from saten_runtime.errors import ExportError

EPS = float(np.finfo(np.float32).eps)
# A scale below the smallest normal number has few bits left, and half of it cannot be held to.
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-100)
WEIGHTS = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=NUMBERS)


def error(weights: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """In scales."""
    return np.abs(codes.astype(np.float64) * scales - weights) / scales


@given(WEIGHTS, st.integers(0, 1))
def test_half_a_scale(weights: np.ndarray, axis: int) -> None:
    codes, scales = quantize_int8(weights, axis)
    assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
    assert codes.shape == weights.shape
    assert scales.shape == tuple(1 if k == axis else side for k, side in enumerate(weights.shape))
    assert np.abs(codes.astype(int)).max() <= 127
    assert (scales > 0).all()
    assert (error(weights, codes, scales) <= 0.5 + 127 * 2 * EPS).all()


@given(WEIGHTS, st.integers(0, 1))
def test_the_largest_of_a_slice_has_the_largest_code(weights: np.ndarray, axis: int) -> None:
    codes, scales = quantize_int8(weights, axis)
    largest = np.abs(codes.astype(int)).max(axis=axis, keepdims=True)
    assert (largest == np.where(np.abs(weights).max(axis=axis, keepdims=True) > 0, 127, 0)).all()
    np.testing.assert_allclose(scales * largest, np.abs(weights).max(axis=axis, keepdims=True), rtol=4 * EPS)


@given(WEIGHTS, st.integers(0, 1))
def test_the_sign_does_not_matter(weights: np.ndarray, axis: int) -> None:
    (codes, scales), (negated, same) = quantize_int8(weights, axis), quantize_int8(-weights, axis)
    assert (negated == -codes).all()
    assert (same == scales).all()


def test_zeros_a_constant_and_one_outlier() -> None:
    weights = np.array([[0, 0, 0], [2, 2, 2], [-127, 1, 0.4]], np.float32)
    codes, scales = quantize_int8(weights, axis=1)
    assert scales.ravel().tolist() == [1, np.float32(2) / 127, 1]
    assert codes.tolist() == [[0, 0, 0], [127, 127, 127], [-127, 1, 0]]


def test_nothing_to_quantize() -> None:
    codes, scales = quantize_int8(np.zeros((3, 0), np.float32), axis=1)
    assert codes.shape == (3, 0)
    assert scales.tolist() == [[1], [1], [1]]


@pytest.mark.parametrize("wrong", ["one code off", "the scales of another axis"])
def test_a_wrong_result_is_seen(wrong: str) -> None:
    weights = np.random.default_rng(3).standard_normal((6, 6)).astype(np.float32)
    codes, scales = quantize_int8(weights, axis=1)
    assert (error(weights, codes, scales) <= 0.5 + 127 * 2 * EPS).all()
    if wrong == "one code off":
        codes[2, 3] += 1
    else:
        scales = scales.T
    assert not (error(weights, codes, scales) <= 0.5 + 127 * 2 * EPS).all()


# --- blocks ---------------------------------------------------------------------------------------------------------

MATRICES = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=NUMBERS)
BLOCKWISE = [precision for precision in PRECISIONS.values() if precision.block]
HALF_STEPS = [precision for precision in BLOCKWISE if precision.bits > 2]


def decoded(codes: np.ndarray, scales: np.ndarray, bits: int, width: int) -> np.ndarray:
    numbers = (codes.astype(np.float64) - 2 ** (bits - 1)) * scales[..., None].astype(np.float64)
    return numbers.reshape(len(codes), -1)[:, :width]


@given(MATRICES, st.sampled_from([4, 8]), st.sampled_from([16, 32]))
def test_half_a_scale_of_the_block(weights: np.ndarray, bits: int, block: int) -> None:
    codes, scales = quantize_blocks(weights, bits, block)
    count = -(-weights.shape[1] // block)
    assert (codes.dtype, codes.shape) == (np.uint8, (len(weights), count, block))
    assert (scales.dtype, scales.shape) == (np.float32, (len(weights), count))
    assert codes.max() < 2**bits
    assert codes.min() >= 1
    moved = np.abs(decoded(codes, scales, bits, weights.shape[1]) - weights)
    allowed = np.repeat(scales, block, axis=1)[:, : weights.shape[1]] * (0.5 + 2**bits * EPS)
    assert (moved <= allowed).all()


@pytest.mark.parametrize("precision", HALF_STEPS, ids=lambda row: row.name)
def test_an_outlier_coarsens_its_own_block_only(precision) -> None:
    weights = np.ones((1, 3 * precision.block), np.float32)
    weights[0, precision.block] = 1000
    codes, scales = quantize_blocks(weights, precision.bits, precision.block)
    largest = 2 ** (precision.bits - 1) - 1
    assert scales.tolist() == [[np.float32(1) / largest, np.float32(1000) / largest, np.float32(1) / largest]]
    got = decoded(codes, scales, precision.bits, weights.shape[1])
    np.testing.assert_allclose(got[:, : precision.block], 1, rtol=2 * EPS)
    np.testing.assert_allclose(got[:, 2 * precision.block :], 1, rtol=2 * EPS)
    assert got[0, precision.block + 1] == (0 if precision.bits == 4 else round(largest / 1000) * scales[0, 1])


def test_padding_is_zero() -> None:
    codes, scales = quantize_blocks(np.full((2, 5), 3, np.float32), 4, 16)
    assert (codes[:, 0, 5:] == 8).all()
    assert (scales == np.float32(3) / 7).all()


def test_codes_share_a_byte() -> None:
    assert pack_codes(np.array([[1, 15, 8, 0]], np.uint8), 4).tolist() == [[0xF1, 0x08]]
    assert pack_codes(np.array([[1, 3, 2, 0]], np.uint8), 2).tolist() == [[0b00101101]]
    assert pack_codes(np.array([[7, 255]], np.uint8), 8).tolist() == [[7, 255]]


# --- two bits -------------------------------------------------------------------------------------------------------


@given(MATRICES)
def test_no_weight_of_two_bits_moves_by_more_than_two_thirds_of_its_block(weights: np.ndarray) -> None:
    codes, scales = quantize_blocks(weights, 2, 16)
    assert codes.max() <= 3
    got = decoded(codes, scales, 2, weights.shape[1])
    blocks = [weights[:, k : k + 16] for k in range(0, weights.shape[1], 16)]
    peaks = np.concatenate([np.broadcast_to(np.abs(b).max(1, keepdims=True), b.shape) for b in blocks], axis=1)
    assert (np.abs(got - weights) <= peaks * (2 / 3 + 8 * EPS)).all()
    assert np.isfinite(got).all()


def test_four_levels_that_are_there_are_kept() -> None:
    for scale in (0.5, -0.5, 3.0):
        levels = np.random.default_rng(1).integers(-2, 2, (5, 64)).astype(np.float32)
        levels[:, 0] = -2
        codes, scales = quantize_blocks(levels * np.float32(scale), 2, 64)
        np.testing.assert_array_equal(decoded(codes, scales, 2, 64), levels * scale)


def test_two_bits_lose_an_eighth_of_gaussian_weights() -> None:
    """0.1175 is the least that four levels can lose of them; the largest weight over 1 would lose half."""
    weights = np.random.default_rng(2).standard_normal((2000, 64)).astype(np.float32)
    lost = np.square(in_blocks(weights, PRECISIONS["int2"]) - weights).mean()
    assert 0.1175 < lost < 0.13
    peaks = np.abs(weights).max(axis=1, keepdims=True)
    assert np.square(np.rint(weights / peaks) * peaks - weights).mean() > 0.5


@pytest.mark.parametrize("value", [1e-38, 2e-38, 1e-45])
def test_two_bits_refuse_what_their_scales_cannot_hold(value: float) -> None:
    with pytest.raises(Unstorable, match="needs a scale outside of float32's"):
        quantize_blocks(np.full((2, 64), value, np.float32), 2, 64)
    with pytest.raises(Unstorable):
        quantize_blocks(np.full((2, 64), np.nan, np.float32), 2, 64)
    largest = np.full((2, 64), 3.4e38, np.float32)
    assert np.isfinite(in_blocks(largest, PRECISIONS["int2"])).all()


def test_one_code_off_is_seen() -> None:
    weights = np.random.default_rng(3).standard_normal((6, 40)).astype(np.float32)
    codes, scales = quantize_blocks(weights, 4, 32)
    codes[2, 0, 3] ^= 1
    moved = np.abs(decoded(codes, scales, 4, 40) - weights)
    assert not (moved <= np.repeat(scales, 32, axis=1)[:, :40] * (0.5 + 16 * EPS)).all()


# --- offsets --------------------------------------------------------------------------------------------------------

WHOLE_BLOCKS = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.sampled_from([32, 64, 96])), elements=NUMBERS)


def with_offsets(codes: np.ndarray, scales: np.ndarray, width: int) -> np.ndarray:
    """The weights: those of the inputs themselves, of their sums, and of a sixteenth of these."""
    wide = ((codes.astype(np.float64) - 8) * scales[..., None]).reshape(len(codes), -1)
    own, high, low = np.split(wide, [width, width + width // 32], axis=1)
    return own + np.repeat(high + low[:, : width // 32] / 16, 32, axis=1)


def born_in_4_bits(rows: int, width: int) -> np.ndarray:
    random = np.random.default_rng(5)
    steps = random.integers(0, 16, (rows, width // 32, 32))
    steps[..., :2] = 0, 15
    scale, low = random.uniform(0.5, 1, (2, rows, width // 32, 1))
    return ((steps - 8 + low) * scale).reshape(rows, width).astype(np.float32)


@given(WHOLE_BLOCKS)
def test_half_a_step_and_half_a_step_of_the_offset(weights: np.ndarray) -> None:
    codes, scales = quantize_offsets(weights, 32)
    blocks = weights.reshape(len(weights), -1, 32).astype(np.float64)
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    offsets = np.abs(low + 8 * (high - low) / 15).max(axis=1, keepdims=True) / 119
    moved = np.abs(with_offsets(codes, scales, weights.shape[1]) - weights).reshape(blocks.shape)
    # A step that float32 has no normal number for is 1, and the block its offset.
    half = np.where((high - low) / 15 >= np.finfo(np.float32).tiny, (high - low) / 30, high - low)
    assert codes.dtype == np.uint8
    assert codes.max() < 16
    assert (moved <= ((half + offsets / 2)[..., None]) + 64 * EPS * np.abs(blocks).max(axis=2, keepdims=True)).all()


def test_weights_that_had_4_bits_are_found_and_kept() -> None:
    weights = born_in_4_bits(6, 96)
    assert has_offsets(weights, 32)
    codes, scales = quantize_offsets(weights, 32)
    kept = np.linalg.norm(with_offsets(codes, scales, 96) - weights)
    symmetric = np.linalg.norm(decoded(*quantize_blocks(weights, 4, 32), 4, 96) - weights)
    assert kept < 0.05 * symmetric
    codes[2, 0, 3] ^= 1
    assert np.linalg.norm(with_offsets(codes, scales, 96) - weights) > 5 * kept


@pytest.mark.parametrize(
    "weights",
    [
        np.random.default_rng(3).standard_normal((6, 96)).astype(np.float32),
        born_in_4_bits(6, 96)[:, :80],
        np.zeros((6, 96), np.float32),
        np.full((6, 96), np.inf, np.float32),
    ],
    ids=["normal", "no whole blocks", "zeros", "infinite"],
)
def test_other_weights_have_no_offsets(weights: np.ndarray) -> None:
    assert not has_offsets(weights, 32)


HALVES = arrays.arrays(np.float32, (3, 4), elements=st.floats(-65504, 65504, width=32))


@given(HALVES)
def test_fp16_is_as_near_as_promised_or_refused(weights: np.ndarray) -> None:
    exact = weights.astype(np.float64)
    try:
        lost = np.linalg.norm(as_fp16(weights) - exact)
    except Unstorable:
        lost = np.linalg.norm(weights.astype(np.float16) - exact)
        assert lost > 2.0**-11 * np.linalg.norm(exact) * (1 - 1e-9)
    else:
        assert lost <= 2.0**-11 * np.linalg.norm(exact) * (1 + 1e-9)


@pytest.mark.parametrize("value", [65504.0, 65519.0, 2.0**-24, 2.0**-14, 1.0, 0.0, -65504.0])
def test_fp16_holds(value: float) -> None:
    assert as_fp16(np.array([[value, 0]], np.float32))[0, 0] == np.float16(value)


@pytest.mark.parametrize("value", [65520.0, -1e6, 3e38, 1e-8, -3e-5 / 1024, 1e-45, np.inf, -np.inf, np.nan])
def test_fp16_does_not_hold(value: float) -> None:
    with pytest.raises(Unstorable):
        as_fp16(np.array([[value, 0]], np.float32))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_packing_takes_what_is_not_finite(precision: str, value: float) -> None:
    storage, blocks = STORAGES[precision], np.ones((2, 4, 64), np.float32)
    for pack, shape in (
        (storage.pack_product, (8, 64)),
        (storage.pack_table, (8, 64)),
        (storage.pack_blocks, (2, 4, 64)),
    ):
        numbers = blocks.reshape(shape).copy()
        pack(numbers)
        numbers[(-1,) * numbers.ndim] = value
        with pytest.raises(Unstorable, match=r"^1 of \d+ values are NaN or infinite"):
            pack(numbers)


def test_a_channel_that_is_too_small_for_a_scale_becomes_zeros() -> None:
    weights = np.array([[1e-44, -1e-40], [0, 0], [1, -2]], np.float32)
    codes, scales = quantize_int8(weights, axis=1)
    assert codes.tolist() == [[0, 0], [0, 0], [64, -127]]
    assert scales[:, 0].tolist() == [1, 1, np.float32(2 / 127)]
    codes, scales = quantize_blocks(weights, 4, 2)
    assert codes[:2].tolist() == [[[8, 8]], [[8, 8]]]
    assert (scales[:2] == 1).all()
    with pytest.raises(Unstorable, match="needs a scale outside of float32's"):
        quantize_int8(weights[:2], axis=1)


def test_storing_names_the_tensor() -> None:
    with pytest.raises(ExportError, match=r"^my\.layer: 70000 is beyond 65504"), storing("my.layer"):
        as_fp16(np.array([7e4], np.float32))
