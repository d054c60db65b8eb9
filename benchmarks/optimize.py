"""What `saten-edge optimize` found on several tasks, as `python benchmarks/optimize.py sst2=FOLDER stsb=FOLDER`.

FOLDER is the output of a search. The table has every bundle that was measured. It says whether one of them is within a
point of the dense model on the part of the judge that confirms, in a third of dense int8's bytes and 0.65 of the time
of the fastest dense model. Times count where the measurement was valid.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.results import RESULTS, markdown, publish, short

from saten_edge.optimize.output import MARKER_FILE, RESULT_FILE
from saten_runtime.errors import DataError
from saten_runtime.records.files import read_json

MOST_LOST, MOST_BYTES, MOST_TIME = 1.0, 0.33, 0.65
KEPT = ("name", "bytes", "ms", "drop", "confirm_drop")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("found", nargs="+", help="TASK=FOLDER")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "optimize.json")
    arguments = parser.parse_args()
    found = dict(each.split("=", 1) for each in arguments.found)
    rows = [row for task, folder in found.items() for row in rows_of(task, Path(folder))]
    publish(arguments.output, rows, table(rows))
    return 0


def rows_of(task: str, folder: Path) -> Iterator[dict[str, Any]]:
    """One object for each bundle that a search measured."""
    result, settings = (read_json(folder / name, DataError) for name in (RESULT_FILE, MARKER_FILE))
    dense = [row for row in result["rows"] if row["name"].startswith("dense")]
    int8 = next(row["bytes"] for row in dense if row["name"] == "dense-int8")
    fastest = min(row["ms"] for row in dense)
    for row in result["rows"]:
        yield {
            **{"task": task, "minutes": settings["options"]["minutes"], "tried": len(result["trials"])},
            **{name: row[name] for name in KEPT},
            **{"dense": row in dense, "chosen": row["name"] == result["best"], "reasons": result["reasons"]},
            **{"of_dense_int8": row["bytes"] / int8, "of_fastest_dense": row["ms"] / fastest},
        }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The bundles of each task, and whether its goal is met."""
    head = (
        "task",
        "bundle",
        "MB",
        "of dense int8",
        "ms",
        "of the fastest dense",
        "points lost, steering",
        "confirming",
    )
    lines = [
        (
            row["task"],
            f"**{row['name']}**" if row["chosen"] else row["name"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['of_dense_int8']:.3f}",
            *(short(None if row["reasons"] else row[name], "{:.2f}") for name in ("ms", "of_fastest_dense")),
            f"{row['drop']:.2f}",
            f"{row['confirm_drop']:.2f}",
        )
        for row in rows
    ]
    tasks = dict.fromkeys(row["task"] for row in rows)
    verdicts = [verdict(task, [row for row in rows if row["task"] == task]) for task in tasks]
    return "".join([markdown(head, lines, texts=2), "\n", *verdicts])


def verdict(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether one of its bundles is as accurate, as small and as fast as it is to be; else what each alone came to."""
    able = [row for row in rows if not row["dense"] and row["confirm_drop"] <= MOST_LOST]
    small = [row for row in able if row["of_dense_int8"] <= MOST_BYTES]
    fast = [row for row in small if not row["reasons"] and row["of_fastest_dense"] <= MOST_TIME]
    least = min((row["of_dense_int8"] for row in able), default=None)
    soonest = min((row["of_fastest_dense"] for row in able if not row["reasons"]), default=None)
    met = "met " if fast else "MISS"
    what = f"least bytes {short(least, '{:.3f}')} (wanted ≤ {MOST_BYTES}), least time {short(soonest, '{:.2f}')}"
    one = f"{fast[0]['name']} is all of it" if fast else "no bundle is all of it"
    spent = f"{rows[0]['minutes']:g} minutes, {rows[0]['tried']} candidates"
    return f"- {met} {task}, {spent}; within {MOST_LOST:g} point: {what} (wanted ≤ {MOST_TIME}); {one}\n"


if __name__ == "__main__":
    sys.exit(main())
