"""Text generation on the engines a user would pick, beside Saten.

    python benchmarks/decoder.py -o decoder.json [--work FOLDER]
    python benchmarks/decoder.py --random --layers 4 -o decoder-1b.json

A small Llama is trained here on the text that ships with Python, compressed, and fine-tuned towards itself; perplexity
is of passages that were held out. With --random, a model of the shape of Llama 3.2 1B with random weights, some of its
16 layers left out, takes its place: speed and memory only. Every row's logits are compared with torch's before anything
is timed, read in one run and token by token; all rows then take turns in fresh processes, round by round.

pp128 reads a prompt of 128 tokens; tg64 generates 64 from an empty cache, greedily; the time to the first token begins
with the loading of a fresh process's engine and ends with the first token after such a prompt.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corpus_python import python_corpus
from peers.artifacts import ORT_DENSE, Row, missing, once, prepare, python, saten_rows, stored_bytes, target
from peers.commands import saten_edge
from peers.comparison import numbers, say
from peers.decoder_worker import NEW_TOKENS
from peers.decoders import CONTEXT
from peers.measure import Column, Contender, Measured, Turns, measure, worker
from peers.plots import COLORS, bars
from peers.results import markdown, publish, short

from saten_runtime.errors import SatenError
from saten_runtime.records.folders import new_folder
from saten_runtime.run.kernels import SWITCH

PROMPT = 128
# As `peers.decoder_worker` is asked for them.
COLUMNS = (Column(f"pp{PROMPT}", (1, PROMPT), PROMPT), Column(f"tg{NEW_TOKENS}", (1, 1), 1))
WORKER = "peers.decoder_worker"
# engine → what must be installed
MODULES = {"onnxruntime": "onnxruntime", "genai": "onnxruntime_genai", "llama.cpp": "llama_cpp"}
END = "<|end|>"
# Of a quantized row: share of held-out tokens after which it finds the same next token likeliest as torch, and, where
# weights are random and no token stands out, how far its logits may be from torch's, relative to their length.
AGREEMENT = {"int8": 0.85, "int8-block": 0.85, "int4": 0.60, "q8_0": 0.85, "q4_0": 0.60}
DISTANCE = {"int8": 0.2, "int8-block": 0.2, "int4": 0.5, "q8_0": 0.2, "q4_0": 0.5}
Texts = list[list[int]]


DENSE = (
    *ORT_DENSE,
    Row("genai fp32", "genai", "dense", "fp32"),
    Row("genai int8", "genai", "dense", "int8-block"),
    Row("genai int4", "genai", "dense", "int4"),
    Row("llama.cpp F32", "llama.cpp", "dense", "f32"),
    Row("llama.cpp Q8_0", "llama.cpp", "dense", "q8_0"),
    Row("llama.cpp Q4_0", "llama.cpp", "dense", "q4_0"),
)
METHODS: dict[str, tuple[object, ...]] = {
    "saten-grouped": ("--pattern", "grouped", "--group", 16),
    "saten-u": ("--pattern", "unstructured"),
}
COMPRESSED = tuple(row for model in METHODS for row in saten_rows(model, ("fp32", "int8"), (False, True)))
# Of a large model: what a device would run, and what it is compared with. Each row takes a minute to make.
LARGE = (
    *("ORT dense fp32", "ORT dense int8", "ORT dense int4", "genai int4", "llama.cpp Q8_0", "llama.cpp Q4_0"),
    *("saten-grouped int8", "saten-grouped int8 + kernels"),
)
QUICK = ("ORT dense int8-block", "llama.cpp Q8_0", "saten-grouped int8")


@dataclass(frozen=True)
class Shape:
    """A Llama, how it is trained, and how it is judged. steps: 0 leaves it random; texts: held out, or random ids."""

    sizes: dict[str, int]
    steps: int
    finetuning_steps: int
    texts: int
    docstrings: bool = True


SMALL = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
# Heads of 16: onnxruntime-genai takes no narrower ones.
TINY = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TRAINED = Shape(SMALL, steps=400, finetuning_steps=80, texts=200)
QUICKLY = Shape(TINY, steps=40, finetuning_steps=10, texts=20, docstrings=False)


def random_shape(layers: int) -> Shape:
    """Llama 3.2 1B with so many of its 16 layers."""
    sizes = {**LLAMA_1B, "num_hidden_layers": layers}
    return Shape(sizes, steps=0, finetuning_steps=0, texts=1, docstrings=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", action="store_true", help="the shape of Llama 3.2 1B with random weights")
    parser.add_argument("--layers", type=int, default=4, help="of its 16, with --random")
    parser.add_argument("--quick", action="store_true", help=f"a tiny model, two rounds, only {', '.join(QUICK)}")
    parser.add_argument("--budget", default="0.25", help="of the compressed checkpoints")
    parser.add_argument("--work", type=Path, help="folder for the artifacts, kept for the next run; else deleted")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file of the table")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--min-time", type=float, default=1.0, help="seconds per cell over all rounds")
    parser.add_argument("--threads", default="1", help="with commas between")
    parser.add_argument("--only", default="", help="rows whose name contains one of these, with commas between")
    arguments = parser.parse_args()
    shape = random_shape(arguments.layers) if arguments.random else QUICKLY if arguments.quick else TRAINED
    rounds, only = (2, ",".join(QUICK)) if arguments.quick else (arguments.rounds, arguments.only)
    plan = Turns(COLUMNS, numbers(arguments.threads), rounds, arguments.min_time)
    rows = [row for row in (*DENSE, *COMPRESSED) if any(part in row.name for part in only.split(","))]
    if arguments.random and not only:
        rows = [row for row in rows if row.name in LARGE]
    with _folder(arguments.work) as work:
        maker = Maker(shape, work, arguments.budget)
        table, left_out = rows_of(rows, maker, plan)
    name = f"Llama 3.2 1B's shape, {arguments.layers} of 16 layers, random" if arguments.random else "trained here"
    facts = {"title": name, "rounds": plan.rounds, "sizes": shape.sizes, "budget": arguments.budget}
    text = table_text(table) + "".join(f"\n{name}: left out, {why}\n" for name, why in left_out.items())
    publish(arguments.output, table, text, picture(name, table), **facts, left_out=left_out)
    return int(any("differs from torch" in why for why in left_out.values()))


def rows_of(rows: Sequence[Row], maker: Maker, plan: Turns) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Make, check, measure: one object per row that can be had here, and why the others cannot."""
    built: dict[Row, Contender] = {}
    perplexities: dict[Row, float | None] = {}
    left_out: dict[str, str] = {}
    torch = functools.cache(lambda model: answers(reference(maker, model), maker))
    prepare(rows, maker)
    for row in rows:
        try:
            contender = made(row, maker)
            perplexities[row] = judge(row, answers(contender, maker), torch(row.model), maker.shape)
            built[row] = contender
        except (RuntimeError, ImportError, SatenError) as error:
            left_out[row.name] = str(error)
            say(f"{row.name}: left out, {error}")
    measured = measure(list(built.values()), plan, say)
    return [columns(row, built[row], perplexities[row], measured, plan) for row in built], left_out


