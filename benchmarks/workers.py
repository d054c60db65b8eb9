"""How much faster several workers compress than one, as `python benchmarks/workers.py --work artifacts [-o FILE.json]`.

A random model of BERT-base's shape is compressed as `saten-edge compress --workers N` does it by default, with one
worker and with two, in turns, each in a process of its own. Seconds are those of the whole command but for imports of
its first process; each worker's own imports count. Every run has to write the same bytes. A run beside which another
program took a tenth of a core makes the ratio invalid: it is kept in the JSON file and not shown.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.commands import saten_edge
from peers.results import RESULTS, markdown, publish, short
from toolchain import SIZES, random_model

from saten_runtime.bench.stats import paired_ratio
from saten_runtime.machine.load import busy_programs
from saten_runtime.records.files import sha256_file

WORKERS = (1, 2)
LEAST_SPEED_UP = 1.6
QUICK = ("--rounds", 1, "--share", 0.8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and what is made of it")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "workers.json")
    parser.add_argument("--rounds", type=int, default=3, help="times that each number of workers is tried")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round at one split")
    arguments = parser.parse_args()
    name, told = ("tiny", QUICK) if arguments.quick else ("bert-base", ())
    rounds = 1 if arguments.quick else arguments.rounds
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = measured(random_model(arguments.work / name, SIZES[name]), arguments.work, told, rounds)
    publish(arguments.output, rows, table(name, rows))
    return 0


def measured(model: Path, work: Path, told: Sequence[object], rounds: int) -> list[dict[str, Any]]:
    """One object for each number of workers.

    Raises:
        SystemExit: two runs wrote different bytes.
    """
    saten_edge("compress", "--help")  # imports count in no run
    runs = [[compressed(model, work / f"by-{count}", count, told) for count in WORKERS] for _ in range(rounds)]
    written = {run["sha256"] for turn in runs for run in turn}
    if len(written) > 1:
        raise SystemExit(f"{model}: the bytes depend on the number of workers or the run")
    by_count = list(zip(*runs, strict=True))
    seconds = [[[run["seconds"]] for run in column] for column in by_count]
    rows = []
    for count, column, own in zip(WORKERS, by_count, seconds, strict=True):
        ratio = vars(paired_ratio(seconds[0], own)) if count > 1 and rounds > 1 else None
        busy = sorted({name for run in column for name in run["busy"]})
        row = {"workers": count, "seconds": [run["seconds"] for run in column], "busy": busy}
        rows.append({**row, "sha256": column[0]["sha256"], "speed_up": ratio})
    return rows


def compressed(model: Path, out: Path, workers: int, told: Sequence[object]) -> dict[str, Any]:
    """One run."""
    busy = [program.name for program in busy_programs()]
    started = time.monotonic()
    saten_edge("compress", model, "-o", out, "--budget", 0.25, "--workers", workers, *told, "--overwrite")
    seconds = time.monotonic() - started
    found = {"seconds": seconds, "sha256": weights_of(out), "busy": busy}
    shutil.rmtree(out)
    return found


def weights_of(folder: Path) -> str:
    """Of all shards together."""
    return " ".join(sha256_file(path) for path in sorted(folder.glob("*.safetensors")))


def table(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The medians, and whether two workers are as much faster as they are to be."""
    quiet = not any(row["busy"] for row in rows)
    lines = []
    for row in rows:
        ratio = row["speed_up"] if quiet else None
        shown = short(None) if ratio is None else f"{ratio['value']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
        lines.append((name, str(row["workers"]), f"{statistics.median(row['seconds']):.1f}", shown))
    text = markdown(("model", "workers", "seconds", "times as fast"), lines)
    if not quiet:
        others = ", ".join(sorted({each for row in rows for each in row["busy"]}))
        return f"{text}\n- INVALID: other programs ran ({others})\n"
    last = rows[-1]["speed_up"]
    if last is None:
        return text
    met = "met " if last["value"] >= LEAST_SPEED_UP else "MISS"
    what = f"{WORKERS[-1]} workers: times as fast as one: {last['value']:.2f}"
    return f"{text}\n- {met} {what} (wanted ≥ {LEAST_SPEED_UP})\n"


if __name__ == "__main__":
    sys.exit(main())
