"""Replace a model's weight matrices by tensor train + sparse residual, within a byte budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from saten_edge.checkpoints.architectures import architecture
from saten_edge.checkpoints.blockwise import BlockMoments
from saten_edge.checkpoints.checkpoint import attach_config, share_heads
from saten_edge.checkpoints.kept import Kept
from saten_edge.checkpoints.layers import LayerTask, decompose_layer, named, run_tasks
from saten_edge.checkpoints.mapped import compact, release
from saten_edge.checkpoints.models import LoadedModel
from saten_edge.checkpoints.modules import LayerSpec, build_module, replace_module, saten_layers
from saten_edge.checkpoints.selection import EVERYTHING, Selection
from saten_edge.checkpoints.stored import AS_CHECKPOINT, Stored
from saten_edge.decomposition.allocation import Measured, allocate, check_allocation, most_bytes
from saten_edge.decomposition.decompose import Decomposition, check_paid, check_sizes
from saten_edge.decomposition.fitting import described, fitting
from saten_edge.decomposition.prices import prices_of, rank_bytes
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import VALUE_BYTES, Residual, pattern_named
from saten_edge.decomposition.tt import TensorTrain
from saten_edge.engines import Pool
from saten_exporters.quantize import PRECISIONS
from saten_runtime.bundle.recipe import Option, Stage, options_of, versions_here
from saten_runtime.errors import CheckpointError, ExportError, UsageError

__all__ = [
    "CompressedLayer",
    "check_layers",
    "check_options",
    "compress",
    "compressible_layers",
    "kind_of",
    "layer_errors",
    "matrices",
    "refuse_compressed",
    "refuse_odd_numbers",
    "replace_layer",
    "tied_head",
]


NOTHING_KEPT = Kept()
# Rows of a tensor that are looked at together.
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class CompressedLayer:
    """One row of the per-layer table.

    bytes: stored, indices included. error: relative, see `Metric`. pattern: of the residual, as it fits the layer.
    error_after: relative to the dense weights, of what fine-tuning left; see `layer_errors`. solver: the row of
    `SOLVERS` that found the parts; None if imported.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    ranks: list[int]
    nnz: int
    bytes: int
    dense_bytes: int
    error: float
    pattern: str
    error_after: float | None = None
    solver: str | None = None


def compressible_layers(model: Any, selection: Selection = EVERYTHING) -> dict[str, nn.Module]:
    """The word and position tables and the linear layers of `model` that `selection` takes, by name.

    A head that is tied to a table is not a layer of its own: it follows the table.

    Raises:
        ExportError: there is none, or the model's family is not known.
        UsageError: the model is compressed already, or what shall be excluded is not there.
    """
    refuse_compressed(model)
    selection.refuse_idle(name for name, _ in model.named_modules())
    row = architecture(model.config.model_type)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    tables = {f"{prefix}{table}" for table in row.tables}
    head = tied_head(model)
    found = {
        name: module
        for name, module in model.named_modules()
        if (name in tables or (isinstance(module, (nn.Linear, Conv1D)) and name not in head))
        and selection.takes(name, module.weight)
    }
    if not found:
        raise ExportError(
            f"{type(model).__name__} has no weight matrix of at least {selection.smallest} values"
            f"{' that --include and --exclude leave' * (selection != Selection(selection.smallest))}: "
            "nothing to compress"
        )
    return dict(sorted(found.items(), key=lambda item: item[0] not in tables))


def refuse_compressed(model: Any) -> None:
    """Refuse a model with layers in parts.

    Raises:
        UsageError: it is one.
    """
    if saten_layers(model):
        raise UsageError("the model is compressed already; start from the dense one")


def tied_head(model: Any) -> dict[str, str]:
    """The head that shares a table's weight → that table; empty where there is none."""
    row = architecture(model.config.model_type)
    if row.tied_head is None or not hasattr(model, row.tied_head):
        return {}
    weight = getattr(model.get_submodule(row.tied_head), "weight", None)
    table = f"{model.base_model_prefix}.{row.tables[0]}"
    return {row.tied_head: table} if weight is model.get_submodule(table).weight else {}


def layer_errors(model: nn.Module, dense_model: nn.Module) -> dict[str, float]:
    """‖M − M̂‖_F / ‖M‖_F of every compressed layer against the dense model it was made from, by name.

    Without layers that FLAT made smaller before: no matrix of the dense model is of their shape.
    """
    errors = {}
    with torch.no_grad():
        for name, layer in saten_layers(model).items():
            exact, found = _matrix(dense_model.get_submodule(name)).float(), layer.matrix().float()
            if found.shape != exact.shape:
                continue
            norm = float(exact.norm())
            errors[name] = float((found - exact).norm()) / norm if norm else 0.0
    return errors


