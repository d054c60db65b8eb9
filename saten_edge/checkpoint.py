"""Saten checkpoints are Hugging Face folders.

`config.json` carries `quantization_config: {"quant_method": "saten", …}` with one `LayerSpec` per compressed layer,
`model.safetensors` holds `<layer>.cores.{k}`, `<layer>.residual.{values,indices,indptr}` and everything dense.
Importing this module registers the method with transformers, so that a plain
`AutoModel.from_pretrained(folder)` builds the Saten layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from saten_edge.modules import LayerSpec, build_module, replace_module, saten_layers
from saten_runtime.errors import CheckpointError, UsageError

__all__ = ["FORMAT_VERSION", "SatenConfig", "SatenQuantizer", "attach_config"]

FORMAT_VERSION = 1


@register_quantization_config("saten")
class SatenConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What `config.json` says of a compressed model.

    layers: name → `LayerSpec` as JSON. source: what was compressed (model, sha256).

    Raises:
        CheckpointError: written by a newer version.
    """

    def __init__(self, layers: dict[str, Any], source: dict[str, str], version: int = FORMAT_VERSION, **_: Any) -> None:
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"config.json: saten format version {version!r}, this saten-edge reads {FORMAT_VERSION}; "
                "install the version that wrote it"
            )
        self.quant_method = "saten"
        self.version = version
        self.source = source
        self.layers = layers

    def specs(self) -> dict[str, LayerSpec]:
        """The layers by name."""
        return {name: LayerSpec.from_json(data) for name, data in self.layers.items()}


@register_quantizer("saten")
class SatenQuantizer(HfQuantizer):  # type: ignore[misc]
    """Builds the Saten layers before transformers loads the weights."""

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, spec in self.quantization_config.specs().items():
            try:
                model.get_submodule(name)
            except AttributeError:
                raise CheckpointError(
                    f"config.json: compressed layer {name!r} is none of {type(model).__name__}'s layers; "
                    "was the checkpoint made for another architecture?"
                ) from None
            try:
                with torch.device("meta"):
                    module = build_module(name, spec, torch.get_default_dtype())
            except UsageError as cause:
                raise CheckpointError(f"config.json: layer {name!r}: {cause}") from None
            replace_module(model, name, module)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, layer in saten_layers(model).items():
            layer.residual.check(f"model.safetensors: {name}.residual")
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Saten layers are saved as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Cores and values are ordinary parameters."""
        return True


def attach_config(model: nn.Module, source: dict[str, str]) -> None:
    """Make `model.save_pretrained` write the Saten layers' specs."""
    layers = {name: module.spec.to_json() for name, module in saten_layers(model).items()}
    config = SatenConfig(layers, source)
    holder: Any = model
    holder.config.quantization_config = config
    holder.hf_quantizer = SatenQuantizer(config)
