"""One table: rows are made, judged against torch, timed in turns in one run, and written down."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peers.artifacts import ARITHMETIC, Maker, Row, build
from peers.engines import Input
from peers.measure import Column, Contender, Measured, Turns, measure, worker
from peers.plots import COLORS, bars
from peers.results import markdown, publish, short
from saten_runtime.bench.floor import Rates, floor_of, measure_rates, moved_bytes
from saten_runtime.bench.plan import Size
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import SatenError

__all__ = ["Examples", "Timed", "check", "compare", "numbers", "options", "say", "turns"]

# float32 in another order, relative to the largest logit.
EXACT, BOUND = ("fp32", "torch"), 1e-3
# Whatever has fewer bits: relative to the norm of all logits, as `saten-edge export` has it, and how often the class
# is the same, where there are texts enough to tell.
LOOSE = 0.5
AGREEMENT = {"int8": 0.93, "openvino-int8": 0.93, "int8-block": 0.95, "int4": 0.80}
ENOUGH = 100
JUDGES = 2
COLOR_OF = {"dense": "dense-0", "svd": "saten-2", "sparse": "saten-3", "saten": "saten-0"}


@dataclass(frozen=True)
class Examples:
    """inputs: one each, (1, …); labels: as many, or none where nothing is to be learned of accuracy."""

    inputs: Sequence[Input]
    labels: Sequence[int] = ()


@dataclass(frozen=True)
class Timed:
    """column, threads: the cell that is drawn and compared first; also: a second column that ratios are shown of."""

    column: str
    also: str
    threads: int = 1


def options(about: str, *, random: str, quick: str) -> argparse.ArgumentParser:
    """What the command line of every comparison takes; random, quick: what these two make of it."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--random", action="store_true", help=random)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--work", type=Path, required=True, help="folder for the artifacts; kept for the next run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file of the table")
    parser.add_argument("--rounds", type=int, help="default: 4, with --random 3, or 2 if --quick")
    parser.add_argument("--min-time", type=float, help="seconds per cell over all rounds; default: 0.5, or 0.1")
    parser.add_argument("--threads", help="with commas between; default: 1,2, or 1 if --quick")
    parser.add_argument("--only", default="", help="rows whose name contains one of these, with commas between")
    return parser


def turns(arguments: argparse.Namespace, columns: Sequence[Column]) -> Turns:
    """How often and how long the rows take turns, by those options."""
    rounds, min_time, threads = (2, 0.1, "1") if arguments.quick else (3 if arguments.random else 4, 0.5, "1,2")
    return Turns(
        columns,
        numbers(arguments.threads or threads),
        arguments.rounds or rounds,
        arguments.min_time or min_time,
    )


def compare(
    title: str,
    rows: Sequence[Row],
    maker: Maker,
    examples: Examples,
    plan: Turns,
    timed: Timed,
    output: Path,
    notes: Callable[[Sequence[dict[str, Any]]], str] = lambda table: "",
) -> int:
    """Write the table; 1 where a row computes something else than torch, and was not timed for it, or 0.

    notes: what to say below the table.
    """
    built, faults = build(rows, maker)
    scores, wrong = judged(built, maker, examples)
    built = {row: contender for row, contender in built.items() if row in scores}
    bundles = {row: bundle for row in built if (bundle := _bundle(row, built)) is not None}
    before = _rates(bundles, plan)
    measured = measure(list(built.values()), plan, say)
    rates = before.faster(_rates(bundles, plan))
    dense = {row.name: measured[row.name] for row in built if row.dense}
    table = [
        {
            "row": row.name,
            "engine": row.engine,
            "model": row.model,
            "precision": row.precision,
            "kernels": row.kernels,
            "steps": steps_of(maker.checkpoint(row.model)),
            "accuracy": scores[row],
            "bytes": contender.bytes,
            **_timings(measured[row.name], dense, plan, timed),
            "floor_ms": _floors(bundles.get(row), rates, plan),
        }
        for row, contender in built.items()
    ]
    left_out = {row.name: why for row, why in (faults | wrong).items()}
    text = table_text(table, plan, timed) + notes(table)
    text += "".join(f"\n{name}: left out, {why}\n" for name, why in left_out.items())
    facts = {"title": title, "rounds": plan.rounds, "left_out": left_out}
    publish(output, table, text, picture(title, table, timed), **facts)
    return int(bool(wrong))


