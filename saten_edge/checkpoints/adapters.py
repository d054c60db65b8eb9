"""LoRA adapters as peft writes them: what is added to a weight W (out, in) is scale · B A (Hu et al., ICLR 2022).

A state dict, or the file of an adapter, holds for a layer X

    X.lora_A.weight  (r, in)      also as X.lora_A.default.weight
    X.lora_B.weight  (out, r)

and the scale, lora_alpha / r, stands in `adapter_config.json` alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from saten_runtime.errors import CheckpointError
from saten_runtime.records.files import read_json

__all__ = ["ADAPTER_FILE", "Adapter", "adapter_config", "split_adapters"]

ADAPTER_FILE = "adapter_config.json"

_PART = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
# Settings that add something else than scale · B A, or not to all tokens, or to other layers, where they say anything.
_UNREAD = (
    "use_dora",
    "use_qalora",
    "alpha_pattern",
    "alora_invocation_tokens",
    "layer_replication",
    "trainable_token_indices",
    "lora_bias",
)
# `init_lora_weights` that leave the base's weights alone. PiSSA, OLoRA, CorDA and LoftQ take a part off them: such an
# adapter belongs on what they leave, not on the base.
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """a: (r, in), b: (out, r), both float32; the scale is in `b` already."""

    a: Tensor
    b: Tensor

    def delta(self) -> Tensor:
        """What is added to the weight, (out, in)."""
        return self.b @ self.a


def adapter_config(src: Path) -> dict[str, Any] | None:
    """The config of an adapter in a folder, or beside a file."""
    file = (src if src.is_dir() else src.parent) / ADAPTER_FILE
    return read_json(file, CheckpointError) if file.is_file() else None


def split_adapters(src: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Adapter]]:
    """The tensors that belong to no adapter, and the adapters by the layers they are added to.

    Raises:
        CheckpointError: an adapter of another kind, half of one, or one whose scale nothing says.
    """
    parts = {key: found for key in state if (found := _PART.fullmatch(key))}
    other = next((key for key in state if ".lora_" in key and key not in parts), None)
    if other is not None:
        raise CheckpointError(f"{src}: holds {other}; of adapters, lora_A and lora_B of linear layers are read")
    names = sorted({found[1] for found in parts.values()})
    rest = {key: tensor for key, tensor in state.items() if key not in parts}
    if not names:
        return rest, {}
    halves = {(found[1], found[2]): state[key].float() for key, found in parts.items()}
    alpha, by_root = _scale(src)
    return rest, {name: _adapter(src, name, halves, alpha, by_root=by_root) for name in names}


def _adapter(src: Path, name: str, halves: Mapping[tuple[str, str], Tensor], alpha: float, *, by_root: bool) -> Adapter:
    a, b = halves.get((name, "A")), halves.get((name, "B"))
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise CheckpointError(f"{src}: {name}: expected lora_A (r, in) and lora_B (out, r)")
    rank = a.shape[0]
    return Adapter(a, b * (alpha / (math.sqrt(rank) if by_root else rank)))


def _scale(src: Path) -> tuple[float, bool]:
    """lora_alpha, and whether it is divided by the root of the rank.

    Raises:
        CheckpointError: nothing says it, or the adapter does something else, too.
    """
    config = adapter_config(src)
    if config is None:
        raise CheckpointError(
            f"{src}: holds an adapter that is not merged, and a state dict does not say its scale; put the "
            f"{ADAPTER_FILE} beside it that model.save_pretrained(FOLDER) writes where it was made"
        )
    kind, alpha, initial = (config.get(name) for name in ("peft_type", "lora_alpha", "init_lora_weights"))
    unread = [name for name in _UNREAD if config.get(name)]
    if initial not in _INITIAL:
        unread.append(f"init_lora_weights {initial!r:.40}")
    if kind != "LORA" or unread or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        found = f"peft_type {kind!r:.40}, lora_alpha {alpha!r:.40}" + "".join(f", {name}" for name in unread)
        raise CheckpointError(
            f"{src}: {ADAPTER_FILE} says {found}; expected plain LORA: merge it with peft where it was made: "
            "model.merge_and_unload().save_pretrained(FOLDER)"
        )
    return float(alpha), bool(config.get("use_rslora"))
