"""From the vectors of tokens to one vector per text: pooling, and the layers that may follow it.

Each computes what the sentence-transformers module of its name computes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import Module, Postprocess
from saten_runtime.errors import BundleError
from saten_runtime.records.files import open_regular
from saten_runtime.records.plain_text import one_line

__all__ = ["ACTIVATIONS", "POOLS", "STEPS", "Step", "pool", "read_steps"]

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """A layer after pooling. weight: (out, in) or (width,), bias: (out,), (width,) or empty; float32."""

    module: Module
    weight: FloatArray
    bias: FloatArray


def pool(hidden: npt.NDArray[Any], mask: Mask, how: Postprocess, steps: Sequence[Step] = ()) -> FloatArray:
    """One vector per text, (batch, width) float32.

    hidden: (batch, tokens, width), or (batch, width) when `how.pooling` is "none"; mask: (batch, tokens); steps: those
    of `how.modules`.

    Raises:
        BundleError: a pooling this version does not know, an output of other axes, or a step that does not fit.
    """
    if len(steps) != len(how.modules):
        raise BundleError(f"{len(how.modules)} layers follow the pooling, {len(steps)} are at hand")
    vectors = _pooled(hidden.astype(np.float32), mask, how.pooling)
    for step in steps:
        vectors = STEPS[step.module.kind](vectors, step)
    if how.normalize:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.asarray(vectors[:, : how.dimensions], np.float32)


def read_steps(bundle: Bundle) -> list[Step]:
    """The layers after pooling, with their numbers.

    Raises:
        BundleError: a kind or an activation that is not known here, or numbers that are no array of the right axes.
    """
    return [_step(bundle, module) for module in bundle.manifest.postprocess.modules]


def _pooled(hidden: FloatArray, mask: Mask, name: str) -> FloatArray:
    if name == "none" and hidden.ndim == 2:
        return hidden
    unknown = [each for each in name.split("+") if each not in POOLS]
    if unknown or hidden.ndim != 3:
        raise BundleError(
            f"pooling {name!r:.60} of an output with {hidden.ndim} axes; "
            f"there are none (2 axes), {', '.join(POOLS)} (3 axes)"
        )
    return np.concatenate([POOLS[each](hidden, mask) for each in name.split("+")], axis=1)


def _first(mask: Mask) -> npt.NDArray[np.int64]:
    """(batch,): the place of each row's first token that is no padding."""
    return np.asarray(np.argmax(mask != 0, axis=1), np.int64)


def _cls(hidden: FloatArray, mask: Mask) -> FloatArray:
    return hidden[np.arange(len(hidden)), _first(mask)]


def _last(hidden: FloatArray, mask: Mask) -> FloatArray:
    last = mask.shape[1] - 1 - _first(mask[:, ::-1])
    rows = np.arange(len(hidden))
    return np.asarray(hidden[rows, last] * (mask[rows, last] != 0)[:, None], np.float32)


def _max(hidden: FloatArray, mask: Mask) -> FloatArray:
    """A row that is all padding gives 0, as the mean does."""
    found = np.where(mask[:, :, None] != 0, hidden, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(np.any(mask, axis=1, keepdims=True), found, 0).astype(np.float32)


def _weighted(hidden: FloatArray, weights: FloatArray, power: float = 1.0) -> FloatArray:
    """Σ hidden · weights / (Σ weights)^power over the tokens; weights: (batch, tokens)."""
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    return np.asarray((hidden * weights[:, :, None]).sum(axis=1) / total**power, np.float32)


def _mean(hidden: FloatArray, mask: Mask) -> FloatArray:
    return _weighted(hidden, mask.astype(np.float32))


def _mean_sqrt(hidden: FloatArray, mask: Mask) -> FloatArray:
    return _weighted(hidden, mask.astype(np.float32), 0.5)


def _weighted_mean(hidden: FloatArray, mask: Mask) -> FloatArray:
    """Token k of a text counts k times, padding on the left not counted."""
    places = np.arange(1, mask.shape[1] + 1)[None] - _first(mask)[:, None]
    return _weighted(hidden, (mask * places).astype(np.float32))


POOLS: Mapping[str, Callable[[FloatArray, Mask], FloatArray]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""By sentence-transformers' names."""


def _identity(x: FloatArray) -> FloatArray:
    return x


def _relu(x: FloatArray) -> FloatArray:
    return np.maximum(x, 0)


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)


ACTIVATIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "identity": _identity,
    "tanh": np.tanh,
    "relu": _relu,
    "sigmoid": _sigmoid,
}
"""By the lower-case names of torch's classes."""


def _dense(vectors: FloatArray, step: Step) -> FloatArray:
    made = _fitting(vectors, step) @ step.weight.T  # (batch, out)
    return ACTIVATIONS[step.module.activation](made + step.bias if step.bias.size else made)


def _layer_norm(vectors: FloatArray, step: Step) -> FloatArray:
    centred = _fitting(vectors, step) - vectors.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(step.module.eps))
    made = centred / spread * step.weight
    return np.asarray(made + step.bias if step.bias.size else made, np.float32)


STEPS: Mapping[str, Callable[[FloatArray, Step], FloatArray]] = {"dense": _dense, "layer_norm": _layer_norm}
_AXES = {"dense": 2, "layer_norm": 1}  # of a step's weight


def _fitting(vectors: FloatArray, step: Step) -> FloatArray:
    if vectors.shape[1] != step.weight.shape[-1]:
        raise BundleError(
            f"{step.module.weight}: takes vectors of {step.weight.shape[-1]} numbers, found {vectors.shape[1]}; "
            "export the bundle again"
        )
    return vectors


def _step(bundle: Bundle, module: Module) -> Step:
    for what, name, known in (("kind", module.kind, STEPS), ("activation", module.activation, ACTIVATIONS)):
        if name not in known:
            raise BundleError(
                f"{bundle.path}: a layer after pooling of {what} {name!r:.60}; there are {', '.join(known)}"
            )
    weight = _array(bundle, module.weight)
    bias = _array(bundle, module.bias) if module.bias else np.zeros(0, np.float32)
    if weight.ndim != _AXES[module.kind] or bias.shape not in ((0,), weight.shape[:1]):
        raise BundleError(
            f"{bundle.path / module.weight}: a {module.kind} of {weight.shape} with a bias of {bias.shape}; "
            "export the bundle again"
        )
    return Step(module, weight, bias)


def _array(bundle: Bundle, name: str) -> FloatArray:
    """A float32 array of the bundle, whose header says as many bytes as the file has."""
    if name not in bundle.manifest.files:
        raise BundleError(f"{bundle.path}: the manifest lists no {name!r:.60}; export the bundle again")
    path = bundle.path / name
    try:
        with open_regular(path, BundleError) as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype != np.float32 or math.prod(shape) * 4 != os.fstat(file.fileno()).st_size - file.tell():
                raise ValueError(f"{dtype} {shape} is not what the file holds")
            file.seek(0)
            array: FloatArray = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, MemoryError) as cause:
        raise BundleError(f"{path}: no array ({one_line(cause)}); export the bundle again") from None
    if not np.isfinite(array).all():
        raise BundleError(f"{path}: holds NaN or infinity; export the bundle again")
    return array
