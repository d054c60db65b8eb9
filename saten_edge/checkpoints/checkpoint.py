"""Saten checkpoints are Hugging Face folders.

`config.json` carries `quantization_config: {"quant_method": "saten", …}` with one `LayerSpec` per compressed layer and
the sha256 of every file; `model.safetensors`, or its shards, hold `<layer>.cores.{k}`,
`<layer>.residual.{values,indices,indptr}` and everything dense. Importing this module registers the method
with transformers, so that a plain `AutoModel.from_pretrained(folder)` builds the Saten layers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from saten_edge.checkpoints.architectures import architecture
from saten_edge.checkpoints.guard import files_read, read_header, refuse_bomb
from saten_edge.checkpoints.modules import (
    LayerSpec,
    SatenHead,
    SatenModule,
    build_module,
    replace_module,
    saten_layers,
    scale_of,
)
from saten_edge.checkpoints.sizes import BlockSizes, apply_sizes, sizes_from
from saten_edge.decomposition.residual import VALUE_BYTES
from saten_edge.decomposition.tt import contraction_peak
from saten_runtime.bundle.recipe import UNRECORDED, Recipe, Stage
from saten_runtime.errors import CheckpointError, SatenError, ShapeError
from saten_runtime.records.files import digest_of, read_json, read_regular_json, sha256_file, write_json
from saten_runtime.vocabulary.files import CONFIG_FILE

__all__ = [
    "FORMAT_VERSION",
    "SatenConfig",
    "SatenQuantizer",
    "add_stage",
    "attach_config",
    "find_layer",
    "recipe_of",
    "seal",
    "share_heads",
    "verify_files",
    "verify_folder",
]

FORMAT_VERSION = 2
# A spec from a file may ask for this many values per dense value, far above what any compression gives.
MOST_VALUES = 4
# The matrix that the parts of a layer stand for; no layer of a model for a small machine comes near it.
MOST_DENSE_BYTES = 16 << 30
DENSE_KINDS: dict[type[nn.Module], str] = {nn.Linear: "linear", Conv1D: "linear", nn.Embedding: "embedding"}


@register_quantization_config("saten")
class SatenConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What `config.json` says of a compressed model.

    layers: name → `LayerSpec` as JSON. source: what was compressed (model, sha256). heads: output layer → the table
    whose parts it shares. files: weight file → sha256, written by `seal`; a model in memory has none.
    recipe: a `Recipe` as JSON; None where the version that wrote it had none. sizes: block → `BlockSizes` as JSON, of
    those that are smaller than the rest of the config says.

    Raises:
        CheckpointError: written by another version, or with a recipe that is none.
    """

    def __init__(
        self,
        layers: dict[str, Any],
        source: dict[str, str],
        version: int = FORMAT_VERSION,
        heads: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        recipe: list[dict[str, Any]] | None = None,
        sizes: dict[str, dict[str, int]] | None = None,
        **_: Any,
    ) -> None:
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"config.json: saten format version {version!r}, this saten-edge reads {FORMAT_VERSION}; "
                "install the version that wrote it"
            )
        self.quant_method = "saten"
        self.version = version
        self.source = source
        self.layers = layers
        self.heads = heads or {}
        self.files = files or {}
        self.recipe = recipe
        self.sizes = sizes or {}
        self.stages()

    def stages(self) -> Recipe:
        """The stages that made the model.

        Raises:
            CheckpointError: `recipe` is none.
        """
        if self.recipe is None:
            return Recipe((UNRECORDED,))
        return Recipe.from_json(self.recipe, f"{CONFIG_FILE}: recipe", CheckpointError)

    def specs(self) -> dict[str, LayerSpec]:
        """The layers by name.

        Raises:
            CheckpointError: an entry that is no spec.
        """
        specs = {}
        for name, data in self.layers.items():
            try:
                specs[name] = LayerSpec.from_json(data)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise CheckpointError(
                    f"config.json: layer {name!r:.80} is not described as saten-edge does it"
                ) from None
        return specs


@register_quantizer("saten")
class SatenQuantizer(HfQuantizer):  # type: ignore[misc]
    """Builds the Saten layers before transformers loads the weights, and checks what it loaded."""

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **_: Any
    ) -> nn.Module:
        config: SatenConfig = self.quantization_config
        files = [Path(file) for file in checkpoint_files or ()]
        verify_files(config.files, files)
        config.files = {}  # true of those files only; a model saved from here on has others
        apply_sizes(model, sizes_from(config.sizes, model))
        for saved_name, spec in config.specs().items():
            name = _name_in(model, saved_name)
            if name is not None:
                _replace_by(model, name, spec)
        heads = {head: _name_in(model, table) for head, table in config.heads.items() if _has(model, head)}
        share_heads(model, {head: table for head, table in heads.items() if table is not None})
        refuse_bomb(CONFIG_FILE, model, {name: entry for file in files for name, entry in read_header(file).items()})
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, layer in saten_layers(model).items():
            _check_numbers(name, layer)
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Saten layers are saved as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Cores and values are ordinary parameters."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Nothing is rounded, so `Trainer` may train the whole model, not only adapters beside it."""
        return True


