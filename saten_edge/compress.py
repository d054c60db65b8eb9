"""Replace a model's weight matrices by tensor train + sparse residual, within a byte budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saten_edge.checkpoint import attach_config
from saten_edge.decompose import Decomposition, Recipe, decompose
from saten_edge.models import LoadedModel
from saten_edge.modules import LayerSpec, build_module, replace_module
from saten_edge.residual import VALUE_BYTES, pattern_named
from saten_runtime.errors import BudgetError, ExportError, ShapeError, UsageError

__all__ = ["CompressedLayer", "compress", "compressible_layers", "dense_layers"]

# Below this many values a matrix stays dense: its factors and indices would save nothing worth a node.
SMALLEST_MATRIX = 4096
# A vocabulary table is compressed; positions and token types are lookups of a few short tables.
SMALLEST_TABLE_ROWS = 1024


@dataclass(frozen=True)
class CompressedLayer:
    """One row of the per-layer table. bytes: stored, indices included; error: relative, under the calibration metric."""

    name: str
    kind: str
    shape: tuple[int, int]
    ranks: list[int]
    nnz: int
    bytes: int
    dense_bytes: int
    error: float


def compressible_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Embedding]:
    """The linear layers and vocabulary tables of `model`, by name.

    Raises:
        ExportError: the model has no linear layer.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.numel() >= SMALLEST_MATRIX
    }
    if not linears:
        raise ExportError(
            f"{type(model).__name__} has no linear layer of at least {SMALLEST_MATRIX} weights: nothing to compress"
        )
    tables = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings >= SMALLEST_TABLE_ROWS
    }
    return {**tables, **linears}


def dense_layers(model: nn.Module) -> dict[str, int]:
    """Parameters that stay dense, with their bytes."""
    return {
        name: parameter.numel() * VALUE_BYTES
        for name, parameter in model.named_parameters()
        if ".cores." not in name and ".residual." not in name
    }


def compress(
    loaded: LoadedModel,
    budget: float,
    *,
    pattern: str = "grouped",
    group: int = 32,
    recipe: Recipe | None = None,
    moments: dict[str, Tensor] | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[CompressedLayer]:
    """Compress every linear layer and vocabulary table of `loaded` in place.

    budget: share of the dense fp32 bytes that each matrix may keep, indices included, 0 < budget < 1.
    group: outputs per residual block. moments: second moments of each layer's input by name (see
    `second_moments`). progress: called with a layer's name, the layers done, and their number.

    Raises:
        UsageError: a budget outside 0 … 1, or an unknown pattern.
        BudgetError: too little for a layer, which the message names.
        ExportError: the model has nothing to compress.
    """
    if not 0 < budget < 1:
        raise UsageError(f"--budget {budget:g}: expected a share of the dense bytes between 0 and 1")
    layers = compressible_layers(loaded.model)
    rows = []
    for done, (name, module) in enumerate(layers.items()):
        progress(name, done, len(layers))
        rows.append(_compress_layer(loaded.model, name, module, budget, pattern, group, recipe, moments))
    progress("", len(layers), len(layers))
    attach_config(loaded.model, loaded.source)
    return rows


def _compress_layer(
    model: nn.Module,
    name: str,
    module: nn.Linear | nn.Embedding,
    budget: float,
    pattern: str,
    group: int,
    recipe: Recipe | None,
    moments: dict[str, Tensor] | None,
) -> CompressedLayer:
    kind = "linear" if isinstance(module, nn.Linear) else "embedding"
    weight = module.weight.detach()
    matrix = (weight.T if kind == "linear" else weight).contiguous()  # (in, out)
    dense_bytes = matrix.numel() * VALUE_BYTES
    chosen = pattern_named(pattern, kind, group=group, width=matrix.shape[1])
    try:
        parts = decompose(matrix, int(dense_bytes * budget), chosen, recipe or Recipe(), (moments or {}).get(name))
    except (BudgetError, ShapeError) as cause:
        raise type(cause)(f"{name}: {cause}") from None
    spec = _spec(kind, matrix, parts, pattern, group, module)
    replacement: Any = build_module(name, spec, matrix.dtype)
    replacement.set_parts(parts.train, parts.residual)
    if isinstance(module, nn.Linear) and module.bias is not None:
        replacement.bias.data.copy_(module.bias.data)
    replace_module(model, name, replacement.to(weight.device))
    return CompressedLayer(
        name, kind, spec.shape, parts.train.ranks, parts.residual.nnz, parts.bytes, dense_bytes, parts.error
    )


def _spec(
    kind: str, matrix: Tensor, parts: Decomposition, pattern: str, group: int, module: nn.Linear | nn.Embedding
) -> LayerSpec:
    return LayerSpec(
        kind=kind,
        shape=(matrix.shape[0], matrix.shape[1]),
        cores=tuple((core.shape[0], core.shape[1], core.shape[2]) for core in parts.train.cores),
        inputs=parts.train.inputs,
        pattern=pattern,
        group=group,
        values=tuple(parts.residual.values.shape),
        indices={
            name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in parts.residual.indices.items()
        },
        bias=isinstance(module, nn.Linear) and module.bias is not None,
        padding_idx=module.padding_idx if isinstance(module, nn.Embedding) else None,
        error=parts.error,
    )
