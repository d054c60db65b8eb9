"""A graph that was traced before in a run of the tests is read again: tracing takes seconds, and most models are tiny.

    export.trace = traced_once(folder, export.trace)

All processes of the run share the folder. A graph's name is the hash of all that decides it: of the model every weight,
class, attribute and setting, and what it is traced with. A model that has something which cannot be pickled, such as a
function of a test in place of a method, is traced each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from transformers import GenerationConfig, PreTrainedConfig
from transformers.exporters.base import ExportedComponent, ExportedModel

from saten_exporters.tracing.signatures import kind_of, task_of

Trace = Callable[[Any, Any], ExportedModel]

# The variable that names the folder to a warm Python, which imports this module.
FOLDER = "SATEN_TRACES"


class _Content(pickle.Pickler):
    """Writes the same bytes in every process for the same content, wherever that was read from."""

    def __init__(self, file: io.BytesIO, path: str) -> None:
        super().__init__(file)
        self.fast = True  # else the bytes would say which equal strings are one object
        self._path = path
        self._tensors: dict[int, int] = {}

    def persistent_id(self, value: Any) -> object:
        if isinstance(value, torch.Tensor):
            place = self._tensors.setdefault(id(value), len(self._tensors))  # weights that are tied are one
            content = hashlib.sha256(value.detach().contiguous().numpy()).hexdigest()
            return "tensor", place, str(value.dtype), str(value.shape), content
        if isinstance(value, PreTrainedConfig | GenerationConfig):
            settings = {**value.to_dict(), "_name_or_path": getattr(value, "_attn_implementation", None)}
            return "settings", json.dumps(settings, sort_keys=True, default=repr, allow_nan=False)
        if isinstance(value, set | frozenset):
            return "set", sorted(map(repr, value))
        return "path" if isinstance(value, str) and value == self._path else None


def name_of(source: Any, target: Any) -> str | None:
    """The hash of all that decides the graph of a model; None where that cannot be told."""
    file = io.BytesIO()
    kind = kind_of(source)
    if getattr(vars(source.model).get("forward"), "__func__", None) is type(source.model).forward:
        del source.model.forward  # torch left its own method on it
    decides = (source.model, kind.sample(source), kind.cached, task_of(source).outputs, source.max_length, target.opset)
    try:
        _Content(file, source.model.name_or_path).dump(decides)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
        return None
    return hashlib.sha256(file.getbuffer()).hexdigest()


def traced_once(folder: Path, trace: Trace) -> Trace:
    """`trace`, which keeps what it gives in a folder and reads it where it is there."""

    def read_or_traced(source: Any, target: Any) -> ExportedModel:
        name = name_of(source, target)
        if name is None:
            return trace(source, target)
        with contextlib.suppress(FileNotFoundError):
            return read(folder / name, source.model.config)
        exported = trace(source, target)
        keep(exported, folder / name)
        return exported

    return read_or_traced


def keep(exported: ExportedModel, path: Path) -> None:
    """Write a graph; it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {name: (_bytes(each.program), each.metadata) for name, each in exported.components.items()}
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(pickle.dumps((parts, exported.export_format, exported.generation_config)))
    partial.replace(path)


def read(path: Path, config: PreTrainedConfig) -> ExportedModel:
    """A graph that was kept, of the model with this config."""
    parts, export_format, generation_config = pickle.loads(path.read_bytes())
    components = {name: ExportedComponent(_program(*graph), metadata) for name, (graph, metadata) in parts.items()}
    return ExportedModel(components, export_format, config, generation_config)


def _bytes(program: ir.Model) -> tuple[bytes, tuple[int, int]]:
    """A model, and the numbers that the names of its next value and node will have."""
    names = program.graph._name_authority
    return ir.to_proto(program).SerializeToString(), (names._value_counter, names._node_counter)


def _program(graph: bytes, numbers: tuple[int, int]) -> ir.Model:
    """A model whose tensors can be changed, as those of the tracer can."""
    program = ir.from_proto(onnx.ModelProto.FromString(graph))
    names = program.graph._name_authority
    names._value_counter, names._node_counter = numbers
    for value in program.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    for node in program.graph.all_nodes():
        for name, each in node.attributes.items():
            if each.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(each.value.numpy(), name=each.value.name))
    return program


if FOLDER in os.environ:
    from saten_exporters.bundles import export

    export.trace = traced_once(Path(os.environ[FOLDER]), export.trace)
