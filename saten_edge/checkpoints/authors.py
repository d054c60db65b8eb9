"""Checkpoints made with the code of Saten's authors, and adapters, read into ours with their numbers kept.

A state dict of theirs holds for a compressed linear layer X

    X.factors.k   (r, n, r')   cores over in₁, in₂ …, out₁, out₂ …
    X.weight      (out, in)    the residual, and
    X.mask        (out, in)    0 or 1, where it counts; both are absent of a layer that is a train alone
    X.bias        (out,)       optional

and computes with `train.view(in, out)ᵀ + weight · mask`; or, of an SVD, `X.U` (in, r) and `X.V` (r, out), which are a
train of two cores. A layer without factors is an ordinary one; so is one that they froze, whose weight is train and
residual in one. Their `tm_params.pth` holds the compressed layers alone; the others are those of the base model.

After their LoRA run, names begin with `base_model.model.` and wrapped layers' go on with `base_layer.`; both are left
out. What an adapter adds to a layer is added to its weight, or to its train, which then has two cores.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from saten_edge.checkpoints.adapters import Adapter, adapter_config, split_adapters
from saten_edge.checkpoints.architectures import Architecture, architecture
from saten_edge.checkpoints.checkpoint import attach_config, find_layer, share_heads
from saten_edge.checkpoints.compress import CompressedLayer, matrices, replace_layer, tied_head
from saten_edge.checkpoints.guard import read_header
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.checkpoints.pickles import convert_pickle
from saten_edge.checkpoints.resolve import resolve_model
from saten_edge.decomposition.decompose import Decomposition
from saten_edge.decomposition.residual import VALUE_BYTES, NoResidual, Residual, Unstructured, pattern_named, scatter
from saten_edge.decomposition.tt import TensorTrain
from saten_runtime.bundle.recipe import Stage, options_of, versions_here
from saten_runtime.errors import CheckpointError, SatenError
from saten_runtime.records.files import digest_of, read_json, sha256_file
from saten_runtime.vocabulary.files import CONFIG_FILE
from saten_runtime.vocabulary.tasks import (
    HUB_TASKS,
    IMAGE_CLASSIFICATION,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
)

__all__ = ["best_pattern", "import_checkpoint", "read_state"]

# Patterns that a mask is tried on, each exactly; what none of them fits is unstructured.
GROUPS = (128, 64, 32, 16, 8)
BLOCKS = (4, 8, 16, 32)
PICKLES = (".bin", ".pt", ".pth")
# Of an SVD: (in, r) and (r, out); in `tm_params.pth` they are called u and v.
HALVES = ("U", "V", "u", "v")


@dataclass
class ForeignLayer:
    """What a state dict holds under one name, keys as after the name."""

    name: str
    factors: dict[int, Tensor] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)
    adapter: Adapter | None = None


@dataclass(frozen=True)
class State:
    """Tensors and adapters by their names; whole: whether they are all of a model, or what the base does not have."""

    tensors: dict[str, Tensor]
    adapters: dict[str, Adapter]
    whole: bool


def import_checkpoint(
    src: Path, base: str | Path, task: str | None = None
) -> tuple[LoadedModel, list[CompressedLayer]]:
    """Read a state dict of the authors' code into the architecture of `base`, whose tokenizer it takes.

    src: a file, or a folder of them; or an adapter, which gives a dense model. task: a name in `HUB_TASKS`; by default
    what the heads in the state dict say.
    The errors in the rows are relative to the weights of `base`.

    Raises:
        CheckpointError: a file that cannot be read, numbers that are NaN or infinite, or another layout.
        SatenError: whatever `load_model` says of `base`.
    """
    state = read_state(src)
    layers = _grouped(src, state.tensors)
    if not state.adapters and not any(layer.factors for layer in layers.values()):
        raise CheckpointError(
            f"{src}: no layer has factors; expected keys such as encoder.layer.0.….factors.0. If all its layers are "
            "frozen (freez), it is a dense model: load it with transformers, save_pretrained(FOLDER), and compress that"
        )
    for name, adapter in state.adapters.items():
        layers.setdefault(name, ForeignLayer(name)).adapter = adapter
    row = architecture(read_json(resolve_model(str(base)) / CONFIG_FILE, CheckpointError).get("model_type"))
    task, labels = (task, _labels(layers, row)) if task else _task(layers, row)
    loaded = load_model(base, task, num_labels=labels if task in HUB_TASKS and HUB_TASKS[task].labels else None)
    placed = _placed(src, loaded.model, layers, row)
    if state.whole:
        _refuse_missing(src, loaded.model, placed)
    rows = []
    for name, layer in placed.items():
        try:
            if layer.factors:
                rows.append(_put_compressed(loaded.model, name, layer))
            else:
                _put_dense(loaded.model.get_submodule(name), layer)
        except SatenError as cause:
            raise CheckpointError(f"{src}: {layer.name}: {cause}") from None
    if not rows:
        return loaded, rows
    share_heads(loaded.model, {})
    read = {"name": src.name, "sha256": digest_of([sha256_file(file) for file in _weight_files(src)])}
    inputs = {"model": options_of(**loaded.source), "state": options_of(**read)}
    stage = Stage("import", options_of(task=loaded.task), inputs, versions=versions_here())
    attach_config(loaded.model, {**loaded.source, "imported": src.name}, stage)
    return loaded, rows


def read_state(src: Path) -> State:
    """What a file or a folder of files holds, safetensors or pickled by torch: `checkpoints.pickles`.

    Raises:
        CheckpointError: there is none, or one cannot be read.
    """
    files = _weight_files(src)
    tensors: dict[str, Tensor] = {}
    whole = not (adapter_config(src) and files[0].stem == "adapter_model")
    for file in files:
        found, is_state = _read_file(file)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise CheckpointError(f"{file}: holds {twice[0]!r}, which another file of {src} holds too")
        tensors |= found
        whole = whole and is_state
    plain, adapters = split_adapters(src, _unwrapped(src, tensors))
    return State(plain, adapters, whole)


def _unwrapped(src: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names they have without what peft wraps around a model and around its layers."""
    kept = [key for key in state if ".original_module." not in key]
    plain = {
        re.sub(r"\.(base_layer|modules_to_save\.default)\.", ".", key.removeprefix("base_model.model.")): key
        for key in kept
    }
    if len(plain) < len(kept):
        raise CheckpointError(f"{src}: holds a layer both with base_layer in its name and without; save it again")
    return {name: state[key] for name, key in plain.items()}