def compress(
    loaded: LoadedModel,
    budget: float | None,
    *,
    pattern: str = "grouped",
    group: int = 32,
    allocation: str = "uniform",
    recipe: Recipe | None = None,
    measured: Measured | None = None,
    selection: Selection = EVERYTHING,
    tables: float | None = None,
    stored: Stored = AS_CHECKPOINT,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    kept: Kept = NOTHING_KEPT,
    engine: Pool | None = None,
) -> list[CompressedLayer]:
    """Compress every weight matrix of `loaded` that `selection` takes, in place.

    budget: share of the dense fp32 bytes of all these matrices together that is kept, indices included,
    0 < budget < 1; None where eps and density of the recipe say every size. allocation: how it is shared out, see
    `ALLOCATIONS`. group: outputs per residual block. measured: what calibration found out; without it errors are
    judged by Frobenius' norm. tables: share of their bytes that lookup tables keep, within the budget; None lets them
    share as the layers do. pattern, group: of a layer that they do not fit, the nearest that does; see `fitting`.
    stored: how bytes are counted. progress: called with a layer's name, the layers done, and their number. kept: where
    the parts of each layer go, and come from if they are there. Layers are taken one at a time, each widened to float32
    and on a GPU where there is one; what stays dense is widened at the end. Of a model that is mapped from its files,
    and with a folder to keep layers in, no more than one layer is in memory. engine: decomposes the layers in this
    process's place, the largest first, but for moments that come in the order of the blocks; `kept` needs a folder.

    Raises:
        UsageError: a budget outside 0 … 1, or an unknown pattern.
        BudgetError: too little for a layer, which the message names.
        ExportError: the model has nothing to compress.
        CheckpointError: a weight, compressed or not, is NaN or infinite.
    """
    recipe, rows = recipe or Recipe(), []
    check_options(budget, pattern, group, allocation, recipe, calibrated=measured is not None, tables=tables)
    layers, head = compressible_layers(loaded.model, selection), tied_head(loaded.model)
    refuse_odd_numbers(loaded.model)
    known, found = measured.moments if measured else {}, matrices(layers)
    fixed = (_shares(tables, layers), _ranks(layers, stored.precision))
    sizes = {} if budget is None else stored.fitted(_allocated(allocation, found, budget, measured, *fixed))
    budgets = {name: sizes.get(name) for name in layers}
    tasks = _tasks(layers, budgets, pattern, group, recipe, stored.precision)
    if engine is not None:
        known = _run_by(engine, tasks, found, known, kept, progress)
    for done, task in enumerate(tasks):
        progress(task.name, done, len(tasks))
        module, matrix = layers.pop(task.name), found.pop(task.name)  # the weight is freed with its layer
        # Moments of layers that are kept, too: after this the model is no longer what it was.
        parts = kept.layer(task.name, partial(decompose_layer, task, matrix, known.get(task.name)))
        release(matrix)
        rows.append(replace_layer(loaded.model, task.name, module, parts, task.pattern, task.group))
    progress("", len(budgets), len(budgets))
    share_heads(loaded.model, {name: table for name, table in head.items() if table in budgets})
    _widen(loaded.model, kept)
    told = {"pattern": pattern, "group": group, "allocation": allocation, "tables": tables, "train": recipe.method}
    options = options_of(recipe, selection, **stored.options(budget)) | options_of(**told)
    attach_config(loaded.model, loaded.source, _stage(loaded, options, measured))
    return rows


def _stage(loaded: LoadedModel, options: Mapping[str, Option], measured: Measured | None) -> Stage:
    inputs = {"model": options_of(**loaded.source), **({"calibration": measured.texts} if measured else {})}
    return Stage("compress", options, inputs, versions=versions_here())


def _allocated(
    how: str,
    found: Mapping[str, Tensor],
    budget: float,
    measured: Measured | None,
    fixed: Mapping[str, float],
    ranks: Mapping[str, float],
) -> dict[str, int]:
    """Bytes by layer; the weights, all of which may have been read for that, are let go."""
    sizes = allocate(how, found, budget, measured, fixed, ranks)
    for matrix in found.values():
        release(matrix)
    return sizes


def _ranks(layers: Mapping[str, nn.Module], precision: str | None) -> dict[str, float]:
    """What one more rank of each layer's train takes."""
    shapes = {name: (matrix.shape[0], matrix.shape[1]) for name, matrix in matrices(layers).items()}
    return {name: rank_bytes(kind_of(layers[name]), shape, precision) for name, shape in shapes.items()}


def _tasks(
    layers: Mapping[str, nn.Module],
    budgets: Mapping[str, int | None],
    pattern: str,
    group: int,
    recipe: Recipe,
    precision: str | None,
) -> list[LayerTask]:
    found = {name: (kind_of(module), _matrix(module).shape[1]) for name, module in layers.items()}
    return [
        LayerTask(name, kind, budgets[name], *fitting(pattern, kind, group=group, width=width), recipe, precision)
        for name, (kind, width) in found.items()
    ]


def _run_by(
    engine: Pool,
    tasks: Sequence[LayerTask],
    matrices: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    kept: Kept,
    progress: Callable[[str, int, int], None],
) -> dict[str, Tensor]:
    """The largest first, as far as moments do not come in an order of their own. No moments are asked for later."""
    by_size = sorted(tasks, key=lambda task: -matrices[task.name].numel())
    ordered = tasks if isinstance(known, BlockMoments) else by_size
    run_tasks(engine, ordered, matrices, known.get, kept, progress)
    return {}


