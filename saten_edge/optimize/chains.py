"""What has to be done to know something of a candidate: its stages, one task each, as a recipe has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from saten_edge.optimize.space import Candidate
from saten_edge.optimize.tasks import Input, Source, Task
from saten_edge.options import DEFAULT_BATCH, ExportOptions, FinetuneOptions, OptimizeOptions, TrimOptions
from saten_edge.recipes import recorded
from saten_edge.training.schedule import Schedule

__all__ = ["Chains"]


@dataclass(frozen=True)
class Chains:
    """model, data: what was given. parts: of the judge, by name. headless: the model has to learn the labels first.

    prices: the file by which forms are chosen; None are those that ship.
    """

    model: Source
    data: Source
    parts: Mapping[str, Source]
    options: OptimizeOptions
    headless: bool
    prices: Source | None = None

    @property
    def dense(self) -> Input:
        """The dense model that all others are made from and compared with."""
        if not self.headless:
            return self.model
        return Task(
            "finetune", self._finetuned(self.options.usual_steps, "fp32"), {"model": self.model, "data": self.data}
        )

    @property
    def trimmed(self) -> Task:
        """That model, with the words of the training texts alone."""
        return Task("trim", recorded("trim", TrimOptions()), {"model": self.dense, "data": self.data})

    def dense_of(self, candidate: Candidate) -> Input:
        """The dense model that a candidate is made from and learns from: both read the same pieces."""
        return self.trimmed if candidate.trim else self.dense

    def bundle(self, candidate: Candidate, steps: int = 0) -> Task:
        """The bundle of a candidate after so many steps of fine-tuning."""
        asked, priced = self.options, {} if self.prices is None else {"prices": self.prices}
        emulated = asked.emulated and self.prices is not None
        how = ExportOptions(target=asked.target, rows=asked.tokens, emulated=emulated, **candidate.export)
        options = {**recorded("export", how), "name": candidate.label}
        return Task("export", options, {"model": self.checkpoint(candidate, steps), **priced})

    def checkpoint(self, candidate: Candidate, steps: int = 0) -> Input:
        """The model of a candidate after so many steps of fine-tuning; a dense one as it is."""
        how, dense = candidate.compress_for(self.options.target), self.dense_of(candidate)
        if how is None:
            return dense
        options = {**recorded("compress", how), "texts": self.options.calibration_texts}
        compressed = Task("compress", options, {"model": dense, "data": self.data})
        if not steps:
            return compressed
        inputs: dict[str, Input] = {"model": compressed, "data": self.data, "teacher": dense}
        return Task("finetune", self._finetuned(steps, candidate.precision), inputs)

    def judged(self, candidate: Candidate, part: str, steps: int = 0) -> Task:
        """The metrics of that bundle on a part of the judge."""
        return Task("judge", {}, {"bundle": self.bundle(candidate, steps), "part": self.parts[part]})

    def _finetuned(self, steps: int, precision: str) -> dict[str, Any]:
        asked = self.options
        schedule = Schedule(
            steps=steps,
            batch_size=asked.batch_size or DEFAULT_BATCH,
            max_length=asked.max_length,
            seed=asked.seed,
            precision=precision,
            save_every=max(steps, 200),
        )
        return recorded("finetune", replace(FinetuneOptions(), schedule=schedule))
