"""`compress` with its defaults, and what follows it, on layers that blocks of 32 outputs do not divide."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]

# model_type, task, entries of the config → what the table says of the patterns of the linear layers
MODELS: dict[str, tuple[str, str, dict[str, Any], set[str]]] = {
    "77 labels": ("distilbert", "text-classification", {"num_labels": 77}, {"grouped 32", "grouped 11"}),
    "1000 labels": ("vit", "image-classification", {"num_labels": 1000}, {"grouped 32", "grouped 25"}),
    "hidden size 100": ("bert", "feature-extraction", {"hidden_size": 100}, {"grouped 25", "grouped 32"}),
    "a prime hidden size": (
        "bert",
        "feature-extraction",
        {"hidden_size": 101, "num_attention_heads": 1},
        {"unstructured", "grouped 32"},
    ),
    "a vocabulary of 2001": (
        "llama",
        "text-generation",
        {"vocab_size": 2001},
        {"grouped 29", "grouped 32"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_defaults_compress_it_and_the_rest_goes_on(
    name: str, make_tiny: Callable[..., Path], saten_edge: Command, tmp_path: Path
) -> None:
    model_type, task, options, patterns = MODELS[name]
    model = make_tiny(model_type, task, **options)
    done = saten_edge("compress", model, "-o", "saten", "--budget", 0.5, "--share", 0.5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads((tmp_path / "saten" / "saten_layers.json").read_text())["layers"] if row["nnz"]]
    assert {row["pattern"] for row in rows if row["kind"] == "linear"} == patterns
    for row in rows:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{row['name']} ")]
        assert f" {row['pattern']} " in line
    for arguments in (("export", "saten", "-o", "bundle"), ("validate", "bundle")):
        done = saten_edge(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    layers = json.loads((tmp_path / "bundle" / "saten_edge.json").read_text())["layers"]
    assert {layer["nnz"] for layer in layers if layer["name"] == rows[-1]["name"]} == {rows[-1]["nnz"]}