def steps_of(checkpoint: Path) -> int | None:
    """How many steps a model was trained for; None where its folder does not say."""
    path = checkpoint / "metrics.json"
    return int(json.loads(path.read_text("utf-8"))["steps"]) if path.is_file() else None


def judged(
    built: Mapping[Row, Contender], maker: Maker, examples: Examples
) -> tuple[dict[Row, float | None], dict[Row, str]]:
    """Accuracy of each row that says what torch says, None without labels; and why the others are wrong."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JUDGES) as pool:
        single, together = Path(folder) / "single.npz", Path(folder) / "together.npz"
        order = _by_shape(examples.inputs)
        np.savez(single, *examples.inputs)
        np.savez(together, *(np.concatenate([examples.inputs[k] for k in group]) for group in order))
        place = np.argsort([k for group in order for k in group])
        models = sorted({row.model for row in built})
        jobs = {model: pool.submit(logits, _reference(maker, model), together) for model in models}
        found = {row: pool.submit(logits, contender, single) for row, contender in built.items()}
        expected = {model: job.result()[place] for model, job in jobs.items()}
    scores: dict[Row, float | None] = {}
    wrong: dict[Row, str] = {}
    for row, job in found.items():
        try:
            check(row.precision, said := job.result(), expected[row.model])
            scores[row] = float(np.mean(said.argmax(1) == examples.labels)) if examples.labels else None
        except SatenError as error:
            wrong[row] = str(error)
    return scores, wrong


def _by_shape(inputs: Sequence[Input]) -> list[list[int]]:
    """Numbers of the inputs, those of one shape together, so that a slow reference runs each shape once."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, x in enumerate(inputs):
        groups[x.shape].append(number)
    return list(groups.values())


def _reference(maker: Maker, model: str) -> Contender:
    """What a model's rows are compared with: torch, with the row's own checkpoint."""
    return Contender(f"torch {model}", "torch_eager", maker.checkpoint(model), 0)


def logits(contender: Contender, inputs: Path) -> np.ndarray:
    """(inputs, classes), of a file as `peers.worker` reads it.

    Raises:
        SatenError: the engine cannot run it.
    """
    say(f"{contender.name}: logits")
    with worker(contender, 1) as (child, _):
        return np.array(child.ask("logits", inputs=str(inputs))["logits"])


