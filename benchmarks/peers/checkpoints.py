"""What a checkpoint holds, counted; and a rival that is made from one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any


def layers_of(checkpoint: Path) -> dict[str, Any]:
    """What `compress` says of a checkpoint's matrices; nothing of one without any."""
    path = checkpoint / "saten_layers.json"
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text("utf-8"))["layers"]
    return {
        "bytes": sum(row["bytes"] for row in rows),
        "dense_bytes": sum(row["dense_bytes"] for row in rows),
        "stored_bytes": stored_bytes(checkpoint),
        "error": math.sqrt(fmean(row["error"] ** 2 for row in rows)),
    }


def stored_bytes(checkpoint: Path) -> int:
    """Bytes of the compressed layers' tensors in the safetensors files: an oracle for the counted ones."""
    from safetensors import safe_open

    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = (file.get_tensor(name) for name in file.keys() if ".cores." in name or ".residual." in name)  # noqa: SIM118
            total += sum(tensor.nbytes for tensor in tensors)
    return total


def without_layers(teacher: Path, out: Path) -> None:
    """The rival: the dense model with every second of its blocks."""
    from torch.nn import ModuleList

    from saten_edge.checkpoints.models import load_model, save_model

    loaded = load_model(teacher)
    encoder = loaded.model.base_model.encoder
    encoder.layer = ModuleList(list(encoder.layer)[::2])
    loaded.model.config.num_hidden_layers = len(encoder.layer)
    save_model(loaded, out)


def bundle_bytes(checkpoint: Path, precision: str) -> int:
    """Bytes of everything constant in a model's bundle: what the exporter's forms pack, and the rest in float32."""
    from torch import nn

    from saten_edge.checkpoints.models import load_model
    from saten_exporters.forms import STORAGES, form_of
    from saten_exporters.quantize import SMALLEST_WEIGHT

    loaded, storage = load_model(checkpoint), STORAGES[precision]
    total = sum(
        array.nbytes
        for parts in loaded.layer_parts().values()
        for array in form_of(parts, precision).pack(parts).values()
    )
    packing = {nn.Linear: lambda array: storage.pack_product(array.T), nn.Embedding: storage.pack_whole}
    packs = {
        f"{name}.weight": packing[type(module)]
        for name, module in loaded.model.named_modules()
        if type(module) in packing and module.weight.numel() >= SMALLEST_WEIGHT
    }
    for name, tensor in loaded.model.named_parameters():
        if ".cores." in name or ".residual." in name:
            continue
        array = tensor.detach().float().numpy()
        total += sum(each.nbytes for each in packs[name](array)) if name in packs else array.nbytes
    return total
