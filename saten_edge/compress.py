"""Replace a model's weight matrices by tensor train + sparse residual, within a byte budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saten_edge.allocation import Measured, allocate
from saten_edge.checkpoint import attach_config
from saten_edge.decompose import Decomposition, Recipe, decompose
from saten_edge.models import LoadedModel
from saten_edge.modules import LayerSpec, build_module, replace_module
from saten_edge.residual import VALUE_BYTES, pattern_named
from saten_runtime.errors import ExportError, SatenError, UsageError

__all__ = ["CompressedLayer", "compress", "compressible_layers", "dense_layers", "matrices"]

# Below this many values a matrix stays dense: its factors and indices would save nothing worth a node.
SMALLEST_MATRIX = 4096
# A vocabulary table is compressed; positions and token types are lookups of a few short tables.
SMALLEST_TABLE_ROWS = 1024


@dataclass(frozen=True)
class CompressedLayer:
    """One row of the per-layer table. bytes: stored, indices included; error: relative, see `Metric`."""

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
    allocation: str = "uniform",
    recipe: Recipe | None = None,
    measured: Measured | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[CompressedLayer]:
    """Compress every linear layer and vocabulary table of `loaded` in place.

    budget: share of the dense fp32 bytes of all these matrices together that is kept, indices included,
    0 < budget < 1. allocation: how it is shared out, see `ALLOCATIONS`. group: outputs per residual
    block. measured: what calibration found out; without it errors are judged by Frobenius' norm.
    progress: called with a layer's name, the layers done, and their number.

    Raises:
        UsageError: a budget outside 0 … 1, or an unknown pattern.
        BudgetError: too little for a layer, which the message names.
        ExportError: the model has nothing to compress.
    """
    if not 0 < budget < 1:
        raise UsageError(f"--budget {budget:g}: expected a share of the dense bytes between 0 and 1")
    layers = compressible_layers(loaded.model)
    known = measured.moments if measured else {}
    budgets = allocate(allocation, matrices(layers), budget, measured)
    rows = []
    for done, (name, module) in enumerate(layers.items()):
        progress(name, done, len(layers))
        parts = _decompose_layer(name, module, budgets[name], pattern, group, recipe or Recipe(), known.get(name))
        rows.append(_replace_layer(loaded.model, name, module, parts, pattern, group))
    progress("", len(layers), len(layers))
    attach_config(loaded.model, loaded.source)
    return rows


def matrices(layers: Mapping[str, nn.Linear | nn.Embedding]) -> dict[str, Tensor]:
    """M (in, out) of each layer, a view of its weight."""
    return {name: _matrix(module) for name, module in layers.items()}


def _matrix(module: nn.Linear | nn.Embedding) -> Tensor:
    weight = module.weight.detach()
    return weight.T if isinstance(module, nn.Linear) else weight


def _decompose_layer(
    name: str,
    module: nn.Linear | nn.Embedding,
    budget_bytes: int,
    pattern: str,
    group: int,
    recipe: Recipe,
    moments: Tensor | None,
) -> Decomposition:
    matrix = _matrix(module).contiguous()
    kind = "linear" if isinstance(module, nn.Linear) else "embedding"
    chosen = pattern_named(pattern, kind, group=group, width=matrix.shape[1])
    try:
        return decompose(matrix, budget_bytes, chosen, recipe, moments)
    except SatenError as cause:
        raise type(cause)(f"{name}: {cause}") from None


def _replace_layer(
    model: nn.Module, name: str, module: nn.Linear | nn.Embedding, parts: Decomposition, pattern: str, group: int
) -> CompressedLayer:
    weight = module.weight
    spec = _spec(module, parts, pattern, group)
    replacement: Any = build_module(name, spec, weight.dtype)
    replacement.set_parts(parts.train, parts.residual)
    if isinstance(module, nn.Linear) and module.bias is not None:
        replacement.bias.data.copy_(module.bias.data)
    replace_module(model, name, replacement.to(weight.device))
    return CompressedLayer(
        name=name,
        kind=spec.kind,
        shape=spec.shape,
        ranks=parts.train.ranks,
        nnz=parts.residual.nnz,
        bytes=parts.bytes,
        dense_bytes=weight.numel() * VALUE_BYTES,
        error=parts.error,
    )


def _spec(module: nn.Linear | nn.Embedding, parts: Decomposition, pattern: str, group: int) -> LayerSpec:
    return LayerSpec(
        kind="linear" if isinstance(module, nn.Linear) else "embedding",
        shape=parts.train.shape,
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