def check(precision: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Refuse to time what computes something else; both (inputs, classes).

    Raises:
        SatenError: it differs from torch.
    """
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    distance = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    agree = float(np.mean(found.argmax(1) == expected.argmax(1)))
    close = worst <= BOUND if precision in EXACT else distance <= LOOSE
    if not close or (agree < AGREEMENT.get(precision, 0.99) and len(expected) >= ENOUGH):
        raise SatenError(f"differs from torch, by {worst:.2g} of the largest logit, {agree:.1%} agree")


def _bundle(row: Row, built: Mapping[Row, Contender]) -> Bundle | None:
    """What the row's floor is computed from: its own bundle, or ONNX Runtime's of the same arithmetic."""
    precision = ARITHMETIC.get(row.precision, row.precision)
    for each, contender in built.items():
        same = (each.engine, each.model, each.precision) == ("onnxruntime", row.model, precision)
        if each == row or (same and row.engine != "onnxruntime"):
            return Bundle.open(contender.artifact) if each.engine == "onnxruntime" else None
    return None


def _rates(bundles: Mapping[Row, Bundle], plan: Turns) -> Rates:
    sizes = {moved_bytes(bundle, Size(1, column.rows)) for bundle in bundles.values() for column in plan.columns}
    return measure_rates(1, sorted(sizes))


def _floors(bundle: Bundle | None, rates: Rates, plan: Turns) -> dict[str, float]:
    """By column, on one thread."""
    floors = {column.name: bundle and floor_of(bundle, Size(1, column.rows), rates) for column in plan.columns}
    return {name: floor.ms for name, floor in floors.items() if floor}


def _timings(own: Measured, dense: Mapping[str, Measured], plan: Turns, timed: Timed) -> dict[str, Any]:
    """What was measured of one row, and its ratios to dense rows at the columns `timed` names."""
    ratios = {}
    for column in (timed.column, timed.also):
        at = (column, timed.threads)
        fastest = min(dense.values(), key=lambda each: each.median_ms(*at) or np.inf, default=None)
        ratios[column] = {
            "fastest dense": fastest and own.ratio(fastest, *at),
            **{name: own.ratio(each, *at) for name, each in dense.items()},
        }
    return {
        "load_ms": float(np.median(own.load_ns)) / 1e6 if own.load_ns else None,
        "p50_ms": {
            f"{column.name}, {threads} thread{'s' * (threads > 1)}": own.median_ms(column.name, threads)
            for threads in plan.threads
            for column in plan.columns
        },
        "ratio": ratios,
        "peak_anon_bytes": own.peak_anon_bytes,
        "failed": own.failed,
    }


def table_text(table: Sequence[dict[str, Any]], plan: Turns, timed: Timed) -> str:
    """The table for people, and what failed."""
    names = list(table[0]["p50_ms"]) if table else []
    columns = list(dict.fromkeys((timed.column, timed.also)))
    cell = f"{timed.column}, {timed.threads} thread"
    trained = any(row["steps"] for row in table)
    head = ["row", *(["steps"] if trained else []), "accuracy", "MB", "load, ms", *(f"{name}, ms" for name in names)]
    head += [*(f"× fastest dense, {column}" for column in columns), f"× floor, {cell}", "peak anonymous, MB"]
    largest = plan.columns[-1].name
    lines = []
    for row in table:
        floor, time = row["floor_ms"].get(timed.column), row["p50_ms"].get(cell)
        ratios = [row["ratio"][column]["fastest dense"] for column in columns]
        peak = row["peak_anon_bytes"].get(largest)
        lines.append(
            [
                row["row"],
                *([short(row["steps"], "{:.0f}")] if trained else []),
                short(row["accuracy"] and 100 * row["accuracy"], "{:.1f}"),
                f"{row['bytes'] / 1e6:.1f}",
                short(row["load_ms"], "{:.0f}"),
                *(short(row["p50_ms"][name], "{:.2f}") for name in names),
                *("–" if ratio is None else "{:.2f} ({:.2f}–{:.2f})".format(*ratio) for ratio in ratios),
                short(time / floor if time and floor else None, "{:.1f}"),
                short(peak and peak / 1e6, "{:.0f}"),
            ]
        )
    failed = "".join(f"\n{row['row']}: {row['failed']}\n" for row in table if row["failed"])
    return markdown(head, lines) + failed


def picture(title: str, table: Sequence[dict[str, Any]], timed: Timed) -> str | None:
    """Bars of one cell, by kind of row."""
    cell = f"{timed.column}, {timed.threads} thread"
    values = [
        (row["row"], row["p50_ms"][cell], COLORS[_color(row)]) for row in table if row["p50_ms"].get(cell) is not None
    ]
    return bars(f"{title}: {cell}", "milliseconds, median", values) if values else None


def _color(row: dict[str, Any]) -> str:
    if row["kernels"]:
        return "saten-1"
    return next(color for start, color in COLOR_OF.items() if row["model"].startswith(start))


def say(line: str) -> None:
    """Talk on stderr, a line at once, as several rows are checked at a time."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def numbers(text: str) -> tuple[int, ...]:
    """A list of the command line, with commas."""
    return tuple(int(part) for part in text.split(","))
