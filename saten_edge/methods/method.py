"""What a method of compression is: a row of `saten_edge.methods.METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from saten_edge.checkpoints.compress import CompressedLayer
from saten_edge.checkpoints.kept import Kept
from saten_edge.checkpoints.models import LoadedModel
from saten_edge.console import Progress
from saten_edge.engines import Pool
from saten_edge.options import CompressOptions
from saten_edge.processor import multiplies_bf16
from saten_edge.ranks import ALONE, Ranks
from saten_runtime.vocabulary.tasks import TEXT_GENERATION

__all__ = ["Job", "Method"]


@dataclass(frozen=True)
class Job:
    """A model to compress in place. items: texts or files of images to calibrate on; none are there without them.

    before: what an earlier method did to layers. kept: for a run that goes on after an interruption. engine: decomposes
    layers in this process's place. ranks: those that share the calibration.
    """

    loaded: LoadedModel
    options: CompressOptions
    items: Sequence[str | Path]
    progress: Progress | None = None
    before: Sequence[CompressedLayer] = ()
    kept: Kept = field(default_factory=Kept)
    engine: Pool | None = None
    ranks: Ranks = ALONE

    @property
    def bf16(self) -> bool:
        """Whether the model multiplies in bfloat16 while it is calibrated.

        By default a text generator does, where the processor has it: they are the models that take minutes.
        """
        asked = self.options.bf16
        usual = self.loaded.task == TEXT_GENERATION.hub and multiplies_bf16(gpu=False)  # calibration runs on the CPU
        return usual if asked is None else asked

    def then(self, rows: Sequence[CompressedLayer]) -> Job:
        """The job of the next method; of a layer that several changed, the last row counts, beside its first bytes."""
        merged = {row.name: row for row in self.before}
        merged |= {row.name: replace(row, dense_bytes=self.dense_bytes(row.name, row.dense_bytes)) for row in rows}
        return replace(self, before=tuple(merged.values()))

    def dense_bytes(self, name: str, now: int) -> int:
        """Of a layer before all methods; `now`: those it has."""
        return next((row.dense_bytes for row in self.before if row.name == name), now)


@dataclass(frozen=True)
class Method:
    """check: refuses options, given whether there is calibration, before there is a model. run: rows of what it did.

    whole: whether it holds all weights in memory, as float32, given the same; else they stay mapped from their files.
    follow: what those processes of torchrun do that do not lead; None of a method that one process runs.
    """

    check: Callable[[CompressOptions, bool], None]
    run: Callable[[Job], list[CompressedLayer]]
    whole: Callable[[CompressOptions, bool], bool] = lambda options, calibrated: True
    follow: Callable[[Job], None] | None = None
