"""What each precision costs and gains, as `python benchmarks/precision.py CHECKPOINT… --data LABELLED.jsonl`.

Exports every checkpoint (dense or Saten) at every precision, scores the bundles on the labelled file and measures them
in turns at 128 tokens on one thread, each round in processes of its own. The table has the bytes of graph and
weights, the task's metrics, the 50th percentile, and its paired ratio to the first checkpoint at fp32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.plots import COLORS, bars
from peers.results import RESULTS, markdown, publish, short

from saten_edge.checkpoints.models import load_model
from saten_exporters import PRECISIONS, export
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bench.measure import bench
from saten_runtime.bench.plan import Plan
from saten_runtime.bundle.folder import Bundle

TOKENS = 128


def bundles_of(checkpoints: Sequence[Path], names: Sequence[str], folder: Path, rows: int) -> list[Bundle]:
    """Every checkpoint at every precision."""
    made = []
    for checkpoint, name in zip(checkpoints, names, strict=True):
        model = load_model(checkpoint)
        for precision in PRECISIONS:
            out = folder / f"{name}-{precision}"
            made.append(export(model, out, name=out.name, precision=precision, rows=rows, max_loss=float("inf")))
    return made


def table(bundles: Sequence[Bundle], data: Path, rounds: int) -> list[dict[str, Any]]:
    """One row per bundle."""
    plan = Plan(threads=[1], tokens=[TOKENS], rounds=rounds)
    cells = {cell.bundle: cell for cell in bench(bundles, plan, baseline=bundles[0]).cells}
    scores = {row.bundle: row.metrics for row in evaluate(bundles, data).rows}
    return [
        {
            "bundle": bundle.name,
            "bytes": bundle.model_bytes,
            **scores[bundle.name],
            "p50_ms": cells[bundle.name].p50_ms,
            "ratio": cells[bundle.name].ratio and vars(cells[bundle.name].ratio),
        }
        for bundle in bundles
    ]


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """The table for people."""
    metrics = [key for key in rows[0] if key not in ("bundle", "bytes", "p50_ms", "ratio")]
    lines = [
        (
            row["bundle"],
            f"{row['bytes'] / 1e6:.1f}",
            *(short(row[metric], "{:.4f}") for metric in metrics),
            short(row["p50_ms"], "{:.2f}"),
            "–" if row["ratio"] is None else "{value:.2f} ({low:.2f}–{high:.2f})".format(**row["ratio"]),
        )
        for row in rows
    ]
    return markdown(("bundle", "MB", *metrics, f"{TOKENS} tokens, p50 ms", "ratio"), lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", help="folders; the first is what the others are compared to"
    )
    parser.add_argument("--names", help="list, one for each checkpoint (default: the folders' names)")
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines with labels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "precision.json")
    arguments = parser.parse_args()
    names = arguments.names.split(",") if arguments.names else [path.name for path in arguments.checkpoints]
    with tempfile.TemporaryDirectory() as folder:
        bundles = bundles_of(arguments.checkpoints, names, Path(folder), TOKENS)
        rows = table(bundles, arguments.data, arguments.rounds)
    times = [(row["bundle"], row["p50_ms"], COLORS["saten-0"]) for row in rows]
    picture = bars("Precisions", f"{TOKENS} tokens, milliseconds, median", times)
    publish(arguments.output, rows, table_text(rows), picture, data=arguments.data.name, tokens=TOKENS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
