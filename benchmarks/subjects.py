"""The models that `methods.py` compresses, what they are calibrated on, and what judges them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.artifacts import once
from peers.artifacts import smollm2 as smollm2_file
from peers.commands import saten_edge
from vision import DIGITS_VIT, digits, random_vit

from saten_edge.texts import write_lines
from saten_runtime.records.folders import new_folder

__all__ = ["SUBJECTS", "Subject", "write_digits"]

TRAINING_STEPS, QUICK_STEPS = 600, 20
# Passages of text, of about 600 tokens each.
CALIBRATING, JUDGING = 32, 12


@dataclass(frozen=True)
class Subject:
    """A dense model. metric: of the judge; texts: how many calibrate; tokens: how many are timed; decoder: it says the
    next token, and a step of compression takes minutes.
    """

    title: str
    model: Path
    calibration: Path
    judge: Path
    metric: str
    texts: int = 128
    tokens: int = 128
    decoder: bool = False


def sst2(work: Path, arguments: argparse.Namespace) -> Subject | None:
    """MiniLM fine-tuned on sst2."""
    if not (arguments.models and arguments.data):
        return None
    data = (arguments.data / "sst2").resolve()
    model = next(iter(sorted(arguments.models.glob("sst2-dense-*/finetuned"))), None)
    if model is None:
        return None
    return Subject("MiniLM on sst2", model.resolve(), data / "train.jsonl", data / "validation.jsonl", "accuracy")


def digits_vit(work: Path, arguments: argparse.Namespace) -> Subject | None:
    """A small ViT, trained here."""
    data = once(work / "digits", write_digits)
    begun = once(work / "begun", lambda out: random_vit(out, DIGITS_VIT))
    steps = QUICK_STEPS if arguments.quick else TRAINING_STEPS
    learn = ("--data", data / "train.jsonl", "--batch-size", 64, "--steps", steps, "--learning-rate", 1e-3)
    dense = once(work / "dense", lambda out: saten_edge("finetune", begun, "-o", out, *learn, threads=1))
    return Subject("ViT on digits", dense, data / "train.jsonl", data / "judge.jsonl", "top_1")


def smollm2(work: Path, arguments: argparse.Namespace) -> Subject | None:
    """SmolLM2-135M as the package holds it, judged by a few passages."""
    model = smollm2_file()
    if model is None or not arguments.data:
        return None
    texts = once(work / "texts", lambda out: write_passages(arguments.data / "wikitext2", out))
    files = (texts / "train.jsonl", texts / "judge.jsonl")
    return Subject("SmolLM2-135M", model, *files, "perplexity", texts=CALIBRATING, decoder=True)


# --only → the model; None where what it needs is not there.
SUBJECTS: dict[str, Callable[[Path, argparse.Namespace], Subject | None]] = {
    "digits": digits_vit,
    "sst2": sst2,
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
    """Passages to calibrate on, and those that judge, as texts."""
    with new_folder(out) as folder:
        for source, name, count in (("train", "train", CALIBRATING), ("validation", "judge", JUDGING)):
            lines = (data / f"{source}.jsonl").read_text("utf-8").splitlines()
            write_lines(folder / f"{name}.jsonl", [{"text": json.loads(line)["text"]} for line in lines[:count]])