def attach_config(
    model: nn.Module, source: dict[str, str], stage: Stage, sizes: Mapping[str, BlockSizes] | None = None
) -> None:
    """Make `model.save_pretrained` write the Saten layers' specs, the sizes of blocks, and one more stage.

    sizes: None leaves those that the model has.
    """
    layers = {name: module.spec.to_json() for name, module in saten_layers(model).items()}
    heads = {name: module.table.layer_name for name, module in model.named_modules() if isinstance(module, SatenHead)}
    holder: Any = model
    before = getattr(holder.config, "quantization_config", None)
    kept = before.sizes if isinstance(before, SatenConfig) else {}
    data = kept if sizes is None else {name: own.to_json() for name, own in sizes.items()}
    recipe = recipe_of(model).then(stage).to_json()
    config = SatenConfig(layers, source, heads=heads, recipe=recipe, sizes=data)
    holder.config.quantization_config = config
    holder.hf_quantizer = SatenQuantizer(config)


def recipe_of(model: Any) -> Recipe:
    """The stages that made a model; none of a dense one."""
    config = getattr(model.config, "quantization_config", None)
    return config.stages() if isinstance(config, SatenConfig) else Recipe()


def add_stage(model: Any, stage: Stage) -> None:
    """Note one more stage; a dense model has no place for it."""
    config = getattr(model.config, "quantization_config", None)
    if isinstance(config, SatenConfig):
        config.recipe = config.stages().then(stage).to_json()


def share_heads(model: Any, heads: Mapping[str, str]) -> None:
    """Put a `SatenHead` at each head, with the parts of its table, which is a Saten embedding already.

    transformers ties weights by the names in `_tied_weights_keys`; those that are gone are taken off the list.
    """
    for head, table in heads.items():
        bias = getattr(model.get_submodule(head), "bias", None)
        replace_module(model, head, SatenHead(model.get_submodule(table), bias))
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ties = model._tied_weights_keys or {}
    model._tied_weights_keys = {target: source for target, source in ties.items() if {target, source} <= names}
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def seal(folder: Path) -> None:
    """Write the sha256 of every file of a saved Saten checkpoint into its config, and that of the config.

    To be called when everything is written.
    """
    path = folder / CONFIG_FILE
    config = read_json(path, CheckpointError)
    others = (file for file in files_read(folder) if file.is_file() and file != path)
    digests = {file.relative_to(folder).as_posix(): sha256_file(file) for file in others}
    config["quantization_config"]["files"] = digests
    digests[CONFIG_FILE] = digest_of(config)
    write_json(path, config)


def verify_folder(folder: Path, tensors: Collection[str]) -> None:
    """Compare config, tokenizer and side files with the digests in the config; one that transformers wrote has none.

    tensors: in the weight files, which `verify_files` compares when they are loaded.

    Raises:
        CheckpointError: one was changed since it was sealed, or the config does not say that the tensors are a Saten
            model's.
    """
    path = folder / CONFIG_FILE
    config = read_regular_json(path.resolve(), CheckpointError)
    ours = config.get("quantization_config")
    if not isinstance(ours, dict) or ours.get("quant_method") != "saten":
        if any(".cores." in name for name in tensors):
            raise CheckpointError(f"{path}: does not describe the compressed layers in the weight files; it is damaged")
        return
    odd = sorted(ours.keys() - {"quant_method", "version", "source", "layers", "heads", "files", "recipe", "sizes"})
    digests = ours.get("files") or {}
    if odd or not isinstance(digests, dict):
        raise CheckpointError(f"{path}: {odd[0] if odd else 'files'!r:.80} in quantization_config is unknown")
    if CONFIG_FILE in digests and digests.pop(CONFIG_FILE) != digest_of(config):
        raise CheckpointError(
            f"{path}: does not match its seal; it is damaged or was edited; if you edited it, "
            f"remove {CONFIG_FILE} from the files in its quantization_config"
        )
    there = {file.relative_to(folder).as_posix(): file for file in files_read(folder) if file.is_file()}
    for name in sorted(digests.keys() - _weight_names(digests)):
        if name not in there:
            raise CheckpointError(f"{path}: lists {name!r:.80}, which is not a file of the folder; download it again")
        if sha256_file(there[name]) != digests[name]:
            raise CheckpointError(
                f"{there[name]}: its sha256 is not the one in {CONFIG_FILE}; it is damaged or was edited; if you "
                f"edited it, remove it and {CONFIG_FILE} from the files in quantization_config"
            )


