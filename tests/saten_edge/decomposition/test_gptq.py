"""Rounding with error feedback, beside the plain recursion in float64 and beside rounding to the nearest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from saten_edge.decomposition.gptq import DAMPING, Feedback, round_matrix
from saten_exporters.quantize import PRECISIONS, in_blocks, quantize_blocks
from saten_exporters.two_bits import REACHES
from saten_runtime.errors import DataError

ROUNDED = ("int4", "int4-128", "int2")
# Sums of as many float32 products as a matrix has inputs; Σ⁻¹ loses digits to its condition, 10² at this damping.
CLOSE = 1e-3


def layer(inputs: int, outputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """M (in, out), and second moments of correlated inputs."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=random) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(4 * inputs, inputs, generator=random) @ mixed
    return torch.randn(inputs, outputs, generator=random), x.T @ x / len(x)


def cost(error: Tensor, moments: Tensor) -> float:
    """tr(Eᵀ Σ E), in float64."""
    return float((error.double() * (moments.double() @ error.double())).sum())


def nearest(matrix: Tensor, name: str) -> Tensor:
    how = PRECISIONS[name].for_inputs(len(matrix))
    return torch.from_numpy(in_blocks(np.ascontiguousarray(matrix.T.numpy()), how)).T


def least_squares(matrix: Tensor, found: Tensor, moments: Tensor, upto: int) -> Tensor:
    """What the inputs from `upto` on should be, where those before are as in `found`: the least cost, in float64."""
    damped = moments.double().clone()
    damped.diagonal().add_(DAMPING * (damped.diagonal() + damped.diagonal().mean()))
    error = (found - matrix)[:upto].double()
    own, others = damped[upto:, upto:], damped[upto:, :upto]
    return matrix[upto:].double() - torch.linalg.solve(own, others @ error)


@pytest.mark.parametrize("name", ROUNDED)
def test_feedback_costs_less_than_the_nearest(name):
    matrix, moments = layer(160, 24)
    found = round_matrix(matrix, Feedback(moments), PRECISIONS[name])
    assert cost(found - matrix, moments) < 0.8 * cost(nearest(matrix, name) - matrix, moments)


@pytest.mark.parametrize("name", ROUNDED)
def test_with_inputs_that_do_not_depend_on_each_other_no_output_is_worse(name):
    matrix, moments = layer(96, 8)[0], torch.eye(96)
    found, plain = round_matrix(matrix, Feedback(moments), PRECISIONS[name]), nearest(matrix, name)
    costs, plainly = ((each - matrix).square().sum(0) for each in (found, plain))
    assert (costs <= plainly * (1 + CLOSE)).all()


@pytest.mark.parametrize("name", ROUNDED)
def test_each_code_is_that_of_the_weight_that_makes_up_for_those_before_it(name):
    """The recursion solves, at each input, for all after it. Half a step is as far as rounding moves a weight."""
    matrix, moments = layer(96, 6)
    found = round_matrix(matrix, Feedback(moments), PRECISIONS[name])
    how = PRECISIONS[name].for_inputs(len(matrix))
    codes, scales = quantize_blocks(np.ascontiguousarray(found.T.numpy()), how.bits, how.block)
    lowest, highest = {4: (1, 15), 2: (0, 3)}[how.bits]
    flat, inside = codes.reshape(len(codes), -1), 0
    for place in range(1, len(matrix)):
        wanted, without = least_squares(matrix, found, moments, place)[0], matrix[place].double()
        steps = np.abs(scales[:, place // how.block])
        within = [
            _nearest_code(found[place], each, steps, flat[:, place], (lowest, highest)) for each in (wanted, without)
        ]
        assert within[0].all()
        inside += int((~within[1]).sum())
    assert inside > 0  # the twin: weights that nothing was made up for have other codes


def _nearest_code(
    found: Tensor, wanted: Tensor, steps: NDArray[np.float32], codes: NDArray[np.uint8], ends: tuple[int, int]
) -> NDArray[np.bool_]:
    """Whether each is at most half a step away, or at an end of the codes."""
    away = np.abs(found.double().numpy() - wanted.numpy())
    return (away <= steps * (0.5 + CLOSE)) | np.isin(codes, ends)


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("inputs", [1, 31, 32, 65, 200])
def test_a_bundle_stores_the_result_bit_for_bit(inputs, name):
    matrix, moments = layer(inputs, 9, seed=inputs)
    found = round_matrix(matrix, Feedback(moments), PRECISIONS[name])
    assert torch.equal(nearest(found, name), found)
    assert torch.equal(nearest(matrix, name), matrix) is (inputs == 1)  # one weight is always a whole step


@pytest.mark.parametrize("bits", [2, 4])
def test_blocks_that_are_on_no_grid_keep_their_codes(bits):
    """The rule of before: of four bits, the largest weight has code 7."""
    weights = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    codes, scales = quantize_blocks(weights, bits, 64)
    peak = np.abs(weights.reshape(64, -1, 64)).max(-1)
    if bits == 4:
        assert np.array_equal(scales, (peak / 7).astype(np.float32))
    else:
        assert np.isin(np.abs(scales), [(peak * np.float32(reach)).astype(np.float32) for reach in REACHES]).all()
    steps = np.rint(weights.reshape(64, -1, 64) / scales[..., None])
    lowest, highest = {4: (-7, 7), 2: (-2, 1)}[bits]
    assert np.array_equal(codes.astype(int) - (1 << bits - 1), np.clip(steps, lowest, highest))


@pytest.mark.parametrize("largest", range(1, 8))
def test_a_grid_with_a_small_largest_code_is_kept(largest):
    random = np.random.default_rng(largest)
    codes = random.integers(-largest, largest + 1, (5, 32))
    codes[:, 0] = largest
    weights = (codes * np.float32(0.375)).astype(np.float32)
    assert np.array_equal(in_blocks(weights, PRECISIONS["int4"]), weights)
    moved = weights.copy()
    moved[:, 1] += np.float32(0.1)
    assert not np.array_equal(in_blocks(moved, PRECISIONS["int4"]), moved)


def test_inputs_that_were_never_seen_and_zeros():
    matrix, moments = layer(64, 5)
    moments[:8], moments[:, :8] = 0, 0
    matrix[:, 0] = 0
    found = round_matrix(matrix, Feedback(moments), PRECISIONS["int4"])
    assert torch.isfinite(found).all()
    assert not found[:, 0].any()
    assert torch.isfinite(round_matrix(matrix, Feedback(torch.zeros(64, 64)), PRECISIONS["int2"])).all()


def test_moments_that_are_no_numbers_are_refused():
    moments = torch.eye(8)
    moments[0, 0] = torch.nan
    with pytest.raises(DataError, match="NaN or infinite; if the model multiplied in bf16, pass --fp32"):
        Feedback(moments)