def best_pattern(mask: Tensor) -> tuple[str, int, dict[str, Tensor]]:
    """The pattern that stores exactly the entries of a mask (in, out, bool) in the fewest bytes, on a linear layer.

    Returns its name, the outputs per block of a grouped one, and its index tensors.
    """
    shape, count = (mask.shape[0], mask.shape[1]), int(mask.sum())
    if not count:
        return "none", 1, NoResidual().select(mask, 0)
    choices = [("unstructured", 1, Unstructured().encode(mask))]
    for name, group in _structured(mask):
        pattern = pattern_named(name, "linear", group=group, width=shape[1])
        indices = pattern.select(mask.double(), count)
        positions = pattern.positions(indices, shape)
        if positions.numel() == count and bool(mask.reshape(-1)[positions].all()):
            choices.append((name, group, indices))
    return min(choices, key=lambda choice: _stored_bytes(choice, shape))


def _structured(mask: Tensor) -> Iterator[tuple[str, int]]:
    """The structured patterns a mask (in, out) may have: grouped by g outputs, and n of m inputs."""
    inputs, outputs = mask.shape
    yield from (("grouped", group) for group in GROUPS if outputs % group == 0)
    for block in BLOCKS:
        if inputs % block == 0:
            kept = int(mask.reshape(-1, block, outputs).sum(1).max())
            yield f"{kept}:{block}", 1


def _stored_bytes(choice: tuple[str, int, dict[str, Tensor]], shape: tuple[int, int]) -> int:
    name, group, indices = choice
    pattern = pattern_named(name, "linear", group=group, width=shape[1])
    return pattern.bytes(shape, pattern.positions(indices, shape).numel())


def _weight_files(src: Path) -> list[Path]:
    if src.is_file():
        return [src]
    files = sorted(src.glob("*.safetensors")) if src.is_dir() else []
    files = files or (sorted(file for file in src.iterdir() if file.suffix in PICKLES) if src.is_dir() else [])
    if not files:
        raise CheckpointError(
            f"{src}: no weights there; expected a .safetensors, .bin or .pt file, or a folder with one"
        )
    return files


def _read_file(file: Path) -> tuple[dict[str, Tensor], bool]:
    """Its tensors, and whether it is a state dict."""
    if file.suffix not in PICKLES:
        return _read_safetensors(file), True
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "state.safetensors"
        is_state = convert_pickle(file, target)
        return _read_safetensors(target), is_state


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as cause:
        raise CheckpointError(
            f"{file}: cannot be read as a state dict ({' '.join(str(cause).split())[:120]})"
        ) from None