def verify_files(digests: Mapping[str, str], files: list[Path]) -> None:
    """Compare weight files with the digests of a config; without any there is nothing to compare.

    Raises:
        CheckpointError: a file differs, or there are others than those listed.
    """
    listed = _weight_names(digests)
    if not listed:
        return
    found = {file.name for file in files}
    if found != listed:
        raise CheckpointError(
            f"config.json: lists the weight files {', '.join(sorted(listed))}, found {', '.join(sorted(found))}"
        )
    for file in files:
        if sha256_file(file) != digests[file.name]:
            raise CheckpointError(f"{file}: its sha256 is not the one in config.json; it is damaged, download it again")


def _weight_names(digests: Mapping[str, str]) -> set[str]:
    """Those of the model itself; what is in a folder below belongs to a module behind it."""
    return {name for name in digests if name.endswith(".safetensors") and "/" not in name}


def find_layer(model: Any, saved_name: str) -> str | None:
    """The name in `model` of a layer saved from it, from its base model, or from a model around it; None if none."""
    prefix = f"{model.base_model_prefix}."
    names = (saved_name, prefix + saved_name, saved_name.removeprefix(prefix))
    return next((name for name in names if _has(model, name)), None)


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _name_in(model: Any, saved_name: str) -> str | None:
    """The name of a saved layer in `model`; None for a part of a head that this model does not have.

    Raises:
        CheckpointError: the architecture has no such layer.
    """
    name = find_layer(model, saved_name)
    if name is not None:
        return name
    row = architecture(model.config.model_type)
    if saved_name.startswith((*row.heads, *filter(None, [row.tied_head]))):
        return None
    raise CheckpointError(
        f"config.json: compressed layer {saved_name!r:.80} is not a layer of {type(model).__name__}; "
        "was the checkpoint made for another architecture?"
    )


def _replace_by(model: nn.Module, name: str, spec: LayerSpec) -> None:
    """Put an empty Saten layer where the dense `name` is, if that is what the spec describes.

    Raises:
        CheckpointError: it is not. Nothing has been allocated then.
    """
    dense = model.get_submodule(name)
    scaled = isinstance(dense, nn.Embedding) and scale_of(dense) != 1.0
    kind = DENSE_KINDS.get(nn.Embedding if scaled else type(dense))
    if spec.kind != kind or spec.shape != _shape(dense) or spec.bias != (getattr(dense, "bias", None) is not None):
        raise CheckpointError(
            f"config.json: layer {name!r} is described as {spec.kind} {spec.shape}{' with bias' * spec.bias}, "
            f"expected {kind or type(dense).__name__} as config.json's sizes make it"
        )
    if math.prod(spec.shape) * VALUE_BYTES > MOST_DENSE_BYTES:
        raise CheckpointError(f"config.json: layer {name!r} describes a matrix {spec.shape}, more than 16 GiB")
    try:
        with torch.device("meta"):
            module = build_module(name, spec, torch.get_default_dtype())
        if module.train_part().shape != spec.shape:
            raise ShapeError(f"cores of a matrix {module.train_part().shape}, expected {spec.shape}")
    except (SatenError, RuntimeError) as cause:
        raise CheckpointError(f"config.json: layer {name!r}: {' '.join(str(cause).split())[:200]}") from None
    if sum(tensor.numel() for tensor in module.state_dict().values()) > MOST_VALUES * math.prod(spec.shape):
        raise CheckpointError(f"config.json: layer {name!r} holds more values than {MOST_VALUES} dense ones would")
    peak = contraction_peak(module.train_part())
    if peak > MOST_VALUES * math.prod(spec.shape):
        raise CheckpointError(
            f"config.json: layer {name!r} multiplies its cores through {peak} values, more than {MOST_VALUES} dense "
            "layers have"
        )
    replace_module(model, name, module)


def _shape(dense: Any) -> tuple[int, int]:
    """(in, out) of a dense layer's matrix."""
    shape = tuple(dense.weight.shape)
    return (shape[1], shape[0]) if isinstance(dense, nn.Linear) else (shape[0], shape[1])


def _check_numbers(name: str, layer: SatenModule) -> None:
    """Refuse what only the weight files can have got wrong; layers left on the disk are not looked at.

    Raises:
        CheckpointError: a tensor that is missing, indices that name no entry, or a value that is NaN or infinite.
    """
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    if any(tensor.is_meta for tensor in tensors.values()):
        return
    for key, tensor in tensors.items():
        if not getattr(tensor, "_is_hf_initialized", False):  # transformers marks what it read from a file
            raise CheckpointError(f"{name}.{key} is missing from its safetensors files; download it again")
    layer.residual.check(f"model.safetensors: {name}.residual")
    for key, parameter in layer.named_parameters():
        if parameter.dtype != layer.residual.values.dtype:
            raise CheckpointError(f"model.safetensors: {name}.{key} is of type {parameter.dtype}, its layer is not")
        bad = (~torch.isfinite(parameter)).reshape(-1).nonzero()
        if len(bad):
            raise CheckpointError(
                f"model.safetensors: {name}.{key} holds {len(bad)} values that are NaN or infinite, the first at "
                f"{int(bad[0])}"
            )
