"""What a step of a fine-tuning costs, dense and compressed, as `python benchmarks/training.py --work FOLDER`.

all-MiniLM-L6-v2 and what `saten-edge compress` makes of it learn from the dense model, on texts of made-up words as
long as the sentences of SST-2, by `saten-edge finetune`, in turns and each in a process of its own. Steps compute in
float32 weights, or with the bits that an int8 bundle will store. Milliseconds are those of the whole training by its
steps, its first ones included. A run beside which another program took a tenth of a core makes the ratios invalid: they
are kept in the JSON file and not shown.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.commands import saten_edge
from peers.results import RESULTS, markdown, publish, short
from toolchain import packaged

from saten_edge.texts import write_lines
from saten_runtime.bench.stats import paired_ratio
from saten_runtime.machine.load import busy_programs

BATCHES = (32, 128)
# A compressed model's step, with the bits of its bundle, beside a dense one's.
MOST = 1.3
COMPRESS = ("--budget", 0.25, "--pattern", "grouped", "--group", 16)
QUICK = ("--rounds", 1, "--share", 0.8)
TEXTS, MEAN_WORDS, MOST_WORDS = 20_000, 9, 50
WORDS = ["the", "number", "of", "a", "list", "reads", "film", "never", "better", "than", "what", "it", "once"]


@dataclass(frozen=True)
class Row:
    """A training. compressed: of the compressed model; precision: that it rounds for."""

    name: str
    compressed: bool
    precision: str


ROWS = (
    Row("dense", False, "fp32"),
    Row("dense int8", False, "int8"),
    Row("saten", True, "fp32"),
    Row("saten int8", True, "int8"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and what is made of it")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "training.json")
    parser.add_argument("--rounds", type=int, default=5, help="times that each training is tried")
    parser.add_argument("--steps", type=int, default=60, help="of a training")
    parser.add_argument("--quick", action="store_true", help="two rounds of two steps of small batches")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.steps = 2, 2
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for batch in ((4,) if arguments.quick else BATCHES)
        for row in measured(arguments.work, batch, arguments.steps, arguments.rounds, QUICK if arguments.quick else ())
    ]
    publish(arguments.output, rows, table(rows))
    return 0


def measured(work: Path, batch: int, steps: int, rounds: int, told: Sequence[object]) -> list[dict[str, Any]]:
    """One object for each training, batches of so many texts. told: how to compress beside `COMPRESS`."""
    texts, dense = texts_in(work), packaged()
    compressed = work / "compressed"
    if not compressed.is_dir():
        saten_edge("compress", dense, "-o", compressed, *COMPRESS, *(told or ("--calibration", texts)))
    runs = [[trained(row, (dense, compressed), texts, batch, steps) for row in ROWS] for _ in range(rounds)]
    columns = list(zip(*runs, strict=True))
    spent = [[[run["ms"]] for run in column] for column in columns]
    return [
        {
            "batch": batch,
            **vars(row),
            "ms": [run["ms"] for run in column],
            "busy": sorted({name for run in column for name in run["busy"]}),
            "of_dense": vars(paired_ratio(own, spent[0])),
        }
        for row, column, own in zip(ROWS, columns, spent, strict=True)
    ]


def trained(row: Row, models: tuple[Path, Path], texts: Path, batch: int, steps: int) -> dict[str, Any]:
    """One run. models: the dense one, which teaches, and the compressed one."""
    busy, out = [program.name for program in busy_programs()], texts.with_name("trained")
    options = ("--steps", steps, "--batch-size", batch, "--precision", row.precision, "--save-every", steps + 1)
    saten_edge("finetune", models[row.compressed], "-o", out, "--data", texts, "--teacher", models[0], *options)
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    shutil.rmtree(out)
    return {"ms": 1000 * metrics["seconds"] / metrics["steps"], "busy": busy}


def texts_in(work: Path) -> Path:
    """Texts of as many words as a sentence has, most of them short; always the same."""
    path, order = work / "texts.jsonl", random.Random(0)
    if not path.is_file():
        lengths = [min(1 + int(order.expovariate(1 / MEAN_WORDS)), MOST_WORDS) for _ in range(TEXTS)]
        write_lines(path, [{"text": " ".join(order.choices(WORDS, k=length))} for length in lengths])
    return path


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The medians, and whether the last training of the largest batches is near enough to the dense one."""
    others = sorted({name for row in rows for name in row["busy"]})
    lines, verdicts = [], []
    for row in rows:
        ratio = row["of_dense"]
        shown = short(None) if others else f"{ratio['value']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
        lines.append((str(row["batch"]), row["name"], f"{statistics.median(row['ms']):.0f}", shown))
        if row["name"] == ROWS[-1].name and row["batch"] == rows[-1]["batch"]:
            met = "met " if ratio["value"] <= MOST else "MISS"
            verdicts.append(
                f"- {met} {row['name']}, {row['batch']} texts: {ratio['value']:.2f} of dense (wanted ≤ {MOST})"
            )
    if others:
        verdicts = [f"- INVALID: other programs ran ({', '.join(others)})"]
    return f"{markdown(('texts', 'training', 'ms a step', 'of dense'), lines, texts=2)}\n{verdicts[0]}\n"


if __name__ == "__main__":
    sys.exit(main())