class Maker:
    """Makes the artifact of a row, once."""

    def __init__(self, shape: Shape, work: Path, budget: str) -> None:
        self.shape, self.work, self.budget = shape, work, budget

    def checkpoint(self, model: str) -> Path:
        """The Hugging Face folder of a model: as it began, trained, compressed and fine-tuned."""
        if not self.shape.steps:
            return self._compressed(model) if model in METHODS else self._begun()
        return once(self.work / f"checkpoint-{model}", functools.partial(self._trained, model))

    def artifact(self, row: Row) -> Path:
        """What the row's engine reads."""
        makers = {"onnxruntime": self._export, "genai": self._genai, "llama.cpp": self._gguf}
        name = "-".join((row.engine, row.model, row.precision, *["kernels"] * bool(row.kernels)))
        return once(self.work / name, functools.partial(makers[row.engine], row))

    @functools.cached_property
    def texts(self) -> Texts:
        """What rows are judged by: held-out passages, cut to the length they were trained with, or random ids."""
        if not self.shape.steps:
            return np.random.default_rng(0).integers(self.shape.sizes["vocab_size"], size=(1, 12)).tolist()
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._begun() / "tokenizer.json"))
        tokenizer.enable_truncation(PROMPT)
        return [tokenizer.encode(text).ids for text in self._corpus.held_out]

    def _begun(self) -> Path:
        return once(self.work / "begun", self._begin)

    def _begin(self, out: Path) -> None:
        random_llama(self.shape.sizes, self._corpus.train, out)

    def _trained(self, model: str, out: Path) -> None:
        if model in METHODS:
            options = ("--teacher", self.checkpoint("dense"), "--steps", self.shape.finetuning_steps)
            return self._finetune(self._compressed(model), out, *options, threads=1)
        rate = ("--steps", self.shape.steps, "--learning-rate", 3e-3)
        return self._finetune(self._begun(), out, *rate)

    def _finetune(self, model: Path, out: Path, *options: object, threads: int | None = None) -> None:
        lengths = ("--max-length", PROMPT, "--batch-size", 16)
        recipe = ("--task", "text-generation", "--data", self._data(), *lengths, *options)
        saten_edge("finetune", model, "-o", out, *recipe, threads=threads)

    def _compressed(self, model: str) -> Path:
        dense = self.checkpoint("dense")
        recipe = ("--calibration", self._data()) if self.shape.steps else ("--rounds", 1, "--share", 0.8)
        options = ("--budget", self.budget, *recipe, *METHODS[model])
        return once(
            self.work / f"compressed-{model}",
            lambda out: saten_edge("compress", dense, "-o", out, *options, threads=1),
        )

    def _export(self, row: Row, out: Path) -> None:
        options = ("--precision", row.precision, "--target", target(bool(row.kernels)), "--max-loss", "inf")
        saten_edge("export", self.checkpoint(row.model), "-o", out, *options, threads=1)

    def _genai(self, row: Row, out: Path) -> None:
        """As its model builder does it by default: in blocks, the head, too, the table in float32."""
        precision = row.precision.removesuffix("-block")
        with new_folder(out) as folder:
            options = ("-m", row.model, "-i", self.checkpoint(row.model), "-o", folder, "-c", self.work / "cache")
            python("-m", "onnxruntime_genai.models.builder", *options, "-p", precision, "-e", "cpu", threads=1)

    def _gguf(self, row: Row, out: Path) -> None:
        from peers.gguf_llama import write_gguf

        write_gguf(self.checkpoint(row.model), out, row.precision)

    def _data(self) -> Path:
        from saten_edge.texts import write_lines

        lines = [{"text": text} for text in self._corpus.train]
        return once(self.work / "train.jsonl", lambda out: write_lines(out, lines))

    @functools.cached_property
    def _corpus(self) -> Any:
        return python_corpus(self.shape.texts, docstrings=self.shape.docstrings)


