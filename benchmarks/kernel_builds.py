"""Two builds of the native kernels in turn, as `python benchmarks/kernel_builds.py LIBRARY BASELINE`.

The nodes of benchmarks/kernels.py, each once on either library, one thread, in one process. The two take turns, and the
shortest run of each counts: others' turns on a shared machine only ever add. A ratio is baseline time over library
time. Ends with exit code 1 where the geometric mean of the nodes, at
either number of rows, lies below `--at-least`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

import numpy as np
from peers.results import markdown

from kernels import GROUPS, MANY_ROWS, Subject, layer, ours, turn


def subjects_of(library: Path, inputs: int, outputs: int) -> list[Subject]:
    """Every group size and precision, the residual alone and the whole layer."""
    rng = np.random.default_rng(0)
    made = []
    for group in GROUPS:
        parts, name = layer(inputs, outputs, 48, 0.10, group, rng), f"blocks of {group}" if group > 1 else "CSR"
        for precision in ("fp32", "int8"):
            made.append(ours(parts, precision, False, f"{name} {precision}", library))
            made.append(ours(parts, precision, True, f"low rank + {name} {precision}", library))
    return made


def ratio(subject: Subject, baseline: Subject, x: np.ndarray, rounds: int) -> float:
    """How many times as fast as the baseline."""
    shortest = {id(subject): math.inf, id(baseline): math.inf}
    for number in range(rounds):
        for each in (subject, baseline) if number % 2 else (baseline, subject):
            shortest[id(each)] = min(shortest[id(each)], turn(each, x))
    return shortest[id(baseline)] / shortest[id(subject)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("--shape", default="768x3072", help="inputs × outputs (default: 768x3072)")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--at-least", type=float, default=0.97)
    arguments = parser.parse_args()
    inputs, outputs = map(int, arguments.shape.split("x"))
    ours_and_theirs = [subjects_of(file.resolve(), inputs, outputs) for file in (arguments.library, arguments.baseline)]
    rng = np.random.default_rng(1)
    found: dict[int, list[float]] = {}
    for rows in (MANY_ROWS, 1):
        x = rng.standard_normal((rows, inputs), np.float32)
        found[rows] = [ratio(*pair, x, arguments.rounds) for pair in zip(*ours_and_theirs, strict=True)]
    means = {rows: math.exp(statistics.fmean(map(math.log, ratios))) for rows, ratios in found.items()}
    lines = [
        (subject.name, *(f"{found[rows][number]:.2f}" for rows in found))
        for number, subject in enumerate(ours_and_theirs[0])
    ]
    lines.append(("geometric mean", *(f"{mean:.3f}" for mean in means.values())))
    print(markdown(("node", *(f"{rows} rows" for rows in found)), lines))
    sys.exit(0 if min(means.values()) >= arguments.at_least else 1)


if __name__ == "__main__":
    main()
