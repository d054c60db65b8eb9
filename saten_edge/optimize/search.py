"""The search: batches of trials at rising cost, each step dropping what cannot win any more."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saten_edge.console import Progress, told
from saten_edge.engines import Pool
from saten_edge.optimize.chains import Chains
from saten_edge.optimize.estimate import Estimate, Layers, estimate
from saten_edge.optimize.judging import Scale
from saten_edge.optimize.outcomes import failure, is_defect
from saten_edge.optimize.pricing import Pricing
from saten_edge.optimize.space import RIVALS, Candidate, offered
from saten_edge.optimize.study import LEVELS, Study, Trial
from saten_edge.optimize.tasks import Input, Task, folder_of, forget, outcome_of
from saten_edge.options import OptimizeOptions
from saten_runtime.errors import DataError, DefectError, ExportError

__all__ = ["Rival", "Search", "beside", "refuse_failures"]

# Trials that are asked for together and told together, whatever the number of workers, so that the set is the same.
BATCH = 4
# Candidates that a batch may pass over for nothing.
MOST_ASKED = 32
# So many first trials that all fail by a defect say that every other one would.
FIRST = 4
# A prediction has to be so far above a limit before it costs a candidate its place.
MARGIN = 1.15
# Of the minutes, what the search takes; the finalists have the rest.
SEARCH_SHARE = 0.4


@dataclass(frozen=True)
class Rival:
    """A dense bundle: what it takes, what it loses on the part that steers, and what it was predicted to take."""

    candidate: Candidate
    bytes: int
    metric: float
    drop: float
    predicted: Estimate


@dataclass
class Search:
    """One search. work: folder of the tasks. metric, scale: what decides. began: of the minutes, monotonic seconds.

    pricing: by which times are predicted and forms chosen. defects: what failed as nobody expected, and how, by label.
    """

    chains: Chains
    layers: Layers
    options: OptimizeOptions
    work: Path
    metric: str
    scale: Scale
    engine: Pool
    study: Study
    progress: Progress | None
    began: float
    pricing: Pricing
    defects: dict[str, str] = field(default_factory=dict)

    def rivals(self) -> list[Rival]:
        """The dense bundles, float32 first, trimmed ones last; without those that a stage refuses or fails with.

        Raises:
            ExportError, DataError, DefectError: not even float32 can be exported and judged.
        """
        if isinstance(self.chains.dense, Task):  # once, for all that follows waits for it
            self.outcomes("fine-tune the dense model on the labels", [self.chains.dense])
        if self.layers.trims:
            self.outcomes("trim the vocabulary to the words of the training texts", [self.chains.trimmed])
        tried = offered(RIVALS, trims=self.layers.trims)
        tasks = [self.chains.judged(each, "steer") for each in tried]
        outcomes = self.outcomes("export and judge the dense model", tasks)
        reasons = [self.failure(*pair) for pair in zip(tried, outcomes, strict=True)]
        if is_defect(reasons[0]):
            raise DefectError(f"the dense model: {reasons[0]}")
        if reasons[0]:
            raise ExportError(f"the dense model: {outcomes[0]['refused']}")
        first = self.value(outcomes[0])
        if first is None:
            raise DataError(f"--judge: {self.metric} is not defined for the dense model's answers; choose --metric")
        return [
            Rival(
                candidate,
                self.bytes_of(self.chains.bundle(candidate)),
                self.value(found) or 0.0,
                self.scale.drop(first, self.value(found)),
                self.predicted(candidate),
            )
            for candidate, found, why in zip(tried, outcomes, reasons, strict=True)
            if not why
        ]

    def run(self, rivals: Sequence[Rival]) -> list[Trial]:
        """Ask, judge and tell until trials or minutes are at their end; all trials that there are then.

        Raises:
            DefectError: the first trials all failed by one. Their batch is not told, so that a sound version tries it.
        """
        while self._goes_on():
            told_before = self.study.told
            batch = self._next_batch(told_before)
            trials = self._propose(batch, rivals)
            known = {trial.number for trial in told_before}
            new = [trial for trial in self._judge_batch(trials, rivals) if trial.number not in known]
            if not new:
                break  # nothing is told, so that the same would be asked for again
            self._refuse_defects([*told_before, *new])
            for trial in new:
                self.study.tell(trial)
        return self.study.told

    def _refuse_defects(self, trials: Sequence[Trial]) -> None:
        enough = int(min(FIRST, self.options.most_trials))
        first = _looked_at(trials)[:enough]
        if len(first) == enough and all(is_defect(trial.why) for trial in first):
            refuse_failures(trials)

    def predicted(self, candidate: Candidate) -> Estimate:
        """Bytes of the weights and time of the layers, by the cost model."""
        options = self.options
        return estimate(candidate, self.layers, options.target, options.tokens, self.pricing.prices)

    def bytes_of(self, bundle: Task) -> int:
        """Of a bundle that was exported."""
        return int(outcome_of(bundle, self.work)["bytes"])

    def looked_at(self, trials: Sequence[Trial]) -> int:
        """How many trials were worth more than a prediction."""
        return len(_looked_at(trials))

    def failure(self, candidate: Candidate, outcome: Mapping[str, Any]) -> str:
        """Why a candidate came to nothing; empty where it did not. A defect is said at once."""
        why = failure(outcome)
        if is_defect(why) and candidate.label not in self.defects:
            self.defects[candidate.label] = why
            with told(self.progress, f"{candidate.label}: {why}"):
                pass
        return why

    def _goes_on(self) -> bool:
        """Whether there are trials and minutes left, and the last batch had something that was worth computing."""
        trials, spent = self.study.told, (time.monotonic() - self.began) / 60
        fruitless = bool(trials) and not self._is_torn(trials) and not self.looked_at(_last_batch(trials))
        return (
            not fruitless
            and self.looked_at(trials) < self.options.most_trials
            and spent < SEARCH_SHARE * self.options.minutes
        )

    def _next_batch(self, trials: Sequence[Trial]) -> int:
        """The batch to go on with: the last, where a kill left it untold, which asking again shows."""
        return max((trial.batch for trial in trials), default=-1) + (not self._is_torn(trials))

    def _is_torn(self, trials: Sequence[Trial]) -> bool:
        return bool(trials) and not any(trial.last for trial in _last_batch(trials))

    def _propose(self, batch: int, rivals: Sequence[Rival]) -> list[Trial]:
        """The trials of a batch, those that a prediction drops among them; none is asked for twice."""
        before = [trial for trial in self.study.told if trial.batch < batch]
        seen = {trial.candidate for trial in before}
        number, wanted = len(before), min(BATCH, self.options.most_trials - self.looked_at(before))
        trials: list[Trial] = []
        for candidate in itertools.islice(self.study.ask(batch), MOST_ASKED):
            if candidate in seen:
                continue
            seen.add(candidate)
            trials.append(self._predict(number + len(trials), batch, candidate, rivals))
            if sum(not trial.why for trial in trials) >= wanted:
                break
        return trials

    def _predict(self, number: int, batch: int, candidate: Candidate, rivals: Sequence[Rival]) -> Trial:
        found = self.predicted(candidate)
        size = beside(rivals, trim=candidate.trim) + found.bytes
        trial = Trial(number, batch, candidate, size, found.us)
        unpaid = f"predicted: {found.unpaid} has too few bytes for any part at {candidate.precision}"
        return replace(trial, why=unpaid if found.unpaid else self._hopeless(trial, rivals))

    def _hopeless(self, trial: Trial, rivals: Sequence[Rival]) -> str:
        """Why a prediction is enough to drop a trial; empty where it is not."""
        limit = self.options.max_mb
        if limit is not None and trial.bytes > MARGIN * 1e6 * limit:
            return f"predicted to take {trial.bytes / 1e6:.1f} MB, --max-mb is {limit:g}"
        if self.options.objective == "accuracy":
            return ""
        for rival in rivals:
            smaller = trial.bytes > MARGIN * rival.bytes and trial.us > MARGIN * rival.predicted.us
            if smaller and rival.drop <= self.options.max_drop:
                return f"cannot win: {rival.candidate.label} is predicted to take fewer bytes and less time"
        return ""

    def _judge_batch(self, trials: list[Trial], rivals: Sequence[Rival]) -> list[Trial]:
        """The trials of a batch with what their last level said."""
        ended = {trial.number: trial for trial in trials if trial.why}
        living = [trial for trial in trials if not trial.why]
        for level, steps in ((LEVELS[1], 0), (LEVELS[2], self.options.short_steps)):
            found = self._at_level(living, level, steps, rivals[0].metric)
            judged = list(_without_hope(found, self.options.objective) if level == LEVELS[1] else found)
            ended |= {trial.number: trial for trial in judged}
            living = [trial for trial in judged if not trial.why]
        self._save_disk(trials, {trial.number for trial in living})
        done = [ended[number] for number in sorted(ended)]
        return [*done[:-1], replace(done[-1], last=True)] if done else []

    def _at_level(self, trials: Sequence[Trial], level: str, steps: int, dense: float) -> list[Trial]:
        if not trials:
            return []
        tasks = [self.chains.judged(trial.candidate, "steer", steps) for trial in trials]
        outcomes = self.outcomes(self._title(trials, level), tasks)
        judged = []
        for trial, found in zip(trials, outcomes, strict=True):
            if why := self.failure(trial.candidate, found):
                judged.append(replace(trial, level=level, drop=None, why=why))
            else:
                drop = self.scale.drop(dense, self.value(found))
                size = self.bytes_of(self.chains.bundle(trial.candidate, steps))
                judged.append(replace(trial, level=level, drop=drop, bytes=size))
        return judged

    def _title(self, trials: Sequence[Trial], level: str) -> str:
        before = self.study.told
        best = min(
            (trial for trial in before if trial.level == LEVELS[2] and trial.drop is not None),
            key=lambda trial: (max(0.0, (trial.drop or 0.0) - self.options.max_drop), trial.bytes),
            default=None,
        )
        first, last = trials[0].number, trials[-1].number
        which = f"trial {first}" if first == last else f"trials {first}-{last}"
        words = [f"{which}, {level}", f"{self.looked_at(before)} done"]
        if best is not None:
            words.append(f"best so far {best.candidate.label}: {best.bytes / 1e6:.1f} MB, {best.drop:.2f} points lost")
        if (left := self._minutes_left(before)) is not None:
            words.append(f"about {left:.0f} min left")
        return "; ".join(words)

    def _minutes_left(self, trials: Sequence[Trial]) -> float | None:
        """Of the search, by the trials that are to come or by its minutes."""
        spent, done = (time.monotonic() - self.began) / 60, self.looked_at(trials)
        by_trials = spent / done * (self.options.most_trials - done) if done else float("inf")
        left = min(by_trials, SEARCH_SHARE * self.options.minutes - spent)
        return max(0.0, left) if left < float("inf") else None

    def outcomes(self, title: str, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """What tasks found that do not wait for each other."""
        with told(self.progress, title) as advance:
            requests = [{"do": "task", "task": task.to_json()} for task in tasks]
            return self.engine.run(requests, _counting(advance, len(tasks)))

    def value(self, outcome: dict[str, Any]) -> float | None:
        """The metric that decides, of an outcome; None where it is not defined for such answers."""
        value = outcome["metrics"].get(self.metric)
        return None if value is None else float(value)

    def _save_disk(self, trials: Sequence[Trial], living: set[int]) -> None:
        """Remove models and bundles that nobody needs again.

        Of a possible finalist the compressed model stays, and its bundle, where a short fine-tuning is a full one.
        """
        chains, short = self.chains, self.options.short_steps
        for trial in trials:
            candidate, lives = trial.candidate, trial.number in living
            spent: list[Input] = [chains.bundle(candidate), chains.checkpoint(candidate, short)]
            spent += [] if lives else [chains.checkpoint(candidate)]
            spent += [] if lives and short == self.options.steps else [chains.bundle(candidate, short)]
            for task in spent:
                if isinstance(task, Task) and folder_of(task, self.work).is_dir():
                    forget(task, self.work)


def beside(rivals: Sequence[Rival], *, trim: bool) -> int:
    """The bytes of graph, tokenizer … that a bundle takes beside its weights, by the first dense one alike."""
    like = next((rival for rival in rivals if rival.candidate.trim is trim), rivals[0])
    return max(0, like.bytes - like.predicted.bytes)


# objective → what a trial is sorted by
SORTED_BY: Mapping[str, Callable[[Trial], tuple[float, int]]] = {
    "accuracy": lambda trial: (trial.objectives[0], trial.number),
    "time": lambda trial: (trial.objectives[1], trial.number),
    "bytes": lambda trial: (trial.objectives[2], trial.number),
}


def refuse_failures(trials: Sequence[Trial]) -> None:
    """Say so where no compression was possible at all; the answer would be a dense model, for the wrong reason.

    Raises:
        ExportError, DefectError: with the first reason.
    """
    looked = _looked_at(trials)
    if not looked or not all(trial.failed for trial in looked):
        return
    first = next((trial for trial in looked if is_defect(trial.why)), looked[0])
    words = f"every compression failed; {first.candidate.label}: {first.why}"
    raise (DefectError if is_defect(first.why) else ExportError)(words)


def _looked_at(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.level != LEVELS[0]]


def _last_batch(trials: Sequence[Trial]) -> list[Trial]:
    last = max(trial.batch for trial in trials)
    return [trial for trial in trials if trial.batch == last]


def _counting(advance: Callable[[float, float, str], None], total: int) -> Callable[[int], None]:
    return lambda done: advance(done, total, f"{done} of {total}")


def _without_hope(trials: Sequence[Trial], objective: str) -> Iterator[Trial]:
    """Those that another of their batch beats before training are dropped, and at most half of the batch is kept.

    What counts then is the place by points lost and the place by the objective, together: neither the largest alone,
    which lose least, nor the smallest alone, which lose most.
    """
    sound = [trial for trial in trials if not trial.why]
    front = [trial for trial in sound if not any(other.beats(trial) for other in sound)]
    by_drop, by_objective = (sorted(front, key=SORTED_BY[name]) for name in ("accuracy", objective))
    places = {trial.number: by_drop.index(trial) + by_objective.index(trial) for trial in front}
    order = sorted(front, key=lambda trial: (places[trial.number], trial.number))
    kept = order[: max(1, -(-len(sound) // 2))]
    for trial in trials:
        winner = next((other for other in sound if other.beats(trial)), None)
        if trial.why or trial in kept:
            yield trial
        elif winner is not None:
            yield replace(trial, why=f"before training, trial {winner.number} loses less in fewer bytes and less time")
        else:
            yield replace(
                trial, why=f"before training, {len(kept)} of its batch are better in accuracy and {objective} together"
            )