def _widen(model: nn.Module, kept: Kept) -> None:
    """Make float32 of what stays dense, one tensor after the other."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = kept.widened(name, tensor.data)


def _shares(tables: float | None, layers: Mapping[str, nn.Module]) -> dict[str, float]:
    """The shares that lookup tables have of their own.

    Raises:
        UsageError: one is asked for, and no table is compressed.
    """
    found = [name for name in layers if kind_of(layers[name]) == "embedding"]
    if tables is not None and not found:
        raise UsageError(f"--tables {tables:g}: no lookup table of this model is compressed; leave the option out")
    return {} if tables is None else dict.fromkeys(found, tables)


def check_options(
    budget: float | None,
    pattern: str,
    group: int,
    allocation: str,
    recipe: Recipe,
    *,
    calibrated: bool,
    tables: float | None = None,
    precision: str | None = None,
) -> None:
    """Refuse what `compress` cannot do with any model, before there is one; the same parameters.

    Raises:
        UsageError: naming the option.
    """
    if budget is not None and not 0 < budget < 1:
        raise UsageError(f"--budget {budget:g}: expected a share of the dense bytes between 0 and 1")
    if tables is not None and budget is None:
        raise UsageError(f"--tables {tables:g} is a part of --budget, which --eps and --density leave out; pass one")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: there are {', '.join(PRECISIONS)}")
    if precision is not None and recipe.method != "bond":
        raise UsageError(
            f"--precision {precision} counts a train as the two factors that a bundle stores, --train tt-svd and --eps "
            "count its cores; leave one of them out"
        )
    check_sizes(budget, pattern_named(pattern, "linear", group=group, width=group), recipe)
    check_allocation(allocation, calibrated=calibrated)


def check_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    budget: float | None,
    pattern: str,
    group: int,
    allocation: str,
    recipe: Recipe,
    tables: float | None,
    precision: str | None = None,
) -> None:
    """Refuse what `compress` cannot do with these layers, whatever a calibration finds; the same parameters.

    Raises:
        UsageError, BudgetError, CheckpointError: as `compress`.
    """
    refuse_odd_numbers(model)
    fixed = _shares(tables, layers)
    if budget is None:
        return
    found = matrices(layers)
    for name, size in most_bytes(allocation, found, budget, fixed).items():
        ins, outs = found[name].shape
        kind = kind_of(layers[name])
        fitted, blocks = fitting(pattern, kind, group=group, width=outs)
        how = pattern_named(fitted, kind, group=blocks, width=outs)
        with named(name):
            check_paid((ins, outs), size, how, recipe, prices_of(kind, (ins, outs), how, precision))


def matrices(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """M (in, out) of each layer, a view of its weight."""
    return {name: _matrix(module) for name, module in layers.items()}


def _matrix(module: Any) -> Tensor:
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, nn.Linear) else weight


def refuse_odd_numbers(model: nn.Module) -> None:
    """Refuse a damaged model, before the hours that its layers may take.

    Raises:
        CheckpointError: a parameter holds NaN or infinity; the message names it.
    """
    for name, parameter in model.named_parameters():
        finite = all(bool(torch.isfinite(piece).all()) for piece in torch.split(parameter.detach(), ROWS_AT_ONCE))
        release(parameter)
        if not finite:
            raise CheckpointError(f"{name}: holds values that are NaN or infinite; the model is damaged")


def replace_layer(
    model: nn.Module, name: str, module: Any, parts: Decomposition, pattern: str, group: int
) -> CompressedLayer:
    """Put a Saten layer with these parts where `model` has the dense layer `module`, whose bias it keeps."""
    weight = module.weight
    spec = _spec(module, parts, pattern, group)
    with torch.device("meta"):
        replacement: Any = build_module(name, spec, torch.float32)
    replacement.take_parts(*_compact(parts))
    if spec.bias:
        replacement.bias = nn.Parameter(module.bias.detach().float().clone())
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
        pattern=described(pattern, spec.kind, group),
        solver=parts.solver,
    )


def _compact(parts: Decomposition) -> tuple[TensorTrain, Residual]:
    """Train and residual, without the larger tensors that they may be parts of."""
    train = replace(parts.train, cores=tuple(compact(core) for core in parts.train.cores))
    indices = {name: compact(tensor) for name, tensor in parts.residual.indices.items()}
    return train, Residual(compact(parts.residual.values), indices)


def _spec(module: Any, parts: Decomposition, pattern: str, group: int) -> LayerSpec:
    return LayerSpec(
        kind=kind_of(module),
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
        bias=getattr(module, "bias", None) is not None,
        padding_idx=getattr(module, "padding_idx", None),
        error=parts.error,
    )


def kind_of(module: nn.Module) -> str:
    """The kind of a layer."""
    return "embedding" if isinstance(module, nn.Embedding) else "linear"
