"""`optimize` against random search and rows picked by hand, as `python benchmarks/search.py --work FOLDER`.

    python benchmarks/search.py --work FOLDER --models FOLDER --data FOLDER [--tasks sst2,stsb] [--minutes 90]
    python benchmarks/search.py --work FOLDER --quick

Three ways to spend the minutes on a dense model of accuracy.py, each with two seeds: the search of `saten-edge
optimize`; candidates of its space drawn at random (Optuna's RandomSampler), each fine-tuned fully; and the kinds of
rows of the encoder table, fine-tuned as long, which take what they take. All have the same stages, judge and dense
models, and all of them measure what they fine-tuned fully.

A way is worth the volume that its bundles and the dense ones dominate (Zitzler & Thiele, PPSN V, 1998; computed by
moocore), of points lost on the part of the judge that confirms × median time × bytes. The reference point is 10 points
lost at dense float32's time and bytes; axes are shares of these, so that 1 is all there is. Measured times count where
the run was valid. Times that the cost model predicts do not depend on who else uses the machine, and stand beside them.

A cell is a way and a seed, and its result one JSON file; a cell that has one is not made again. One that was stopped
begins anew, as its minutes are over. --quick makes a tiny model, and one cell of each way in moments.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from peers.comparison import say
from peers.results import RESULTS, markdown, publish, short

from saten_edge.optimize import optimize, search
from saten_edge.optimize.estimate import Layers, estimate
from saten_edge.optimize.finals import Finals
from saten_edge.optimize.goal import Row
from saten_edge.optimize.inputs import Given, read_inputs, settled
from saten_edge.optimize.lengths import Training
from saten_edge.optimize.output import RESULT_FILE, WORK, claim
from saten_edge.optimize.pricing import pricing_of
from saten_edge.optimize.run import searching
from saten_edge.optimize.search import Search
from saten_edge.optimize.space import RIVALS, Candidate, drawn
from saten_edge.optimize.study import LEVELS, Trial, optuna_here
from saten_edge.options import OptimizeOptions
from saten_edge.texts import write_lines
from saten_runtime.errors import DataError, SatenError
from saten_runtime.records.files import read_json, write_json

TASKS, SEEDS = ("sst2", "stsb"), (0, 1)
# Points lost where the volume begins; time and bytes begin at dense float32's.
MOST_LOST = 10.0
REFERENCE = (1.0, 1.0, 1.0)
# The kinds of rows of the encoder table, their bytes counted as the search does.
BY_HAND = tuple(
    Candidate(family, precision, 0.25, pattern, 16)
    for family, pattern, precision in (
        *(("svd", "none", precision) for precision in ("int8", "int4")),
        *(("saten", pattern, "int8") for pattern in ("grouped", "2:4", "unstructured", "1:8")),
        *(("saten", pattern, "int4") for pattern in ("unstructured", "1:8")),
    )
)
MANY = 99  # finalists: as many as fit into the minutes


@dataclass(frozen=True)
class Subject:
    """A dense model and its data. quick: of the quick run."""

    name: str
    model: Path
    data: Path
    judge: Path
    quick: bool = False


@dataclass(frozen=True)
class Cell:
    """A way to spend the minutes, with a seed."""

    way: str
    subject: Subject
    options: OptimizeOptions
    work: Path
    results: Path

    @property
    def name(self) -> str:
        """Of its folder and its result."""
        return f"{self.subject.name}-{self.way}-{self.options.seed}"

    @property
    def result(self) -> Path:
        """Its numbers."""
        return self.results / f"{self.name}.json"

    def given(self) -> Given:
        """What it starts from."""
        about = self.subject
        return read_inputs(str(about.model), about.data, about.judge, self.options)

    def make(self) -> None:
        """Spend the minutes, and write down what came of it."""
        out, began = self.work / self.name, time.monotonic()
        rows, tried, reasons = WAYS[self.way](self, out)
        layers = self.given().layers
        written = {
            "task": self.subject.name,
            "way": self.way,
            "seed": self.options.seed,
            "minutes": self.options.minutes if math.isfinite(self.options.minutes) else None,
            "spent_minutes": (time.monotonic() - began) / 60,
            "tried": tried,
            "reasons": reasons,
            "points": [point(row, layers, self.options) for row in rows],
        }
        self.results.mkdir(parents=True, exist_ok=True)
        write_json(self.result, written)
        shutil.rmtree(out / WORK)


# What was measured, how many candidates were computed, and why times must not be believed.
Outcome = tuple[Sequence[Row], int, Sequence[str]]


def by_optimize(cell: Cell, out: Path) -> Outcome:
    """The search of the command."""
    about = cell.subject
    found = optimize(about.model, out, about.data, about.judge, cell.options, overwrite=True)
    result = read_json(out / RESULT_FILE, DataError)
    return found.rows, sum(trial["level"] != LEVELS[0] for trial in result["trials"]), result["reasons"]


def at_random(cell: Cell, out: Path) -> Outcome:
    """Candidates drawn evenly from the space, until the minutes or trials are over."""
    optuna, most = optuna_here(), cell.options.trials
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=cell.options.seed))
    given = cell.given()
    draws = (drawn(study.ask(), trims=given.layers.trims) for _ in itertools.count())
    return fully(cell, given, out, itertools.islice(unique(draws), most), cell.options.minutes)


def by_hand(cell: Cell, out: Path) -> Outcome:
    """The rows of the encoder table, all of them."""
    return fully(cell, cell.given(), out, iter(BY_HAND[: 1 if cell.subject.quick else None]), math.inf)


WAYS: Mapping[str, Callable[[Cell, Path], Outcome]] = {
    "optimize": by_optimize,
    "random": at_random,
    "by hand": by_hand,
}


def unique(candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    """Each once."""
    seen: set[Candidate] = set()
    for candidate in candidates:
        if candidate not in seen:
            seen.add(candidate)
            yield candidate


def fully(cell: Cell, given: Given, out: Path, candidates: Iterator[Candidate], minutes: float) -> Outcome:
    """Fine-tune one candidate after the other fully, as many at once as there are workers, and measure them all."""
    about, began = cell.subject, time.monotonic()
    options = settled(cell.options, about.data)
    claim(out, options, given.hashes, [about.model, about.data, about.judge], resume=False, overwrite=True)
    with searching(given, out, options, pricing_of(options, ()), None, began) as found:
        rivals = found.rivals()
        trials = list(tried_fully(found, rivals[0].metric, candidates, minutes))
        measured = Finals(found, rivals, Training(max(1, len(trials)), options.usual_steps)).run(trials)
    return measured.rows, len(trials), measured.times.reasons


def tried_fully(found: Search, dense: float, candidates: Iterator[Candidate], minutes: float) -> Iterator[Trial]:
    """What became of candidates; what is under way when the minutes are over is finished. dense: the metric."""
    steps, number = found.options.usual_steps, itertools.count()
    while (time.monotonic() - found.began) / 60 < minutes:
        batch = list(itertools.islice(candidates, found.engine.workers))
        if not batch:
            return
        outcomes = found.outcomes("trials", [found.chains.judged(each, "steer", steps) for each in batch])
        for candidate, outcome in zip(batch, outcomes, strict=True):
            predicted, why = found.predicted(candidate), outcome.get("refused", "")
            trial = Trial(next(number), 0, candidate, predicted.bytes, predicted.us, LEVELS[2], why=why)
            if not why:
                size = found.bytes_of(found.chains.bundle(candidate, steps))
                trial = replace(trial, bytes=size, drop=found.scale.drop(dense, found.value(outcome)))
            yield trial


def point(row: Row, layers: Layers, options: OptimizeOptions) -> dict[str, Any]:
    """A measured bundle. us: as the cost model has it."""
    us = estimate(row.candidate, layers, options.target, options.tokens).us
    return {
        **{name: getattr(row, name) for name in ("name", "bytes", "ms", "drop", "confirm_drop", "dense")},
        **{"us": us, "candidate": asdict(row.candidate)},
    }


def volume(points: Sequence[Mapping[str, Any]], time_of: str) -> float:
    """The volume that a way's bundles and the dense ones dominate; time_of: "ms" or "us"."""
    import moocore

    first = next(each for each in points if each["name"] == "dense-fp32")
    shares = [
        (each["confirm_drop"] / MOST_LOST, each[time_of] / first[time_of], each["bytes"] / first["bytes"])
        for each in points
        if each[time_of] is not None
    ]
    return float(moocore.hypervolume(shares, ref=REFERENCE))


