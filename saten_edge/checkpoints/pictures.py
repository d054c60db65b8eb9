"""The positions of a vision model, for pictures of the size that its processor makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from saten_edge.checkpoints.architectures import Architecture

__all__ = ["fit_positions"]


def fit_positions(model: Any, row: Architecture, processor: Any) -> None:
    """Interpolate the positions once, as a family that takes pictures of any size does it in every run.

    DINOv2 was trained on pictures of 518 × 518, and its processor makes 224 × 224. The model then computes the same,
    and its config says the size it takes. Pictures that are not square are left to the export, which refuses them.
    """
    if row.positions is None:
        return
    module: Any = model.base_model.get_submodule(row.positions)
    height, width = _made_by(processor, model.config)
    if height != width or [height, width] == _sides(model.config.image_size):
        return
    patches = (height // module.patch_embeddings.patch_size[0]) * (width // module.patch_embeddings.patch_size[1])
    read = torch.empty((1, 1 + patches, module.position_embeddings.shape[2]), device="meta")  # only its shape is read
    with torch.no_grad():
        module.position_embeddings = nn.Parameter(module.interpolate_pos_encoding(read, height, width).contiguous())
    model.config.image_size = height


def _made_by(processor: Any, config: Any) -> tuple[int, int]:
    """Height and width of what a processor makes of a square picture of as many channels as the model takes."""
    side = max(_sides(config.image_size))
    blank = np.zeros((side, side, config.num_channels), np.uint8)
    made = processor(images=[blank], input_data_format="channels_last", return_tensors="pt")
    height, width = made["pixel_values"].shape[-2:]
    return int(height), int(width)


def _sides(size: int | list[int] | tuple[int, ...]) -> list[int]:
    return list(size) if isinstance(size, (list, tuple)) else [size, size]
