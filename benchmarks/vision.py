"""Image classification on the engines a user would pick, beside Saten.

    python benchmarks/vision.py --work artifacts -o vision.json
    python benchmarks/vision.py --random --work artifacts -o vit_base.json

A small ViT is trained here on the 8 × 8 digits of scikit-learn, compressed, and trained again towards the dense one;
every fifth image only judges. With --random, a model of ViT-base's shape with random weights takes its place: latency
and memory only. Exit code 1 where a row computes something else than torch; it is not timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers.artifacts import DENSE, Maker, Row, chosen, compress, once, saten_rows
from peers.commands import saten_edge
from peers.comparison import Examples, Timed, compare, options, turns
from peers.engines import Input
from peers.measure import Column
from peers.worker import random_input

from saten_edge.texts import write_lines
from saten_runtime.records.folders import new_folder

BOTH, WITHOUT = (False, True), (False,)
SIDE, PATCH, CLASSES = 8, 2, 10
DIGITS_VIT = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "image_size": SIDE,
    "patch_size": PATCH,
    "num_channels": 3,
}
SMALL_VIT = {**DIGITS_VIT, "image_size": 32, "patch_size": 8}
VIT_BASE = {"image_size": 224, "patch_size": 16}
JUDGED = 5  # one image in so many
CALIBRATION_IMAGES = 64
BUDGET = 0.25
METHODS: dict[str, tuple[object, ...]] = {
    "svd": ("--pattern", "none", "--order", 2, "--share", 1),
    "saten-grouped": ("--pattern", "grouped", "--group", 16, "--exclude", "classifier"),  # of 10 outputs
    "saten-u": ("--pattern", "unstructured"),
}
PLAIN = tuple(row for row in DENSE if row.precision not in ("int8-block", "int4"))
TRAINED = (
    *PLAIN,
    *saten_rows("svd", ("fp32", "int8"), WITHOUT),
    *saten_rows("saten-grouped", ("fp32", "int8"), BOTH),
    *saten_rows("saten-u", ("fp32", "int8"), BOTH),
)
RANDOM = (
    *(row for row in PLAIN if row.engine != "torch_compiled"),
    *saten_rows("svd", ("int8",), WITHOUT),
    *saten_rows("saten-grouped", ("fp32", "int8"), BOTH),
)


def main() -> int:
    random, quick = "ViT-base's shape with random weights", "two rounds, less training; with --random a small model"
    arguments = options(__doc__.splitlines()[0], random=random, quick=quick).parse_args()
    title, rows, maker, examples, sizes = (untrained if arguments.random else trained)(arguments)
    column = Column("1 image", examples.inputs[0].shape, (sizes["image_size"] // sizes["patch_size"]) ** 2 + 1)
    rows = chosen(rows, arguments.only, quick=arguments.quick)
    plan = turns(arguments, [column])
    return compare(title, rows, maker, examples, plan, Timed(column.name, column.name), arguments.output)


def trained(arguments: argparse.Namespace) -> tuple[str, Sequence[Row], Maker, Examples, dict[str, int]]:
    """A ViT on digits."""
    work: Path = arguments.work
    data = once(work / "digits", write_digits)
    steps, more = (60, 20) if arguments.quick else (600, 200)
    learn = ("--data", data / "train.jsonl", "--batch-size", 64)
    begun = once(work / "checkpoint-begun", lambda out: random_vit(out, DIGITS_VIT))
    dense = once(
        work / "checkpoint-dense",
        lambda out: saten_edge("finetune", begun, "-o", out, *learn, "--steps", steps, "--learning-rate", 1e-3),
    )

    def checkpoint(model: str) -> Path:
        return dense if model == "dense" else once(work / f"checkpoint-{model}", lambda out: compressed(model, out))

    def compressed(model: str, out: Path) -> None:
        raw = once(work / f"compressed-{model}", lambda raw: compress(dense, raw, "--budget", BUDGET, *METHODS[model]))
        saten_edge("finetune", raw, "-o", out, *learn, "--teacher", dense, "--steps", more, threads=1)

    train, held_out = (digits(held_out) for held_out in (False, True))
    maker = Maker(checkpoint, work, lambda: pixels(dense, train[0][:CALIBRATION_IMAGES]))
    examples = Examples(pixels(dense, held_out[0]), held_out[1])
    return "ViT on digits", TRAINED, maker, examples, DIGITS_VIT


def untrained(arguments: argparse.Namespace) -> tuple[str, Sequence[Row], Maker, Examples, dict[str, int]]:
    """ViT-base's shape, or a small one, with random weights."""
    sizes = SMALL_VIT if arguments.quick else VIT_BASE
    dense = once(arguments.work / "checkpoint-dense", lambda out: random_vit(out, sizes))

    def checkpoint(model: str) -> Path:
        out = arguments.work / f"checkpoint-{model}"
        return dense if model == "dense" else once(
            out, lambda folder: compress(dense, folder, "--budget", BUDGET, *METHODS[model])
        )  # fmt: skip

    shape = (CALIBRATION_IMAGES, 3, sizes["image_size"], sizes["image_size"])
    images: list[Input] = np.split(random_input(shape), CALIBRATION_IMAGES)
    title = "small ViT, random weights" if arguments.quick else "ViT-base, random weights"
    maker = Maker(checkpoint, arguments.work, lambda: images[:8])
    return title, RANDOM, maker, Examples(images[:4]), sizes


def random_vit(out: Path, sizes: dict[str, int]) -> None:
    """A ViT that classifies, random, and what prepares its images."""
    import torch
    import transformers

    torch.manual_seed(0)
    names = {number: str(number) for number in range(CLASSES)}
    config = transformers.ViTConfig(**sizes, id2label=names, label2id={name: n for n, name in names.items()})
    side = {"height": sizes["image_size"], "width": sizes["image_size"]}
    with new_folder(out) as folder:
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        transformers.ViTImageProcessorPil(size=side).save_pretrained(folder)


def digits(held_out: bool) -> tuple[np.ndarray, list[int]]:
    """Images (count, 8, 8, 3) of bytes and labels, of one split."""
    from sklearn.datasets import load_digits

    found = load_digits()
    chosen = (np.arange(len(found.target)) % JUDGED == 0) == held_out
    grey = (found.images[chosen] * (255 / 16)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), found.target[chosen].tolist()


def write_digits(out: Path) -> None:
    """The training split, as `saten-edge finetune` reads images."""
    from PIL import Image

    images, labels = digits(held_out=False)
    rows: list[dict[str, Any]] = []
    with new_folder(out) as folder:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(folder / f"{number}.png")
            rows.append({"image": f"{number}.png", "label": label})
        write_lines(folder / "train.jsonl", rows)


def pixels(folder: Path, images: np.ndarray) -> list[Input]:
    """Each image as the folder's processor prepares it, (1, channels, height, width)."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    prepared = processor(list(images), return_tensors="np")["pixel_values"]
    return np.split(prepared.astype(np.float32), len(prepared))


if __name__ == "__main__":
    sys.exit(main())
