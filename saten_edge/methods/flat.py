"""FLAT: narrower values and fewer MLP channels, chosen on calibration texts; the result is a smaller dense model.

The formulas are in `saten_edge.decomposition.flat`. All moments come from one run of the model as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from saten_edge.checkpoints.architectures import Architecture
from saten_edge.checkpoints.checkpoint import attach_config, recipe_of
from saten_edge.checkpoints.compress import CompressedLayer, matrices, refuse_compressed, refuse_odd_numbers
from saten_edge.checkpoints.models import LoadedModel
from saten_edge.checkpoints.sizes import BlockSizes, apply_sizes, blocks, head_of, value_unit
from saten_edge.console import told
from saten_edge.decomposition.allocation import Measured
from saten_edge.decomposition.angles import Angles
from saten_edge.decomposition.flat import kept_channels, narrow_values, proportional_shares, refitted, rounded
from saten_edge.decomposition.metric import Metric
from saten_edge.decomposition.residual import VALUE_BYTES
from saten_edge.methods.calibrate import calibrate, described
from saten_edge.methods.method import Job, Method
from saten_edge.options import CompressOptions
from saten_runtime.bundle.recipe import Stage, options_of, versions_here
from saten_runtime.errors import ExportError, UsageError

__all__ = ["FLAT"]

# Channels are kept in multiples of this, as matrix products are computed.
CHANNELS = 32


@dataclass(frozen=True)
class _New:
    """What a layer becomes: M (in, out), its bias, and the relative error of its output."""

    matrix: Tensor
    bias: Tensor | None
    error: float = 0.0


def check(options: CompressOptions, calibrated: bool) -> None:
    """Refuse FLAT without texts or images.

    Raises:
        UsageError: there are none.
    """
    if not calibrated:
        raise UsageError("--method flat chooses by what texts or images show; pass --calibration FILE.jsonl")


def run(job: Job) -> list[CompressedLayer]:
    """Make heads and MLPs of the selected layers smaller; one row for each layer that changed."""
    loaded, row = job.loaded, job.loaded.architecture
    refuse_compressed(loaded.model)
    if recipe_of(loaded.model).stages:
        raise UsageError("--method flat: the model has smaller blocks already; start from the dense one")
    refuse_odd_numbers(loaded.model)
    parts = _Parts(loaded, job.options, row)
    parts.fold_biases()
    measured, shares = _measured(job, parts)
    changed: dict[str, _New] = {}
    sizes: dict[str, BlockSizes] = {}
    with told(job.progress, f"flatten {len(parts.blocks)} blocks") as advance:
        for done, (name, share) in enumerate(zip(parts.blocks, shares, strict=True)):
            advance(done, len(parts.blocks), name)
            sizes[name] = parts.sizes(name, share)
            changed |= parts.narrowed(name, sizes[name], measured)
            changed |= parts.thinned(name, sizes[name], measured)
    sizes = {name: own for name, own in sizes.items() if own != BlockSizes()}
    if not changed:
        raise UsageError(f"--keep {job.options.kept:g}: every block keeps all it has; lower --keep")
    rows = _replace(loaded.model, sizes, changed)
    attach_config(loaded.model, loaded.source, _stage(job, sizes), sizes)
    return rows


class _Parts:
    """The layers of a model that FLAT may change."""

    def __init__(self, loaded: LoadedModel, options: CompressOptions, row: Architecture) -> None:
        self.model, self.options, self.row = loaded.model, options, row
        self.head, self.blocks = head_of(loaded.model.config), blocks(loaded.model)
        self._prefix = "" if self.model.base_model is self.model else f"{self.model.base_model_prefix}."
        self._head_keep = self._kept_of_heads()

    @cached_property
    def readers(self) -> dict[str, nn.Module]:
        """The layers whose inputs are judged: attention's output and the MLP's down projection, of all blocks."""
        ends = [self.row.attention.output] if self.row.attention and self._head_keep < 1 else []
        ends += [self.row.mlp.down] if self.row.mlp else []
        every = {self.path(block, end): self.layer(block, end) for block in self.blocks for end in ends}
        found = {name: layer for name, layer in every.items() if self.options.selection.takes(name, layer.weight)}
        if not found:
            raise ExportError(f"{type(self.model).__name__} has no MLP or head that --include and --exclude leave")
        return found

    def path(self, block: str, layer: str) -> str:
        """The name of a block's layer in the model."""
        return f"{self._prefix}{block}.{layer}"

    def layer(self, block: str, layer: str) -> Any:
        """A block's layer."""
        return self.model.base_model.get_submodule(f"{block}.{layer}")

    def fold_biases(self) -> None:
        """Move the bias of the values into the output's, where there is one: a head's weights of tokens add up to 1."""
        paths = self.row.attention
        if paths is None or self._head_keep == 1:
            return
        for block in self.blocks:
            value, output = self.layer(block, paths.value), self.layer(block, paths.output)
            if value.bias is not None and output.bias is not None:
                every = value.bias.detach().reshape(self.head.values, 1, -1).expand(-1, self._queries, -1)
                output.bias.data += output.weight.detach() @ every.reshape(-1)
                value.bias.data.zero_()

    def sizes(self, block: str, share: float) -> BlockSizes:
        """What a block keeps, given its share of --keep."""
        value, channels = None, None
        if self.row.attention and self.path(block, self.row.attention.output) in self.readers:
            own = min(1.0, share * self._head_keep / self.options.kept)
            value = rounded(self.head.width, own, value_unit(self.head))
            value = None if value == self.head.width else value
        if self.row.mlp and self.path(block, self.row.mlp.down) in self.readers:
            there = len(self._matrix(block, self.row.mlp.down))
            channels = rounded(there, share, min(CHANNELS, there))
            channels = None if channels == there else channels
        return BlockSizes(value, channels)

    def narrowed(self, block: str, sizes: BlockSizes, measured: Measured) -> Iterator[tuple[str, _New]]:
        """The two layers between which a block's values lie."""
        paths = self.row.attention
        if paths is None or sizes.value is None:
            return
        name, width = self.path(block, paths.output), self.head.width
        moments, output = measured.moments[name], self._matrix(block, paths.output).double()
        firsts, seconds = [], []
        for group in range(self.head.values):
            own = [slice(h * width, (h + 1) * width) for h in range(group * self._queries, (group + 1) * self._queries)]
            a, bs = narrow_values([output[h] for h in own], [moments[h, h] for h in own], sizes.value)
            firsts.append(a)
            seconds += bs
        mixed: Tensor = torch.block_diag(*firsts)  # type: ignore[no-untyped-call]
        bias = self.layer(block, paths.value).bias
        value = self._matrix(block, paths.value).double() @ mixed
        yield self.path(block, paths.value), _New(value, None if bias is None else bias.double() @ mixed)
        firsts_of_queries = (firsts[h // self._queries] for h in range(self.head.queries))
        stood_for = torch.cat([a @ b for a, b in zip(firsts_of_queries, seconds, strict=True)])
        error = Metric.from_moments(moments).relative_error(output, stood_for)
        yield name, _New(torch.cat(seconds), self.layer(block, paths.output).bias, error)

    def thinned(self, block: str, sizes: BlockSizes, measured: Measured) -> Iterator[tuple[str, _New]]:
        """The layers that make a block's channels, and the one that reads them."""
        paths = self.row.mlp
        if paths is None or sizes.intermediate is None:
            return
        name, down = self.path(block, paths.down), self._matrix(block, paths.down).double()
        moments = measured.moments[name]
        kept = kept_channels(moments, down, sizes.intermediate)
        columns = torch.cat([kept + len(down) * matrix for matrix in range(paths.packed)])
        for up in paths.ups:
            bias = self.layer(block, up).bias
            yield (
                self.path(block, up),
                _New(self._matrix(block, up)[:, columns], None if bias is None else bias[columns]),
            )
        fitted = refitted(moments, down, kept)
        stood_for = torch.zeros_like(down).index_copy(0, kept, fitted)
        error = Metric.from_moments(moments).relative_error(down, stood_for)
        yield name, _New(fitted, self.layer(block, paths.down).bias, error)

    @property
    def _queries(self) -> int:
        """Query heads that read one value head."""
        return self.head.queries // self.head.values

    def _matrix(self, block: str, layer: str) -> Tensor:
        return matrices({"": self.layer(block, layer)})[""]

    def _kept_of_heads(self) -> float:
        """--head-keep, or what it is without.

        Raises:
            UsageError: it was asked for, and heads of this model cannot be narrower.
        """
        asked, head = self.options.head_keep, self.head
        whole = self.row.whole_heads
        if not whole and value_unit(head) == head.width:
            whole = f"{head.values} value heads of {head.width} have no narrower width that makes whole heads together"
        if asked is not None and asked < 1 and whole:
            raise UsageError(
                f"--head-keep {asked:g}: heads of {type(self.model).__name__} cannot be narrower: {whole}; leave it out"
            )
        usual = 1.0 if whole or self.row.kind == "decoder" else self.options.kept
        return usual if asked is None else asked


def _measured(job: Job, parts: _Parts) -> tuple[Measured, list[float]]:
    """The moments of what the readers read, and each block's share."""
    angles, options = Angles(parts.blocks.values()), job.options
    with angles.watching():
        measured = calibrate(job.loaded, parts.readers, job.items, None, job.progress, angles.batches, bf16=job.bf16)
    if _ranks(job) == "uniform":
        return measured, [options.kept] * len(parts.blocks)
    return measured, proportional_shares(angles.found(), options.kept)


def _ranks(job: Job) -> str:
    return job.options.ranks or ("iprs" if job.loaded.architecture.kind == "decoder" else "uniform")


def _replace(model: Any, sizes: Mapping[str, BlockSizes], changed: Mapping[str, _New]) -> list[CompressedLayer]:
    """Put the new layers into the model."""
    before = {name: model.get_submodule(name).weight.numel() for name in changed}
    apply_sizes(model, sizes)
    rows = []
    with torch.no_grad():
        for name, new in changed.items():
            layer = model.get_submodule(name)
            matrices({"": layer})[""].copy_(new.matrix)
            if new.bias is not None:
                layer.bias.copy_(new.bias)
            shape = (new.matrix.shape[0], new.matrix.shape[1])
            sizes_now = (layer.weight.numel() * VALUE_BYTES, before[name] * VALUE_BYTES)
            rows.append(CompressedLayer(name, "linear", shape, [], 0, *sizes_now, new.error, "none"))
    return rows


def _stage(job: Job, sizes: Mapping[str, BlockSizes]) -> Stage:
    options = job.options
    given = options_of(options.selection, keep=options.kept, head_keep=options.head_keep, ranks=_ranks(job))
    outcome = options_of(
        values=[own.value for own in sizes.values()], channels=[own.intermediate for own in sizes.values()]
    )
    inputs = {"model": options_of(**job.loaded.source), "calibration": described(job.items, bf16=job.bf16)}
    return Stage("flat", given, inputs, outcome, versions_here())


FLAT = Method(check, run)
