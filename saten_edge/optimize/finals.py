"""The finalists: trained fully, measured in turns with the dense rivals, and confirmed on data that nobody chose by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import saten_edge
from saten_edge.devices.device import Device
from saten_edge.optimize.decay import left_of
from saten_edge.optimize.goal import Row
from saten_edge.optimize.lengths import Training
from saten_edge.optimize.measuring import Times, measure
from saten_edge.optimize.search import Rival, Search
from saten_edge.optimize.space import Candidate
from saten_edge.optimize.study import LEVELS, Trial
from saten_edge.optimize.tasks import Task, made, outcome_of
from saten_edge.options import OptimizeOptions
from saten_edge.reports.text import plural
from saten_runtime.accuracy.options import EvalOptions
from saten_runtime.bench.plan import Plan
from saten_runtime.bundle.folder import Bundle
from saten_runtime.records.files import key_of

__all__ = ["Finals", "Measured", "chosen"]


@dataclass(frozen=True)
class Measured:
    """Every bundle that was measured. bundles: their folders by name; evaluation: as the report reads it.

    steps: that finalists were trained for.
    """

    rows: list[Row]
    bundles: Mapping[str, Path]
    times: Times
    evaluation: dict[str, Any]
    trials: list[Trial]
    steps: int


def chosen(trials: Sequence[Trial], options: OptimizeOptions, training: Training) -> list[Trial]:
    """The trials worth a full fine-tuning, the most promising first: those expected to meet the goal after it."""
    longer = training.steps / options.short_steps

    def promise(trial: Trial) -> tuple[float, ...]:
        drop = trial.drop or 0.0
        over = max(0.0, left_of(drop, longer) - options.max_drop)
        order = {"bytes": (trial.bytes, trial.us), "time": (trial.us, trial.bytes), "accuracy": (drop, trial.bytes)}
        return (over, *order[options.objective])

    able = [trial for trial in trials if trial.level == LEVELS[2] and not trial.why]
    front = [trial for trial in able if not any(other.beats(trial) for other in able)]
    rest = [trial for trial in able if trial not in front]
    return [*sorted(front, key=promise), *sorted(rest, key=promise)][: training.finalists]


@dataclass
class Finals:
    """search: the one that came before. rivals: the dense bundles, float32 first. devices: where times are taken."""

    search: Search
    rivals: Sequence[Rival]
    training: Training
    devices: Sequence[Device] = ()

    def run(self, trials: Sequence[Trial]) -> Measured:
        """Train, measure and confirm the finalists, and all rivals."""
        steps = self.training.steps
        picked = chosen(trials, self.search.options, self.training)
        tasks = [self.search.chains.judged(trial.candidate, "steer", steps) for trial in picked]
        title = f"fine-tune {plural(len(picked), 'finalist')}, {plural(steps, 'step')} each"
        outcomes = self.search.outcomes(title, tasks) if tasks else []
        trained = [self._trained(*pair) for pair in zip(picked, outcomes, strict=True)]
        finalists = [trial for trial in trained if not trial.why]
        return self._measure(finalists, _replaced(trials, trained))

    def _trained(self, trial: Trial, found: dict[str, Any]) -> Trial:
        if why := self.search.failure(trial.candidate, found):
            return replace(trial, level=LEVELS[3], why=why)
        search = self.search
        drop = search.scale.drop(self.rivals[0].metric, search.value(found))
        size = search.bytes_of(search.chains.bundle(trial.candidate, self.training.steps))
        return replace(trial, level=LEVELS[3], drop=drop, bytes=size)

    def _measure(self, finalists: Sequence[Trial], trials: list[Trial]) -> Measured:
        search, trained = self.search, self.training.steps
        steps = {
            **{rival.candidate: 0 for rival in self.rivals},
            **{each.candidate: trained for each in finalists},
        }
        bundles = {c.label: made(search.chains.bundle(c, count), search.work) for c, count in steps.items()}
        times = self._times({c.label: search.chains.bundle(c, count) for c, count in steps.items()}, bundles)
        confirmed = saten_edge.evaluate(
            list(bundles.values()),
            search.chains.parts["confirm"].path,
            EvalOptions(reference=bundles[self.rivals[0].candidate.label]),
            progress=search.progress,
        )
        values = {row["bundle"]: search.value(row) for row in confirmed["rows"]}
        rows = [self._row(rival.candidate, None, rival.metric, values, times, rival.bytes) for rival in self.rivals]
        for trial in finalists:
            steered = outcome_of(search.chains.judged(trial.candidate, "steer", trained), search.work)
            rows.append(self._row(trial.candidate, trial.number, search.value(steered), values, times, trial.bytes))
        return Measured(rows, bundles, times, confirmed, trials, trained)

    def _row(
        self,
        candidate: Candidate,
        trial: int | None,
        steer: float | None,
        confirm: Mapping[str, float | None],
        times: Times,
        size: int,
    ) -> Row:
        scale, first = self.search.scale, self.rivals[0]
        dense, found = confirm[first.candidate.label], confirm[candidate.label]
        drops = scale.drop(first.metric, steer), scale.drop(dense, found)
        measured = times.of(candidate.label)
        ms = slowest(measured.values())
        named = {device: value for device, value in measured.items() if device}
        return Row(candidate.label, candidate, trial, size, ms, steer, drops[0], found, drops[1], named)

    def _times(self, tasks: Mapping[str, Task], bundles: Mapping[str, Path]) -> Times:
        """In turns; a run that was killed is gone on with."""
        options, paths = self.search.options, list(bundles.values())
        first = Bundle.open(paths[0])
        longest = first.tokenizer.max_length if first.manifest.tokenizer else options.tokens
        tokens = min(options.tokens, longest)
        plan = Plan(tokens=(tokens,), generate=(min(tokens, 32),), rounds=options.rounds)
        key = key_of([[task.key for task in tasks.values()], plan.to_json()])
        return measure(paths, plan, self.devices, self.search.work / f"bench-{key}", self.search.progress)


def slowest(times: Iterable[float | None]) -> float | None:
    """The longest of some times; None where one is missing."""
    found = list(times)
    return None if None in found else max(each for each in found if each is not None)


def _replaced(trials: Sequence[Trial], by: Sequence[Trial]) -> list[Trial]:
    newer = {trial.number: trial for trial in by}
    return [newer.get(trial.number, trial) for trial in trials]
