"""Blocks whose heads or MLP are smaller than the config of their family says.

A block then has its own width of a value head and its own number of MLP channels; queries and keys keep theirs.
transformers' forwards view the values as heads of the usual width, so that there are fewer of them; the attention
function views them again as what they are (see `saten_exporters.tracing.narrow`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from saten_edge.checkpoints.architectures import Architecture, architecture
from saten_edge.checkpoints.modules import replace_module
from saten_exporters.tracing.narrow import use_narrow_values
from saten_runtime.errors import CheckpointError, UsageError

__all__ = ["BlockSizes", "Head", "apply_sizes", "blocks", "head_of", "resize", "sizes_from", "value_unit"]


@dataclass(frozen=True)
class BlockSizes:
    """value: width of a value head. intermediate: channels of the MLP. None: as the config says."""

    value: int | None = None
    intermediate: int | None = None

    def to_json(self) -> dict[str, int]:
        """Plain JSON data, without what is as the config says."""
        return {name: size for name, size in asdict(self).items() if size is not None}


@dataclass(frozen=True)
class Head:
    """The heads of a model's attention: how many queries have, how many values have, and how wide they are."""

    queries: int
    values: int
    width: int


def head_of(config: Any) -> Head:
    """Read off a config of a family in `ARCHITECTURES`."""
    queries = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    return Head(queries, int(getattr(config, "num_key_value_heads", None) or queries), int(width))


def value_unit(head: Head) -> int:
    """The widths that a value head can have are multiples of it: all of a block's values are whole heads together."""
    return head.width // math.gcd(head.width, head.values)


def blocks(model: Any) -> dict[str, nn.Module]:
    """The blocks of a model by their path in its base model."""
    path = architecture(model.config.model_type).blocks
    return {f"{path}.{place}": block for place, block in enumerate(model.base_model.get_submodule(path))}


def layer_sizes(model: Any, row: Architecture, sizes: BlockSizes) -> Iterator[tuple[str, int | None, int | None]]:
    """The layers of a block that `sizes` change, by path in it, with their inputs and outputs; None: as they are."""
    head = head_of(model.config)
    if row.attention and sizes.value:
        yield row.attention.value, None, head.values * sizes.value
        yield row.attention.output, head.queries * sizes.value, None
    if row.mlp and sizes.intermediate:
        for up in row.mlp.ups:
            yield up, None, sizes.intermediate * row.mlp.packed
        yield row.mlp.down, sizes.intermediate, None


def resize(layer: Any, inputs: int | None, outputs: int | None) -> nn.Module:
    """A layer of the same class, bias, dtype and device with other sizes, and numbers that mean nothing."""
    rows, columns = layer.weight.shape
    before = (columns, rows) if isinstance(layer, nn.Linear) else (rows, columns)
    sizes = (inputs or before[0], outputs or before[1])
    how = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    made: Any
    if isinstance(layer, nn.Linear):
        made = nn.utils.skip_init(nn.Linear, *sizes, bias=layer.bias is not None, **how)  # type: ignore[no-untyped-call]
    else:
        made = Conv1D(1, 1).to(**how)
        made.nf, made.nx = sizes[1], sizes[0]
        made.weight, made.bias = (nn.Parameter(layer.weight.new_empty(shape)) for shape in (sizes, sizes[1:]))
    found: nn.Module = made
    return found


def apply_sizes(model: Any, sizes: Mapping[str, BlockSizes]) -> None:
    """Put layers of these sizes, without numbers, into the blocks named, and have attention read narrower values.

    Raises:
        UsageError: the model was asked to compute attention by another function than torch's.
    """
    row = architecture(model.config.model_type)
    for name, own in sizes.items():
        for path, inputs, outputs in layer_sizes(model, row, own):
            where = f"{name}.{path}"
            replace_module(model.base_model, where, resize(model.base_model.get_submodule(where), inputs, outputs))
    if any(own.value for own in sizes.values()) and not use_narrow_values(model):
        raise UsageError(
            f"attn_implementation {model.config._attn_implementation!r}: values of this model are narrower than its "
            "keys, which only 'sdpa' computes; leave attn_implementation out"
        )


def sizes_from(data: Any, model: Any) -> dict[str, BlockSizes]:
    """The sizes in a config, checked against the model they are for.

    Raises:
        CheckpointError: a block, a size or a name that does not fit it.
    """
    row, head, there = architecture(model.config.model_type), head_of(model.config), blocks(model)
    if not isinstance(data, dict):
        raise CheckpointError("config.json: sizes of blocks are no object; it is damaged")
    found = {}
    for name, entry in data.items():
        if name not in there or not isinstance(entry, dict) or not entry or entry.keys() - {"value", "intermediate"}:
            raise CheckpointError(f"config.json: sizes of {name!r:.80} do not fit {type(model).__name__}")
        most = {"value": head.width if row.attention else 0, "intermediate": _channels(there[name], row)}
        for key, size in entry.items():
            unit = value_unit(head) if key == "value" else 1
            if type(size) is not int or not 0 < size <= most[key] or size % unit:
                raise CheckpointError(
                    f"config.json: {key} of {name} is {size!r:.40}, expected a multiple of {unit} up to {most[key]}"
                )
        found[name] = BlockSizes(**entry)
    return found


def _channels(block: nn.Module, row: Architecture) -> int:
    if row.mlp is None:
        return 0
    down: Any = block.get_submodule(row.mlp.down)
    return int(down.weight.shape[1] if isinstance(down, nn.Linear) else down.weight.shape[0])
