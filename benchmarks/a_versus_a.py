"""Does the benchmark know that a bundle equals itself? `python benchmarks/a_versus_a.py BUNDLE [--runs 20] [-o FILE]`.

Each run measures the bundle against itself; the interval of the ratio should contain 1. Then a slowdown is planted:
every sample of one side is made 5 % longer before the interval is computed, and should be found. Prints a Markdown
table and writes every ratio as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from saten_runtime.bench import Plan, bench
from saten_runtime.journal import SAMPLES_FILE
from saten_runtime.jsonl import read_lines
from saten_runtime.stats import Ratio, paired_ratio

SLOWDOWN = 1.05


def one_run(bundle: Path, plan: Plan) -> tuple[Ratio, Ratio]:
    """Ratio of the bundle to itself, and with the planted slowdown."""
    with tempfile.TemporaryDirectory() as folder:
        bench([bundle, bundle], plan, output=Path(folder) / "run")
        rows = [row for row in read_lines(Path(folder) / "run" / SAMPLES_FILE) if row["kind"] == "samples"]
    names = sorted({row["bundle"] for row in rows})
    first, second = ([row["samples_ns"] for row in rows if row["bundle"] == name] for name in names)
    slower = [[SLOWDOWN * sample for sample in samples] for samples in second]
    return paired_ratio(second, first), paired_ratio(slower, first)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--min-time", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    plan = Plan(tokens=(arguments.tokens,), rounds=arguments.rounds, min_time_s=arguments.min_time, floor=False)
    pairs = [one_run(arguments.bundle, plan) for _ in range(arguments.runs)]
    equal = sum(same.low <= 1 <= same.high for same, _ in pairs)
    found = sum(slower.low > 1 for _, slower in pairs)
    print("| run | A / A | interval | A × 1.05 / A | interval |\n|--:|--:|---|--:|---|")
    for number, (same, slower) in enumerate(pairs, 1):
        cells = (f"{one.value:.4f} | {one.low:.4f}–{one.high:.4f}" for one in (same, slower))
        print(f"| {number} | {' | '.join(cells)} |")
    print(f"\nContain 1: {equal} of {len(pairs)}. Slowdown of 5 % found: {found} of {len(pairs)}.")
    if arguments.output:
        rows = [{"same": vars(same), "slower": vars(slower)} for same, slower in pairs]
        arguments.output.write_text(json.dumps({"contain_1": equal, "slowdown_found": found, "runs": rows}, indent=2))


if __name__ == "__main__":
    main()
