"""What the parts of a matrix take, in bytes: as a checkpoint stores them, or as a bundle of some precision does."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from saten_edge.decomposition.residual import VALUE_BYTES, NoResidual, Pattern
from saten_edge.decomposition.shapes import Dims, full_train_numel
from saten_exporters.exportable import LayerParts
from saten_runtime.errors import UsageError

__all__ = [
    "Prices",
    "Time",
    "blank_parts",
    "bundle_prices",
    "check_target",
    "checkpoint_prices",
    "prices_of",
    "rank_bytes",
    "time_of",
]

Shape = tuple[int, int]
# Bond of a train, entries of a residual → predicted microseconds.
Time = Callable[[int, int], float]
# A lookup takes some hundredths of the time of a model, whatever it is made of.
TIMED = "linear"


@dataclass(frozen=True)
class Prices:
    """What the parts of one matrix take. train: bytes of a bond; residual: of a number of entries, places included.

    bonds: the largest bond. Nothing takes no bytes, and more never fewer.
    """

    train: Callable[[int], int]
    residual: Callable[[int], int]
    bonds: int

    def bond(self, size_bytes: int) -> int:
        """The largest bond whose train takes at most `size_bytes`; 0 if there is none."""
        return bisect.bisect_right(range(1, self.bonds + 1), size_bytes, key=self.train)


def checkpoint_prices(shape: Shape, dims: Dims, pattern: Pattern) -> Prices:
    """Of the cores over `dims`, whose inner ranks are whole, and of the residual of M (in, out), all in float32."""
    return Prices(
        train=lambda bond: full_train_numel(dims, bond) * VALUE_BYTES if bond else 0,
        residual=partial(pattern.bytes, shape),
        bonds=min(map(math.prod, dims)),
    )


def bundle_prices(kind: str, shape: Shape, pattern: Pattern, precision: str) -> Prices:
    """Of the two factors of the train and of the residual, as the exporter's forms store them at a precision.

    kind: "linear" or "embedding". shape: (in, out).
    """
    from saten_exporters.forms import RESIDUAL_FORMS  # imports onnx

    def residual(count: int) -> int:
        parts = blank_parts(kind, shape, 0, pattern, count)
        return RESIDUAL_FORMS[pattern.layout, kind, precision].stored_bytes(parts) if count else 0

    return Prices(partial(_factor_bytes, kind, shape, precision), residual, min(shape))


def prices_of(kind: str, shape: Shape, pattern: Pattern, precision: str | None) -> Prices | None:
    """Those of a bundle, or None, which counts as a checkpoint does."""
    return None if precision is None else bundle_prices(kind, shape, pattern, precision)


def time_of(kind: str, shape: Shape, pattern: Pattern, precision: str | None, target: str | None) -> Time | None:
    """What the parts of M (in, out) take in a bundle, in its fastest form that keeps them; None where time is nothing.

    precision: of the bundle; None is fp32. target: a row of `TARGETS`; None where time does not count.
    """
    if target is None or kind != TIMED:
        return None
    from saten_exporters.choice.cost import fastest_us  # imports onnx
    from saten_exporters.choice.settings import ExportSettings

    settings = ExportSettings(precision or "fp32", target)

    def time(bond: int, count: int) -> float:
        return fastest_us(blank_parts(kind, shape, bond, pattern, count), settings) if bond or count else 0.0

    return time


def check_target(target: str) -> None:
    """Refuse a target whose times nobody knows.

    Raises:
        UsageError: there is no such one.
    """
    from saten_exporters.choice.targets import TARGETS  # imports onnx

    if target not in TARGETS:
        raise UsageError(f"--target {target}: there are {', '.join(TARGETS)}")


def rank_bytes(kind: str, shape: Shape, precision: str | None) -> float:
    """What one more rank of M (in, out) takes: the mean of as many as take about the bytes of the dense matrix."""
    if precision is None:
        return sum(shape) * VALUE_BYTES
    most = max(1, math.prod(shape) // sum(shape))
    return _factor_bytes(kind, shape, precision, most) / most


def _factor_bytes(kind: str, shape: Shape, precision: str, bond: int) -> int:
    from saten_exporters.forms import TRAIN_FORMS  # imports onnx

    return TRAIN_FORMS[kind, precision].stored_bytes(blank_parts(kind, shape, bond, NoResidual(), 0)) if bond else 0


def blank_parts(kind: str, shape: Shape, bond: int, pattern: Pattern, count: int, name: str = "a layer") -> LayerParts:
    """What the exporter would be handed of a train of this bond and so many entries: shapes alone, and no numbers."""
    laid = pattern.laid_out(shape, count)
    return LayerParts(
        name=name,
        kind=kind,
        shape=shape,
        ranks=[1, bond, 1],
        a=_blank((shape[0], bond)),
        b=_blank((bond, shape[1])),
        layout=pattern.layout if count else "none",
        values=_blank(laid.values if count else (0,)),
        indices={key: _blank(size, str(dtype).removeprefix("torch.")) for key, (dtype, size) in laid.indices.items()},
    )


def _blank(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """Zeros that take no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)