def random_llama(sizes: dict[str, int], texts: Sequence[str], out: Path) -> None:
    """A Llama with random weights and a tied head, and a tokenizer of pairs of bytes that were frequent in `texts`."""
    import tokenizers
    import torch
    import transformers

    vocabulary = tokenizers.ByteLevelBPETokenizer()
    most = min(sizes["vocab_size"], SMALL["vocab_size"])
    vocabulary.train_from_iterator(texts, most, special_tokens=[END], show_progress=False)
    options = {"eos_token": END, "pad_token": END, "model_max_length": CONTEXT}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary._tokenizer, **options)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.LlamaConfig(**sizes, **ends, max_position_embeddings=CONTEXT, tie_word_embeddings=True)
    torch.manual_seed(0)
    with new_folder(out) as folder:
        tokenizer.save_pretrained(folder)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)


def made(row: Row, maker: Maker) -> Contender:
    """The row's contender.

    Raises:
        RuntimeError, ImportError: it cannot be made here.
    """
    if why := missing(row):
        raise RuntimeError(why)
    importlib.import_module(MODULES[row.engine])
    artifact = maker.artifact(row)
    switch = {} if row.kernels is None else {SWITCH: str(int(row.kernels))}
    return Contender(row.name, row.engine, artifact, stored_bytes(artifact), switch, WORKER)


def reference(maker: Maker, model: str) -> Contender:
    """What a model's rows are compared with: torch, with the rows' own checkpoint."""
    return Contender(f"torch {model}", "torch", maker.checkpoint(model), 0, worker=WORKER)


@dataclass(frozen=True)
class Answers:
    """Of one row on the texts. logits: (tokens, vocabulary) of the shortest text, read token by token at its end.

    perplexity: of all texts; likeliest: the next token after each of theirs.
    """

    logits: np.ndarray
    perplexity: float
    likeliest: np.ndarray


def answers(contender: Contender, maker: Maker) -> Answers:
    """Ask a fresh process."""
    say(f"{contender.name}: check")
    with worker(contender, 1) as (child, _), tempfile.TemporaryDirectory() as aside:
        path = Path(aside) / "logits.npy"
        child.ask("logits", texts=[min(maker.texts, key=len)], path=str(path))
        score = child.ask("score", texts=maker.texts)
        perplexity = math.exp(score["nats"] / score["tokens"])
        return Answers(np.load(path), perplexity, np.array(score["likeliest"]))


def judge(row: Row, found: Answers, expected: Answers, shape: Shape) -> float | None:
    """Compare with torch; then the perplexity, or None where weights are random.

    Raises:
        SatenError: the row computes something else.
    """
    difference = found.logits - expected.logits
    distance = float(np.linalg.norm(difference) / np.linalg.norm(expected.logits))
    agree = float(np.mean(found.likeliest == expected.likeliest))
    kind = row.precision.replace("fp32", "f32")
    allowed = rounding_bound(shape.sizes) if kind == "f32" else DISTANCE[kind] if not shape.steps else math.inf
    needed = AGREEMENT.get(kind, 0.99) if shape.steps else 0.0
    if not (distance <= allowed and agree >= needed):
        raise SatenError(
            f"differs from torch, by {distance:.2g} of the logits where {allowed:.2g} is allowed, and "
            f"agrees on {agree:.1%} of the tokens where {needed:.0%} is needed"
        )
    return found.perplexity if shape.steps else None


