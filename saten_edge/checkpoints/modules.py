"""torch modules that hold a weight as tensor train + sparse residual.

While training and evaluating, the matrix M (in, out) is rebuilt from its parts once per call: with many
rows that is the cheapest way there is, and its gradient reaches cores and values; a lookup of few ids builds
only their rows. While exporting, a module emits one placeholder node in the ONNX domain `saten` that carries
its name; `saten_exporters` replaces it by small operators. No weight passes through the tracer.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saten_edge.decomposition.residual import Residual, pattern_named, scatter
from saten_edge.decomposition.tt import TensorTrain
from saten_exporters.exportable import LayerParts
from saten_runtime.errors import CheckpointError, ShapeError
from saten_runtime.vocabulary.operators import EMBEDDING, HEAD, LAYER, LINEAR, qualified

__all__ = [
    "LayerSpec",
    "SatenEmbedding",
    "SatenHead",
    "SatenLinear",
    "SatenModule",
    "build_module",
    "replace_module",
    "saten_layers",
    "scale_of",
]

# A lookup builds rows alone while they are at most this share of the table; above it, the whole table is cheaper.
FEW_ROWS = 0.5
INDEX_DTYPES = ("uint8", "uint16", "int32", "int64")


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
        """Back from `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `data` comes from elsewhere.
        """
        for size in (*data["shape"], *itertools.chain(*data["cores"]), *data["values"], data["group"], data["inputs"]):
            if type(size) is not int or size < 0:
                raise ValueError(f"a size of {size!r}")
        if not data["group"]:
            raise ValueError("groups of nothing")
        if any(dtype not in INDEX_DTYPES for dtype, _ in data["indices"].values()):
            raise ValueError("an index type of another kind")
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
        self._by_row: tuple[Tensor, Tensor] | None = None

    def index_tensors(self) -> dict[str, Tensor]:
        """The index buffers by name."""
        return {name: self.get_buffer(name) for name in self.index_names}

    def replace(self, residual: Residual) -> None:
        """Copy values and indices of a residual of the same sizes."""
        with torch.no_grad():
            self.values.copy_(residual.values)
        for name, tensor in residual.indices.items():
            self.get_buffer(name).copy_(tensor)
        self._positions = None

    def take(self, residual: Residual) -> None:
        """Have values and indices of a residual of the same sizes for one's own."""
        self.values = nn.Parameter(residual.values)
        for name, tensor in residual.indices.items():
            setattr(self, name, tensor)
        self._positions = None

    def check(self, where: str) -> None:
        """Refuse indices read from a file that do not name one entry of the matrix for each value.

        Raises:
            CheckpointError: naming `where`.
        """
        try:
            positions = self.pattern.positions(self.index_tensors(), self.shape)
        except (ShapeError, RuntimeError, IndexError, KeyError):  # torch's, of lengths that do not add up
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
        return scatter(self.values, self.where(), self.shape)

    def laid_out(self) -> Residual:
        """The residual in the exporter's layout."""
        return self.pattern.lay_out(Residual(self.values, self.index_tensors()), self.shape)

    def rows(self, numbers: Tensor) -> Tensor:
        """Rows `numbers` (n,) of the residual, (n, out)."""
        order, ends = self._sorted_by_row()
        starts, counts = ends[numbers], ends[numbers + 1] - ends[numbers]
        row = torch.repeat_interleave(torch.arange(len(numbers), device=numbers.device), counts)
        nth = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        entries = order[starts[row] + nth]
        columns = self.where().reshape(-1)[entries] % self.shape[1]
        values = self.values.reshape(-1)[entries]
        return scatter(values, row * self.shape[1] + columns, (len(numbers), self.shape[1]))

    def where(self) -> Tensor:
        """Flat positions of the values, computed once per device."""
        if self._positions is None or self._positions.device != self.values.device:
            self._positions, self._by_row = self.pattern.positions(self.index_tensors(), self.shape), None
        return self._positions

    def _sorted_by_row(self) -> tuple[Tensor, Tensor]:
        """The numbers of the values in the order of their rows, and where each row ends (in + 1,)."""
        positions = self.where()
        if self._by_row is None:
            rows = positions.reshape(-1) // self.shape[1]
            counts = torch.bincount(rows, minlength=self.shape[0])
            self._by_row = rows.argsort(stable=True), nn.functional.pad(counts.cumsum(0), (1, 0))
        return self._by_row


class SatenModule(nn.Module):
    """A layer whose matrix M (in, out) is tensor train + residual."""

    def __init__(self, name: str, spec: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer_name, self.spec = name, spec
        self.cores = nn.ParameterList(nn.Parameter(torch.empty(shape, dtype=dtype)) for shape in spec.cores)
        self.residual = ResidualPart(spec, dtype)

    @property
    def weight(self) -> Tensor:
        """Stands in for the dense weight where transformers fills `.weight` of a block's layers by name.

        On the meta device, so that filling it does nothing and computing with it fails.
        """
        shape = tuple(reversed(self.spec.shape)) if self.spec.kind == "linear" else self.spec.shape
        return torch.empty(shape, dtype=self.residual.values.dtype, device="meta")

    def train_part(self) -> TensorTrain:
        """The tensor train, sharing the parameters' memory."""
        return TensorTrain(tuple(self.cores), self.spec.inputs, self.spec.shape)

    def matrix(self) -> Tensor:
        """M (in, out), rebuilt from its parts."""
        return self.train_part().dense() + self.residual.dense()

    def parts(self) -> LayerParts:
        """The layer's numbers as arrays, the train as cores and folded to two factors.

        The arrays may share the parameters' memory.
        """
        with torch.no_grad():
            train = self.train_part()
            a, b = (factor.float().cpu().numpy() for factor in train.factors())
            cores = [core.float().cpu().numpy() for core in train.cores]
            residual = self.residual.laid_out()
            return LayerParts(
                name=self.layer_name,
                kind=self.spec.kind,
                shape=self.spec.shape,
                ranks=train.ranks,
                a=a,
                b=b,
                layout=self.residual.pattern.layout,
                values=residual.values.float().cpu().numpy(),
                indices={name: tensor.cpu().numpy() for name, tensor in residual.indices.items()},
                cores=(tuple(cores[: train.inputs]), tuple(cores[train.inputs :])),
            )

    def set_parts(self, train: TensorTrain, residual: Residual) -> None:
        """Copy a decomposition into the parameters and buffers."""
        with torch.no_grad():
            for parameter, core in zip(self.cores, train.cores, strict=True):
                parameter.copy_(core)
        self.residual.replace(residual)

    def take_parts(self, train: TensorTrain, residual: Residual) -> None:
        """Have the numbers of a decomposition for one's own; they may be mapped from a file."""
        self.cores = nn.ParameterList(nn.Parameter(core) for core in train.cores)
        self.residual.take(residual)


class SatenLinear(SatenModule):
    """`nn.Linear` with M = weight.T kept in parts."""

    def __init__(self, name: str, spec: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(name, spec, dtype)
        self.in_features, self.out_features = spec.shape
        self.bias = nn.Parameter(torch.empty(spec.shape[1], dtype=dtype)) if spec.bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if not torch.compiler.is_exporting():
            return nn.functional.linear(x, self.matrix().T, self.bias)
        y = _placeholder(LINEAR, self, x, (*x.shape[:-1], self.out_features))
        return y if self.bias is None else y + self.bias


class SatenEmbedding(SatenModule):
    """`nn.Embedding` with its table M (rows, width) kept in parts."""

    def __init__(self, name: str, spec: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(name, spec, dtype)
        self.num_embeddings, self.embedding_dim = spec.shape
        self.padding_idx, self.scalar_embed_scale = spec.padding_idx, 1.0

    def forward(self, ids: Tensor) -> Tensor:
        """(…) int64 → (…, width), scaled as `scale_of` says."""
        found, scale = self._looked_up(ids), scale_of(self)
        return found if scale == 1.0 else found * scale

    def _looked_up(self, ids: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return _placeholder(EMBEDDING, self, ids, (*ids.shape, self.embedding_dim))
        asked, places = torch.unique(ids, return_inverse=True)
        if len(asked) > FEW_ROWS * self.num_embeddings:
            return nn.functional.embedding(ids, self.matrix(), self.padding_idx)
        rows = self.rows(asked)
        if self.padding_idx is not None:  # as in `nn.Embedding`, padding teaches the table nothing
            rows = torch.where((asked == self.padding_idx)[:, None], rows.detach(), rows)
        return nn.functional.embedding(places, rows)

    def rows(self, numbers: Tensor) -> Tensor:
        """Rows `numbers` (n,) of M, (n, width)."""
        a, b = self.train_part().factors()
        return a[numbers] @ b + self.residual.rows(numbers)


class SatenHead(nn.Module):
    """An output layer that shares the parts of a table M (rows, width): h (…, width) → h Mᵀ (…, rows).

    It refers to the table without owning it, so the shared numbers are parameters once, saved once, and follow
    the table wherever it goes. Its placeholder carries the table's name.
    """

    def __init__(self, table: SatenEmbedding, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self._shared = (table,)  # in a tuple, torch does not register it a second time
        self.in_features, self.out_features = table.embedding_dim, table.num_embeddings
        self.bias = bias

    @property
    def table(self) -> SatenEmbedding:
        """The table whose parts this head uses."""
        return self._shared[0]

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → (…, rows)."""
        if torch.compiler.is_exporting():
            y = _placeholder(HEAD, self.table, x, (*x.shape[:-1], self.out_features))
        else:
            a, b = self.table.train_part().factors()
            y = (x @ b.T) @ a.T + x @ self.table.residual.dense().T
        return y if self.bias is None else y + self.bias


def _placeholder(operator: str, layer: SatenModule, x: Tensor, shape: tuple[int | torch.SymInt, ...]) -> Tensor:
    """The node of our domain that stands for a layer in a traced graph."""
    return torch.onnx.ops.symbolic(
        qualified(operator), (x,), attrs={LAYER: layer.layer_name}, dtype=layer.cores[0].dtype, shape=shape, version=1
    )


MODULES: dict[str, type[SatenModule]] = {"linear": SatenLinear, "embedding": SatenEmbedding}


def build_module(name: str, spec: LayerSpec, dtype: torch.dtype = torch.float32) -> SatenModule:
    """An uninitialised module for a layer called `name`."""
    return MODULES[spec.kind](name, spec, dtype)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `model` has its submodule `name`; a lookup table multiplies its rows as the one before."""
    parent, _, child = name.rpartition(".")
    if isinstance(module, SatenEmbedding):
        module.scalar_embed_scale = scale_of(model.get_submodule(name))
    setattr(model.get_submodule(parent), child, module)


def scale_of(table: nn.Module) -> float:
    """What a lookup table multiplies its rows by, as its head does not: of Gemma, the root of their width."""
    return float(getattr(table, "scalar_embed_scale", 1.0))


def saten_layers(model: nn.Module) -> dict[str, SatenModule]:
    """The compressed layers of a model by name; a tied head is not a layer of its own."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SatenModule)}