def shown(found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table; what is measured where the run was valid."""
    points = found["points"]
    within = [each["bytes"] for each in points if max(each["drop"], each["confirm_drop"]) <= 1 and not each["dense"]]
    measured = None if found["reasons"] else volume(points, "ms")
    volumes = {"volume": measured, "predicted_volume": volume(points, "us")}
    count = sum(not each["dense"] for each in points)
    return {**found, **volumes, "measured": count, "smallest_bytes": min(within, default=None)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The ways beside each other, and whether the search is at least as good as the others."""
    head = (
        "task",
        "way",
        "seed",
        "minutes",
        "tried",
        "measured",
        "volume",
        "with predicted times",
        "MB within 1 point",
    )
    lines = [
        (
            row["task"],
            row["way"],
            str(row["seed"]),
            f"{row['spent_minutes']:.0f}",
            str(row["tried"]),
            str(row["measured"]),
            short(row["volume"], "{:.4f}"),
            f"{row['predicted_volume']:.4f}",
            short(row["smallest_bytes"] and row["smallest_bytes"] / 1e6, "{:.2f}"),
        )
        for row in rows
    ]
    return "".join([markdown(head, lines, texts=2), "\n", *map(verdict, against(rows))])


def against(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The search beside every other way of its task and seed."""
    for row, other in itertools.product(rows, rows):
        same = (row["task"], row["seed"]) == (other["task"], other["seed"])
        if same and row["way"] == "optimize" != other["way"]:
            yield row, other


def verdict(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> str:
    """Whether the first is as good as the second, by measured times where both have them."""
    valid = all(row["volume"] is not None for row in pair)
    key, which = ("volume", "measured") if valid else ("predicted_volume", "predicted")
    mine, others = (row[key] for row in pair)
    first, second = pair
    met = "met " if mine >= others else "MISS"
    return (
        f"- {met} {first['task']}, seed {first['seed']}, {which} times: optimize {mine:.4f} "
        f"(wanted ≥ {second['way']}'s {others:.4f})\n"
    )


def tiny_subject(work: Path) -> Subject:
    """A random classifier and texts of which one word says the class."""
    from toolchain import SIZES, SMALL, random_model

    sizes = {**SIZES["bert-base"], **SMALL, "architectures": ["BertForSequenceClassification"], "num_labels": 2}
    order = random.Random(0)
    rows = []
    for number in range(96):
        words = [*order.choices(["reads", "the", "number", "of", "returns"], k=5), ["file", "path"][number % 2]]
        rows.append({"text": f"{' '.join(words)} {number}", "label": number % 2})
    model = random_model(work / "model", sizes)
    for name, part in (("train", rows[:64]), ("judge", rows[64:])):
        write_lines(work / f"{name}.jsonl", part)
    return Subject("tiny", model, work / "train.jsonl", work / "judge.jsonl", quick=True)


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Every cell of the table."""
    work, results = arguments.work.resolve(), arguments.output.with_suffix("").resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.quick:
        once = {"steps": 2, "short_steps": 2, "batch_size": 8, "max_length": 16, "calibration_texts": 8, "tokens": 8}
        # a seed whose random candidate pays for all parts of the tiny model
        quick = OptimizeOptions(**once, rounds=1, trials=1, finalists=1, workers=1, max_drop=100, seed=3)
        return [Cell(way, tiny_subject(work), quick, work, work / "results") for way in WAYS]
    options = OptimizeOptions(minutes=arguments.minutes, finalists=MANY, steps=arguments.steps)
    subjects = [
        Subject(
            task,
            arguments.models / f"{task}-dense-fp32-1.00-0" / "finetuned",
            *(arguments.data / task / f"{name}.jsonl" for name in ("train", "validation")),
        )
        for task in arguments.tasks.split(",")
    ]
    return [
        Cell(way, subject, replace(options, seed=seed), work, results)
        for subject, seed, way in itertools.product(subjects, SEEDS, WAYS)
    ]


def main() -> int:
    """Make the cells that have no result, and print the table of all that have one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made; kept for the next run")
    parser.add_argument("--models", type=Path, help="folder of accuracy.py's checkpoints")
    parser.add_argument("--data", type=Path, help="folder that benchmarks/glue.py writes")
    parser.add_argument("--tasks", default=",".join(TASKS), help="with commas between")
    parser.add_argument("--minutes", type=float, default=90, help="of a search, and of the random one")
    parser.add_argument("--steps", type=int, default=400, help="of a full fine-tuning")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one candidate of each way")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "search.json")
    arguments = parser.parse_args()
    if not arguments.quick and not (arguments.models and arguments.data):
        parser.error("--models and --data, or --quick")
    try:
        optuna_here()
        import moocore  # noqa: F401
    except (ImportError, SatenError):
        say("left out: it needs Optuna and moocore, which the extras optimize and bench have")
        return 0
    cells = cells_of(arguments)
    with patch.object(search, "RIVALS", RIVALS[: 1 if arguments.quick else None]):
        for cell in cells:
            if not cell.result.is_file():
                say(f"{cell.name} …")
                cell.make()
    rows = [shown(read_json(cell.result, DataError)) for cell in cells if cell.result.is_file()]
    publish(arguments.output, rows, table(rows), reference={"points": MOST_LOST, "time": 1, "bytes": 1})
    return 0


if __name__ == "__main__":
    sys.exit(main())