def rounding_bound(sizes: dict[str, int]) -> float:
    """Relative difference that rounding alone may cause between two float32 evaluations of a Llama.

    n products one after the other, the longest over k terms, add up to n √k u, u = eps / 2 (Higham & Mary, "A New
    Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41(5), 2019), as the exporter derives it.
    A layer has seven matrices and the two products of attention; a compressed matrix is a sum of two products.
    """
    products = 9 * sizes["num_hidden_layers"] + 1
    return 2 * products * math.sqrt(sizes["intermediate_size"]) * float(np.finfo(np.float32).eps) / 2


def columns(
    row: Row, contender: Contender, perplexity: float | None, measured: dict[str, Measured], plan: Turns
) -> dict[str, Any]:
    """One object of the table; rates in tokens per second, ratios of times to those of other rows."""
    own = measured[row.name]
    dense = {each.name: measured[each.name] for each in DENSE if each.name in measured}
    cells = [(column, threads) for threads in plan.threads for column in plan.columns]
    times = {_cell(column.name, threads): own.median_ms(column.name, threads) for column, threads in cells}
    counts = {_cell(column.name, threads): column.rows for column, threads in cells}
    ratios = {
        _cell(column.name, threads): {other: own.ratio(each, column.name, threads) for other, each in dense.items()}
        for column, threads in cells
    }
    fastest = {_cell(column.name, threads): _fastest(dense, column.name, threads) for column, threads in cells}
    return {
        "row": row.name,
        "perplexity": perplexity,
        "bytes": contender.bytes,
        "load_ms": _median_ms(own.load_ns),
        "first_token_ms": _median_ms(own.first_ns),
        "ms": times,
        "tokens_per_s": {cell: time and 1000 * counts[cell] / time for cell, time in times.items()},
        "of_dense": ratios,
        "fastest_dense": fastest,
        "of_fastest_dense": {cell: ratios[cell].get(name) for cell, name in fastest.items()},
        "peak_anon_bytes": own.peak_anon_bytes,
        "failed": own.failed,
    }


def table_text(table: Sequence[dict[str, Any]]) -> str:
    """The table for people, and what failed."""
    if not table:
        return ""
    cells = list(table[0]["ms"])
    head = ["row", "perplexity", "MB", "load, ms", "first token, ms", f"prompt of {PROMPT}, ms"]
    head += [f"{cell}, tokens/s" for cell in cells] + [f"{cell}, × {table[0]['fastest_dense'][cell]}" for cell in cells]
    lines = [
        [
            row["row"],
            short(row["perplexity"], "{:.2f}"),
            f"{row['bytes'] / 1e6:.1f}",
            short(row["load_ms"], "{:.0f}"),
            short(row["first_token_ms"], "{:.0f}"),
            short(row["ms"][cells[0]], "{:.2f}"),
            *(short(row["tokens_per_s"][cell], "{:.0f}") for cell in cells),
            *(_interval(row["of_fastest_dense"][cell]) for cell in cells),
            short(max(row["peak_anon_bytes"].values(), default=0) / 1e6 or None, "{:.0f}"),
        ]
        for row in table
    ]
    failed = "".join(f"\n{row['row']}: {row['failed']}\n" for row in table if row["failed"])
    return markdown([*head, "peak anonymous, MB"], lines) + failed


def picture(name: str, table: Sequence[dict[str, Any]]) -> str | None:
    """Tokens generated in a second."""
    cell = COLUMNS[1].name
    values = [
        (row["row"], rate, COLORS["saten-0" if row["row"].startswith("saten") else "dense-0"])
        for row in table
        if (rate := row["tokens_per_s"][cell]) is not None
    ]
    return bars(f"Decoder, {name}: {cell}", "tokens per second", values) if values else None


def _fastest(dense: dict[str, Measured], column: str, threads: int) -> str | None:
    times = {name: time for name, each in dense.items() if (time := each.median_ms(column, threads)) is not None}
    return min(times, key=times.__getitem__, default=None)


def _cell(name: str, threads: int) -> str:
    return name if threads == 1 else f"{name}, {threads} threads"


def _interval(ratio: list[float] | None) -> str:
    return "–" if ratio is None else "{:.2f} ({:.2f}–{:.2f})".format(*ratio)


def _median_ms(samples_ns: Sequence[int]) -> float | None:
    return float(np.median(samples_ns)) / 1e6 if samples_ns else None


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