def _grouped(src: Path, state: Mapping[str, Tensor]) -> dict[str, ForeignLayer]:
    """The tensors by the layer they belong to."""
    layers: dict[str, ForeignLayer] = {}
    for key, tensor in state.items():
        factor = re.fullmatch(r"(.+)\.factors\.([0-9]{1,2})", key)
        name, _, last = key.rpartition(".")
        layer = layers.setdefault(factor[1] if factor else name, ForeignLayer(factor[1] if factor else name))
        if factor:
            layer.factors[int(factor[2])] = tensor
        elif last in HALVES and tensor.ndim == 2:
            layer.factors[HALVES.index(last) % 2] = tensor[None] if last in "uU" else tensor[..., None]
        else:
            layer.rest[last] = tensor
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{src}: {key} holds values that are NaN or infinite")
    return layers


def _is_head(name: str, row: Architecture) -> bool:
    return name.startswith((*row.heads, *filter(None, [row.tied_head])))


def _labels(layers: Mapping[str, ForeignLayer], row: Architecture) -> int | None:
    """Outputs of the classifier in a state dict, the last matrix of its head."""
    last = [layer.rest["weight"] for layer in layers.values() if _is_head(layer.name, row) and "weight" in layer.rest]
    matrices_only = [weight for weight in last if weight.ndim == 2]
    return matrices_only[-1].shape[0] if matrices_only else None


def _task(layers: Mapping[str, ForeignLayer], row: Architecture) -> tuple[str | None, int | None]:
    """The task whose head is in a state dict, and its number of labels; None leaves both to the base model."""
    heads = [name for name in layers if _is_head(name, row) and "pooler" not in name]
    if any(name.startswith("qa_outputs") for name in heads):
        return QUESTION_ANSWERING.hub, None
    if row.tied_head is not None and row.tied_head in heads:
        return TEXT_GENERATION.hub, None
    if heads:
        classification = IMAGE_CLASSIFICATION if row.kind == "vision" else TEXT_CLASSIFICATION
        return classification.hub, _labels(layers, row)
    return None, None


def _placed(src: Path, model: Any, layers: Mapping[str, ForeignLayer], row: Architecture) -> dict[str, ForeignLayer]:
    """The layers by their names in `model`; a head or a pooler that it does not have is left out.

    Raises:
        CheckpointError: a layer of another architecture, or a head that only the base model ties.
    """
    placed = {}
    for layer in layers.values():
        name = find_layer(model, layer.name)
        if name is not None:
            placed[name] = layer
        elif not _is_head(layer.name, row) and not (row.pooler and "pooler" in layer.name.split(".")):
            raise CheckpointError(
                f"{src}: {layer.name!r} is not a layer of {type(model).__name__}; is --base its model?"
            )
    for head, table in tied_head(model).items():
        if head in placed and not placed[head].factors:
            both = [placed[name] for name in (head, table) if name in placed and placed[name].adapter is None]
            weights = [layer.rest["weight"] for layer in both if "weight" in layer.rest]
            if len(weights) < 2 or not torch.equal(*weights):
                raise CheckpointError(f"{src}: {head} and {table} differ, and --base has one weight for both")
    return placed


def _refuse_missing(src: Path, model: Any, placed: Mapping[str, ForeignLayer]) -> None:
    """Refuse a state dict that leaves a weight of the model as it is in the base model."""
    for key, _ in model.named_parameters():
        name, _, last = key.rpartition(".")
        layer = placed.get(name)
        if layer is None or (last not in layer.rest and not layer.factors):
            raise CheckpointError(f"{src}: lacks {key}, which {type(model).__name__} needs; is --base its model?")


