"""How many finalists there are, and how long each is trained: what was asked for, or what the minutes pay for."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from statistics import median

from saten_edge.optimize.search import Search
from saten_edge.optimize.space import RIVALS
from saten_edge.optimize.study import LEVELS
from saten_edge.optimize.tasks import Task, outcome_of
from saten_edge.options import DEFAULT_BATCH, OptimizeOptions
from saten_edge.texts import read_items

__all__ = ["Training", "measuring_minutes", "training_of"]

# Of the time that is left, what training is planned to take: steps late in a search are not faster than early ones.
PLANNED = 0.85
# Passes over the data at most: as many as the benchmarks train on small data sets; more would learn them by heart.
MOST_PASSES = 10
# Bundles that are started and measured in a minute.
MEASURED_IN_A_MINUTE = 12


@dataclass(frozen=True)
class Training:
    """finalists: at most; steps: of each."""

    finalists: int
    steps: int


def training_of(search: Search) -> Training:
    """Of the finalists of a search, decided once: who goes on with it in as many minutes trains as long."""
    options = search.options
    asked = [options.finalists, options.steps, None if math.isinf(options.minutes) else options.minutes]
    known = search.study.said("training")
    if known is not None and known["asked"] == asked:
        return Training(**known["training"])
    found = _fitting(search)
    search.study.describe("training", {"asked": asked, "training": asdict(found)})
    return found


def measuring_minutes(options: OptimizeOptions, finalists: int) -> float:
    """About what it takes to measure finalists and dense models in turns."""
    return options.rounds * (len(RIVALS) + finalists) / MEASURED_IN_A_MINUTE


def _fitting(search: Search) -> Training:
    """As many finalists as can be trained for the usual steps; without `--steps` each as long as the minutes allow."""
    options, step_s = search.options, _seconds_of_a_step(search)
    if math.isinf(options.minutes) or not step_s:
        return Training(options.finalists, options.usual_steps)
    spent = (time.monotonic() - search.began) / 60
    left_s = 60 * (options.minutes - spent - measuring_minutes(options, options.finalists)) * PLANNED
    payable = max(0, int(left_s * search.engine.workers / step_s))  # steps of all finalists together
    count = min(options.finalists, max(1, payable // options.usual_steps))
    if options.steps is not None:
        return Training(count, options.steps)
    at_once = math.ceil(count / search.engine.workers)
    most = max(options.usual_steps, MOST_PASSES * _examples(search) // (options.batch_size or DEFAULT_BATCH))
    return Training(count, max(options.short_steps, min(most, int(left_s / step_s / at_once))))


def _seconds_of_a_step(search: Search) -> float:
    """The median of the short fine-tunings, which one that shared its cores does not move; 0 where there were none."""
    short = search.options.short_steps
    tasks = [
        search.chains.checkpoint(trial.candidate, short)
        for trial in search.study.told
        if trial.level == LEVELS[2] and trial.drop is not None
    ]
    spent = [float(outcome_of(task, search.work)["training_s"]) for task in tasks if isinstance(task, Task)]
    return (median(spent) if spent else 0.0) / short


def _examples(search: Search) -> int:
    """Of the training data."""
    return len(read_items(search.chains.data.path))
