"""Measures what the cost model predicts from, as `python benchmarks/cost_model.py [--write] [-o FILE.json]`.

The steps are timed as `saten-edge devices calibrate` times them, by the same code, on more shapes (those of layers.py
among them) and with 1 to 512 rows. The prices of `saten_exporters.choice.prices` are fitted to the medians on every
shape but one. The table has, for each form, how far prediction and measurement are apart on the shapes fitted and on
the one left out; then how often the model picks the fastest form and what it loses where it does not. With --write the
prices go into the exporter's table, on x86-64. Where the native kernels are installed their prices are
measured, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from layers import SHAPES as LAYERS
from peers.artifacts import target
from peers.plots import COLORS, bars
from peers.results import RESULTS, markdown, publish

import saten_exporters.choice
from saten_edge.devices.calibrate import measured_on
from saten_exporters.choice.fitting import Sample, fitted, predicted_ns
from saten_exporters.choice.prices import MEASURED, RATES_FILE, Rates, write_prices
from saten_exporters.choice.probes import Sizes, Subject, samples_of, write_probes
from saten_runtime.bench.probing import ProbingResult, time_probes

SHAPES = ((384, 384), (384, 1536), (1536, 384), (768, 768), *LAYERS, (2048, 512))
LEFT_OUT = (768, 768)
SIZES = Sizes(SHAPES, (20_000, 384), (1, 8, 32, 128, 512))
LIMIT_S = 3600.0

Measured = list[tuple[Subject, Sample]]


def measured(rounds: int) -> tuple[ProbingResult, Measured]:
    """What was timed on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "probes.zip"
        subjects = write_probes(archive, SIZES)
        result = time_probes(archive, rounds=rounds, limit_s=LIMIT_S)
    return result, samples_of(subjects, result)


def errors(prices: dict[str, Rates], samples: Measured) -> list[dict[str, Any]]:
    """Prediction over measurement, by form: median and the tenth and ninetieth percentile."""
    ratios: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for subject, sample in samples:
        ratios[subject.name, subject.shape == LEFT_OUT].append(predicted_ns(prices, sample) / sample.ns)
    quantiles = {key: [round(float(q), 2) for q in np.percentile(of, (10, 50, 90))] for key, of in ratios.items()}
    return [{"form": name, "left_out": out, "p10_p50_p90": of} for (name, out), of in sorted(quantiles.items())]


def table_text(rows: list[dict[str, Any]], found: dict[str, float]) -> str:
    """How good the picks are, then every form's errors."""
    quantiles = {(row["form"], row["left_out"]): row["p10_p50_p90"] for row in rows}
    lines = [
        (form, *(", ".join(f"{q:.2f}" for q in quantiles.get((form, out), ())) for out in (False, True)))
        for form in sorted({row["form"] for row in rows})
    ]
    return (
        f"Fastest of dense, low rank and TT chain picked in {found['fastest']} of {found['cells']} cells, "
        f"at most {found['largest_loss']:.0%} lost in the others.\n\n### All forms\n\n"
    ) + markdown(("form", "prediction / measurement: p10, p50, p90", "on the shape left out"), lines)


def picks(prices: dict[str, Rates], samples: Measured) -> dict[str, float]:
    """How often the form predicted fastest is the fastest of dense, low rank and TT chain, and the time lost if not."""
    cells: dict[tuple[object, ...], list[tuple[float, float]]] = defaultdict(list)
    for subject, sample in samples:
        form, _, precision = subject.name.rpartition(" ")
        if form in ("dense", "low rank", "tt chain"):
            cells[subject.shape, sample.rows, precision].append((predicted_ns(prices, sample), sample.ns))
    lost = [min(pairs)[1] / min(ns for _, ns in pairs) - 1 for pairs in cells.values()]
    return {"cells": len(lost), "fastest": sum(x == 0 for x in lost), "largest_loss": round(max(lost), 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--write", action="store_true", help="put the prices into the exporter's table")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "cost_model.json")
    arguments = parser.parse_args()
    if arguments.write and target() != MEASURED:
        parser.error(f"--write: the exporter ships prices of {MEASURED}; for {target()}, saten-edge devices calibrate")
    result, samples = measured(1 if arguments.quick else arguments.rounds)
    held = fitted([sample for subject, sample in samples if subject.shape != LEFT_OUT])
    rows, chosen = errors(held, samples), picks(held, samples)
    medians = [(row["form"], row["p10_p50_p90"][1], COLORS["saten-0"]) for row in rows if row["left_out"]]
    picture = bars("Cost model, on the shape left out", "prediction / measurement, median", medians)
    cells = [{"form": of.name, "shape": of.shape, "rows": each.rows, "ns": round(each.ns)} for of, each in samples]
    facts = {"target": target(), "picks": chosen, "measured": cells}
    publish(arguments.output, rows, table_text(rows, chosen), picture, **facts)
    if arguments.write:
        write(result, fitted([sample for _, sample in samples]))
    return 0


def write(result: ProbingResult, prices: dict[str, Rates]) -> None:
    """Put the prices into the exporter's table: it ships those of one machine."""
    device = measured_on(f"{result.environment['machine']} machine", result.environment)
    write_prices(Path(saten_exporters.choice.__file__).with_name(RATES_FILE), device, result.verdict, prices)


if __name__ == "__main__":
    sys.exit(main())
