"""What the exporter is handed: a model to trace, and the parts of its compressed layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from saten_runtime.bundle.manifest import Postprocess
from saten_runtime.bundle.recipe import Recipe
from saten_runtime.run.pooling import Step

__all__ = ["Exportable", "LayerParts"]


@dataclass(frozen=True)
class LayerParts:
    """The numbers of one compressed layer, y = x (A B + S).

    shape: (in, out). a: A (in, r), r = 0 where there is no train. b: B (r, out). ranks: of the tensor train that
    A B came from. layout: how values and indices hold S, a row of the table below; values are empty where there
    is no residual. cores: those over in and those over out, (r, n, r') each, as in
    `saten_edge.decomposition.tt`; none where only the factors are known.

    layout   values                    indices
    none     (0,)
    grouped  (groups, size, kept)      indices (groups, kept): the inputs that `size` consecutive outputs read
    csr      (nnz,)                    indptr (out + 1,), indices (nnz,): the inputs of each output, ascending
    n:m      (kept outputs, k)         outputs (kept outputs,), ascending; numbers (2,): n and m; codes, uint8: the
                                       place of each value among its m inputs, ascending, in ⌈log₂ m⌉ bits,
                                       the lowest first. k: n of every m inputs, and of the last if fewer
    rows     (kept, width)             rows (kept,): the rows of a table that have a residual
    ell      (rows, kept)              indices (rows, kept): the columns of each row of a table, ascending
    """

    name: str
    kind: str
    shape: tuple[int, int]
    ranks: list[int]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    layout: str
    values: NDArray[np.float32]
    indices: dict[str, NDArray[Any]] = field(default_factory=dict)
    cores: tuple[tuple[NDArray[np.float32], ...], tuple[NDArray[np.float32], ...]] = ((), ())


class Exportable(Protocol):
    """A loaded model, ready to be traced: who calls the exporter loads it.

    task: a name in `saten_runtime.vocabulary.tasks.HUB_TASKS`. tokenizer, processor: the one that prepares the model's
    inputs, None for the other.
    max_length: tokens that a text is cut to, or a decoder's whole context. pad_id: what fills up short rows of ids.
    """

    model: Any
    tokenizer: Any
    processor: Any
    max_length: int
    pad_id: int
    source: dict[str, str]
    task: str

    @property
    def postprocess(self) -> Postprocess:
        """What follows the model to make an embedding."""
        ...

    @property
    def steps(self) -> Sequence[Step]:
        """The layers of `postprocess.modules`, with their numbers."""
        ...

    @property
    def prompt(self) -> str:
        """What stands before every text."""
        ...

    @property
    def prompts(self) -> Mapping[str, str]:
        """What may stand there in its place, by name."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the model's files say, by their path in its folder; modules.json as class by folder."""
        ...

    @property
    def recipe(self) -> Recipe:
        """The stages that made it; none of a dense model."""
        ...

    def layer_parts(self) -> dict[str, LayerParts]:
        """The compressed layers by name; none for a dense model."""
        ...
