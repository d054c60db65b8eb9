"""Does the benchmark know that a bundle equals itself? `python benchmarks/a_versus_a.py BUNDLE [--runs 20]`.

Each run measures the bundle against itself; the interval of the ratio should contain 1. Then a slowdown is planted:
every sample of one side is made 5 % longer before the interval is computed, and should be found. On a quiet machine,
each run should be valid, too. Prints a Markdown table and stores it, and every ratio as JSON, anew after every run.
Exit code 1 when fewer than nine in ten runs contain 1, find the slowdown, or are valid.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
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

    @property
    def valid(self) -> bool:
        """The verdict on the run."""
        return not self.reasons


# How `table` counts them → which runs; nine in ten should be.
COUNTED: dict[str, Callable[[Run], bool]] = {
    "Contain 1": lambda run: run.contains_1,
    f"Slowdown of {SLOWDOWN - 1:.0%} found": lambda run: run.finds_slowdown,
    "Valid": lambda run: run.valid,
}


def counts(runs: Sequence[Run]) -> dict[str, int]:
    """How many of the runs are as they should be, by the names in `COUNTED`."""
    return {name: sum(map(judged, runs)) for name, judged in COUNTED.items()}


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
            "yes" if run.valid else "no",
        )
        for number, run in enumerate(runs, 1)
    ]
    said = " ".join(f"{name}: {count} of {len(runs)}." for name, count in counts(runs).items())
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
        found = counts(runs)
        publish(arguments.output, list(map(asdict, runs)), table(runs), counts=found, bundle=name, plan=plan.to_json())
    return 0 if min(counts(runs).values()) >= LEAST_SHARE * len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
