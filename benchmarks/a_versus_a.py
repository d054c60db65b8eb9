"""Does the benchmark know that a bundle equals itself? `python benchmarks/a_versus_a.py BUNDLE [--runs 20]`.

Each run measures the bundle against itself; the interval of the ratio should contain 1. Then a slowdown is planted:
every sample of one side is made 5 % longer before the interval is computed, and should be found. Prints a Markdown
table and stores it, and every ratio as JSON, anew after every run. Exit code 1 when fewer than nine in ten runs
contain 1, or find the slowdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from peers.results import RESULTS, markdown, publish

from saten_runtime.bench.journal import SAMPLES_FILE
from saten_runtime.bench.measure import Plan, bench
from saten_runtime.bench.stats import Ratio, paired_ratio
from saten_runtime.records.jsonl import read_lines

SLOWDOWN = 1.05
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Run:
    """same: ratio of the bundle to itself; slower: with the planted slowdown; reasons: why the run is invalid."""

    same: Ratio
    slower: Ratio
    reasons: list[str]

    @property
    def contains_1(self) -> bool:
        """What the interval of a bundle and itself should do."""
        return self.same.low <= 1 <= self.same.high

    @property
    def finds_slowdown(self) -> bool:
        """Whether the planted slowdown lies beyond the interval."""
        return self.slower.low > 1


def one_run(bundle: Path, plan: Plan) -> tuple[Run, str]:
    """A run, and the bundle's name."""
    with tempfile.TemporaryDirectory() as folder:
        result = bench([bundle, bundle], plan, output=Path(folder) / "run")
        rows = [row for row in read_lines(Path(folder) / "run" / SAMPLES_FILE) if row["kind"] == "samples"]
    names = sorted({row["bundle"] for row in rows})
    first, second = ([row["samples_ns"] for row in rows if row["bundle"] == name] for name in names)
    slower = [[SLOWDOWN * sample for sample in samples] for samples in second]
    return Run(paired_ratio(second, first), paired_ratio(slower, first), result.verdict.reasons), result.cells[0].bundle


def table(runs: list[Run]) -> str:
    """The counts, then every run."""
    head = ("run", "A / A", "interval", f"A × {SLOWDOWN} / A", "interval", "valid")
    lines = [
        (
            str(number),
            *(text for one in (run.same, run.slower) for text in (f"{one.value:.4f}", f"{one.low:.4f}–{one.high:.4f}")),
            "no" if run.reasons else "yes",
        )
        for number, run in enumerate(runs, 1)
    ]
    equal, found = (sum(marks) for marks in ((r.contains_1 for r in runs), (r.finds_slowdown for r in runs)))
    said = f"Contain 1: {equal} of {len(runs)}. Slowdown of {SLOWDOWN - 1:.0%} found: {found} of {len(runs)}."
    return f"{said}\n\n### All runs\n\n{markdown(head, lines)}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--min-time", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "a_versus_a.json")
    arguments = parser.parse_args()
    plan = Plan(tokens=(arguments.tokens,), rounds=arguments.rounds, min_time_s=arguments.min_time, floor=False)
    runs: list[Run] = []
    for number in range(1, arguments.runs + 1):
        print(f"run {number} of {arguments.runs}", file=sys.stderr)
        run, name = one_run(arguments.bundle, plan)
        runs.append(run)
        counts = {"contain_1": sum(r.contains_1 for r in runs), "slowdown_found": sum(r.finds_slowdown for r in runs)}
        publish(arguments.output, list(map(asdict, runs)), table(runs), **counts, bundle=name, plan=plan.to_json())
    least = LEAST_SHARE * len(runs)
    passed = all(sum(marks) >= least for marks in ([r.contains_1 for r in runs], [r.finds_slowdown for r in runs]))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