def _put_dense(module: Any, layer: ForeignLayer) -> None:
    """Copy tensors into the parameters and buffers of a module, and add what an adapter adds to its weight."""
    tensors = layer.rest
    odd = sorted(tensors.keys() - module.state_dict().keys() - {"position_ids"})
    if odd:
        raise CheckpointError(f"{odd[0]} is not part of {type(module).__name__}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own = getattr(module, name)
            if own.shape != tensor.shape:
                raise CheckpointError(f"{name} of shape {tuple(tensor.shape)}, expected {tuple(own.shape)}")
            own.copy_(tensor)
        if layer.adapter is not None:
            _add(module, layer.adapter)


def _add(module: Any, adapter: Adapter) -> None:
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise CheckpointError(f"has an adapter, but is {type(module).__name__}; expected a linear layer")
    delta, weight = adapter.delta(), matrices({"": module})[""].T
    if delta.shape != weight.shape:
        raise CheckpointError(f"an adapter of shape {tuple(delta.shape)}, expected {tuple(weight.shape)}")
    weight.add_(delta)


def _put_compressed(model: Any, name: str, layer: ForeignLayer) -> CompressedLayer:
    """Put the Saten layer that computes the same in place of a dense one."""
    dense = model.get_submodule(name)
    if not isinstance(dense, (nn.Linear, Conv1D)):
        raise CheckpointError(f"has factors, but is {type(dense).__name__}; expected a linear layer")
    odd = sorted(layer.rest.keys() - {"weight", "mask", "bias"})
    if odd or ("weight" in layer.rest) != ("mask" in layer.rest):
        raise CheckpointError(f"has factors and {', '.join(sorted(layer.rest))}; expected weight and mask, or neither")
    exact = matrices({name: dense})[name].float()
    shape = (exact.shape[0], exact.shape[1])
    train = _train(layer.factors, shape)
    if layer.adapter is not None:
        train = _sum(train, layer.adapter)
    pattern, group, residual = _residual(layer.rest, shape)
    stored = pattern_named(pattern, "linear", group=group, width=shape[1])
    effective = train.dense() + scatter(residual.values, stored.positions(residual.indices, shape), shape)
    size = train.numel() * VALUE_BYTES + stored.bytes(shape, residual.nnz)
    norm = float(exact.norm())
    error = float((effective - exact).norm()) / norm if norm else 0.0
    _put_bias(dense, layer.rest.get("bias"))
    return replace_layer(model, name, dense, Decomposition(train, residual, size, error, 1.0), pattern, group)


def _train(factors: Mapping[int, Tensor], shape: tuple[int, int]) -> TensorTrain:
    """The factors as a tensor train of a matrix of this shape; nothing is multiplied before all sizes fit."""
    if sorted(factors) != list(range(len(factors))):
        raise CheckpointError(f"has factors {sorted(factors)}; expected 0 to {len(factors) - 1}")
    cores = tuple(factors[k].float().contiguous().clone() for k in range(len(factors)))
    sizes = [core.shape[1] if core.ndim == 3 else 0 for core in cores]
    for inputs in range(1, len(cores)):
        if (math.prod(sizes[:inputs]), math.prod(sizes[inputs:])) == shape:
            return TensorTrain(cores, inputs)
    raise CheckpointError(f"has factors over {sizes}, expected dims of {shape[0]} inputs, then of {shape[1]} outputs")


def _sum(train: TensorTrain, adapter: Adapter) -> TensorTrain:
    """The train of two cores that is a train and what an adapter adds to it."""
    delta = (adapter.b.shape[0], adapter.a.shape[1])
    if delta != train.shape[::-1]:
        raise CheckpointError(f"an adapter of shape {delta}, expected {train.shape[::-1]}")
    left, right = train.factors()
    return TensorTrain((torch.cat([left, adapter.a.T], 1)[None], torch.cat([right, adapter.b.T])[..., None]), 1)


def _residual(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> tuple[str, int, Residual]:
    """Pattern, outputs per block and residual of the masked weight (out, in)."""
    if "mask" not in tensors:
        return "none", 1, Residual(torch.zeros(0), {})
    weight, mask = tensors["weight"].float(), tensors["mask"].float()
    for name, tensor in (("weight", weight), ("mask", mask)):
        if tensor.shape != (shape[1], shape[0]):
            raise CheckpointError(f"{name} of shape {tuple(tensor.shape)}, expected {(shape[1], shape[0])}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise CheckpointError("mask holds other numbers than 0 and 1")
    name, group, indices = best_pattern(mask.T.bool())
    pattern = pattern_named(name, "linear", group=group, width=shape[1])
    return name, group, pattern.extract((weight * mask).T, indices)


def _put_bias(dense: Any, bias: Tensor | None) -> None:
    """The bias of a compressed layer; a layer without one where the base model has it adds zeros."""
    if bias is None and dense.bias is not None:
        bias = torch.zeros_like(dense.bias)
    if bias is not None:
        if dense.bias is None or dense.bias.shape != bias.shape:
            raise CheckpointError(f"bias of shape {tuple(bias.shape)}, which the base model's layer does not have")
        dense.bias.data.copy_(bias)
