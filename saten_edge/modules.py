"""torch modules that hold a weight as tensor train + sparse residual.

While training and evaluating, the matrix M (in, out) is rebuilt from its parts once per call: with many
rows that is the cheapest way there is, and its gradient reaches cores and values. While exporting, a module
emits one placeholder node in the ONNX domain `saten` that carries its name; `saten_exporters` replaces it
by small operators. No weight passes through the tracer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saten_edge.residual import Residual, pattern_named, scatter
from saten_edge.tt import TensorTrain
from saten_exporters.parts import LayerParts
from saten_runtime.errors import CheckpointError, ShapeError

__all__ = [
    "LayerSpec",
    "SatenEmbedding",
    "SatenLinear",
    "SatenModule",
    "build_module",
    "replace_module",
    "saten_layers",
]


@dataclass(frozen=True)
class LayerSpec:
    """Everything about a compressed layer but its numbers; what `config.json` says of it.

    shape: (in, out) of M. cores: shapes (r, n, r') of the cores, the first `inputs` over `in`. indices: name →
    (dtype, shape). error: relative error of the decomposition, before fine-tuning.
    """

    kind: str
    shape: tuple[int, int]
    cores: tuple[tuple[int, int, int], ...]
    inputs: int
    pattern: str
    group: int
    values: tuple[int, ...]
    indices: dict[str, tuple[str, tuple[int, ...]]]
    bias: bool
    padding_idx: int | None
    error: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**self.__dict__, "indices": {name: list(entry) for name, entry in self.indices.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerSpec:
        """Back from `to_json`."""
        return cls(
            **{
                **data,
                "shape": tuple(data["shape"]),
                "cores": tuple(tuple(core) for core in data["cores"]),
                "values": tuple(data["values"]),
                "indices": {name: (dtype, tuple(shape)) for name, (dtype, shape) in data["indices"].items()},
            }
        )


class ResidualPart(nn.Module):
    """Values (trained) and index buffers of a residual."""

    def __init__(self, spec: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.pattern = pattern_named(spec.pattern, spec.kind, group=spec.group, width=spec.shape[1])
        self.shape, self.index_names = spec.shape, tuple(spec.indices)
        self.values = nn.Parameter(torch.empty(spec.values, dtype=dtype))
        for name, (kind, shape) in spec.indices.items():
            self.register_buffer(name, torch.empty(shape, dtype=getattr(torch, kind)))
        self._positions: Tensor | None = None

    def index_tensors(self) -> dict[str, Tensor]:
        """The index buffers by name."""
        return {name: self.get_buffer(name) for name in self.index_names}

    def check(self, where: str) -> None:
        """Refuse indices read from a file that do not name one entry of the matrix for each value.

        Raises:
            CheckpointError: naming `where`.
        """
        try:
            positions = self.pattern.positions(self.index_tensors(), self.shape)
        except (ShapeError, RuntimeError):  # torch's, of row ends that fall
            positions = torch.empty(0)
        ordered = positions.reshape(-1).sort().values
        ends = ordered[[0, -1]].tolist() if ordered.numel() else [0, 0]
        inside = ends[0] >= 0 and ends[1] < math.prod(self.shape)
        if positions.shape != self.values.shape or not inside or not bool((ordered.diff() > 0).all()):
            raise CheckpointError(
                f"{where}: its indices do not name one entry of a matrix {self.shape[0]} × {self.shape[1]} for each "
                f"value; the file is damaged, download it again"
            )

    def dense(self) -> Tensor:
        """The residual as a matrix (in, out)."""
        if self._positions is None or self._positions.device != self.values.device:
            self._positions = self.pattern.positions(self.index_tensors(), self.shape)
        return scatter(self.values, self._positions, self.shape)


class SatenModule(nn.Module):
    """A layer whose matrix M (in, out) is tensor train + residual."""

    placeholder: str

    def __init__(self, name: str, spec: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer_name, self.spec = name, spec
        self.cores = nn.ParameterList(nn.Parameter(torch.empty(shape, dtype=dtype)) for shape in spec.cores)
        self.residual = ResidualPart(spec, dtype)

    def train_part(self) -> TensorTrain:
        """The tensor train, sharing the parameters' memory."""
        return TensorTrain(tuple(self.cores), self.spec.inputs)

    def matrix(self) -> Tensor:
        """M (in, out), rebuilt from its parts."""
        return self.train_part().dense() + self.residual.dense()

    def parts(self) -> LayerParts:
        """The layer's numbers as arrays, the train's cores folded to two factors.

        The arrays may share the parameters' memory.
        """
        with torch.no_grad():
            train = self.train_part()
            a, b = (factor.float().cpu().numpy() for factor in train.factors())
            return LayerParts(
                name=self.layer_name,
                kind=self.spec.kind,
                shape=self.spec.shape,
                ranks=train.ranks,
                a=a,
                b=b,
                pattern=self.spec.pattern,
                values=self.residual.values.float().cpu().numpy(),
                indices={name: tensor.cpu().numpy() for name, tensor in self.residual.index_tensors().items()},
            )

    def set_parts(self, train: TensorTrain, residual: Residual) -> None:
        """Copy a decomposition into the parameters and buffers."""
        with torch.no_grad():
            for parameter, core in zip(self.cores, train.cores, strict=True):
                parameter.copy_(core)
            self.residual.values.copy_(residual.values)
        for name, tensor in residual.indices.items():
            self.residual.get_buffer(name).copy_(tensor)

    def _placeholder(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"saten::{self.placeholder}",
            (x,),
            attrs={"layer": self.layer_name},
            dtype=self.cores[0].dtype,
            shape=self._output_shape(x),
            version=1,
        )

    def _output_shape(self, x: Tensor) -> tuple[int | torch.SymInt, ...]:
        raise NotImplementedError


class SatenLinear(SatenModule):
    """`nn.Linear` with M = weight.T kept in parts."""

    placeholder = "Linear"

    def __init__(self, name: str, spec: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(name, spec, dtype)
        self.in_features, self.out_features = spec.shape
        self.bias = nn.Parameter(torch.empty(spec.shape[1], dtype=dtype)) if spec.bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        y = self._placeholder(x) if torch.compiler.is_exporting() else x @ self.matrix()
        return y if self.bias is None else y + self.bias

    def _output_shape(self, x: Tensor) -> tuple[int | torch.SymInt, ...]:
        return (*x.shape[:-1], self.out_features)


class SatenEmbedding(SatenModule):
    """`nn.Embedding` with its table M (rows, width) kept in parts."""

    placeholder = "Embedding"

    def __init__(self, name: str, spec: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(name, spec, dtype)
        self.num_embeddings, self.embedding_dim = spec.shape
        self.padding_idx = spec.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """(…) int64 → (…, width)."""
        if torch.compiler.is_exporting():
            return self._placeholder(ids)
        return nn.functional.embedding(ids, self.matrix(), self.padding_idx)

    def _output_shape(self, x: Tensor) -> tuple[int | torch.SymInt, ...]:
        return (*x.shape, self.embedding_dim)


MODULES: dict[str, type[SatenModule]] = {"linear": SatenLinear, "embedding": SatenEmbedding}


def build_module(name: str, spec: LayerSpec, dtype: torch.dtype = torch.float32) -> SatenModule:
    """An uninitialised module for a layer called `name`."""
    return MODULES[spec.kind](name, spec, dtype)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `model` has its submodule `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def saten_layers(model: nn.Module) -> dict[str, SatenModule]:
    """The compressed layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SatenModule)}
