"""A model of Llama-3-8B's shape that takes no disk, compressed, and the memory that takes: a program of its own.

All weights but the first block's are zeros in sparse files. What stands for the decomposition of a zero matrix, and
with calibration of any, is a train of rank 1, for its time; it reads all of the matrix.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
from pathlib import Path
from typing import Any

import torch
import transformers

import saten_edge
from saten_edge.checkpoints import layers
from saten_edge.decomposition.decompose import Decomposition
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import Residual
from saten_edge.decomposition.tt import TensorTrain
from saten_edge.options import CompressOptions

BLOCKS, WIDTH, INNER, WORDS = 32, 4096, 14336, 128256
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 96,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "architectures": ["LlamaForCausalLM"],
}
OPTIONS = CompressOptions(
    budget=0.25, pattern="none", allocation="uniform", recipe=Recipe(rounds=1, solver="alternate")
)


def make(folder: Path) -> int:
    """Config and shards, one for each block; returns the bytes of the weights."""
    transformers.LlamaConfig(**SIZES).save_pretrained(folder)
    with torch.device("meta"):
        state = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).state_dict()
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in state.items():
        shard = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(f"model-{shard}.safetensors", {})[name] = tuple(tensor.shape)
    for file, shapes in shards.items():
        write_shard(folder / file, shapes, drawn=file == "model-0.safetensors")
    index = {name: file for file, shapes in shards.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(2 * tensor.numel() for tensor in state.values())


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], *, drawn: bool) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(words)) + words)
        file.truncate(8 + len(words) + end)
        for name, shape in shapes.items() if drawn else ():
            file.seek(8 + len(words) + header[name]["data_offsets"][0])
            numbers = torch.randn(shape).mul_(0.02).bfloat16()
            numbers.view(torch.uint8).numpy().tofile(file)


def decomposed(matrix: torch.Tensor, *how: Any, always: bool) -> Decomposition:
    if not always and bool(matrix.any()):
        return REAL(matrix, *how)
    cores = (matrix.sum(1)[None, :, None], matrix.sum(0)[None, :, None])
    train = TensorTrain(cores, 1, None)
    return Decomposition(train, Residual(torch.empty(0), {}), 4 * sum(matrix.shape), 1.0, 1.0, "alternate")


REAL = layers.decompose


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--texts", type=int, default=0)
    given = parser.parse_args()
    model = given.folder / "model"
    stored = make(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((given.tokenizer / name).read_bytes())
    layers.decompose = lambda *how: decomposed(*how, always=given.texts > 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    table = saten_edge.compress(model, given.folder / "out", OPTIONS, calibration=["some text"] * given.texts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    largest = max(row["dense_bytes"] for row in table["layers"])
    print(
        json.dumps(
            {"stored": stored, "before": before, "peak": peak, "largest": largest, "layers": len(table["layers"])}
        )
    )


if __name__ == "__main__":
    main()
