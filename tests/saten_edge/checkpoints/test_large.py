"""Models larger than memory: no more than a layer or two of them are there at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import larger_than_memory
import pytest
import torch
import transformers
from safetensors.torch import load_file

import saten_edge
from saten_edge.checkpoints import compress as compression
from saten_edge.checkpoints import layers
from saten_edge.checkpoints.compress import compressible_layers, matrices
from saten_edge.checkpoints.models import load_model
from saten_edge.decomposition.allocation import Measured
from saten_edge.decomposition.decompose import Decomposition
from saten_edge.decomposition.recipe import Recipe
from saten_edge.decomposition.residual import Residual
from saten_edge.decomposition.tt import TensorTrain
from saten_edge.options import CompressOptions

# Bytes of a large layer, as stored, and how many of them may be in memory.
WIDTH, INNER, BLOCKS = 256, 4096, 4
LAYER_BYTES, MOST_LAYERS = 2 * WIDTH * INNER, 2
OPTIONS = CompressOptions(budget=0.3, pattern="none", allocation="uniform", recipe=Recipe(rounds=1, solver="alternate"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[..., Path]) -> Path:
    """A decoder in bfloat16 whose head is not tied, in a dozen files."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": BLOCKS}
    dense = make_tiny("llama", "text-generation", tie_word_embeddings=False, **sizes)
    folder = tmp_path_factory.mktemp("large") / "model"
    shutil.copytree(dense, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model = transformers.LlamaForCausalLM.from_pretrained(dense, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > BLOCKS
    os.sync()  # memory of what is not on the disk yet is not given back
    return folder


def resident_bytes(folder: Path) -> int:
    """Of all mappings of a folder's files in this process."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


def first_row_and_column(matrix: torch.Tensor) -> Decomposition:
    """In the place of a decomposition, for its time."""
    cores = (matrix[:, :1].clone()[None], matrix[:1].clone().T[None])
    train = TensorTrain(cores, 1, None)
    return Decomposition(train, Residual(torch.empty(0), {}), 4 * sum(matrix.shape), 1.0, 1.0, "alternate")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives memory back")
@pytest.mark.parametrize("calibrated", [False, True])
def test_no_more_than_two_layers_are_in_memory(
    calibrated: bool, sharded: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the model's files, of those that are written, and of what is made of them."""
    resident, matrices, alive = [], [], []

    def watched(matrix: torch.Tensor, *_: Any) -> Decomposition:
        matrices.append(weakref.ref(matrix))
        alive.append(sum(each() is not None for each in matrices))
        resident.append(resident_bytes(sharded) + resident_bytes(tmp_path))
        return first_row_and_column(matrix)

    monkeypatch.setattr(layers, "decompose", watched)
    given = texts[:4] if calibrated else ()
    saten_edge.compress(sharded, tmp_path / "out", OPTIONS, calibration=given)
    assert len(resident) == 7 * BLOCKS + 2
    assert max(alive) == 1
    assert 0 < max(resident) <= MOST_LAYERS * LAYER_BYTES < sum(path.stat().st_size for path in sharded.glob("*")) / 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives memory back")
def test_without_giving_back_the_whole_model_would_be(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "release", lambda tensor: None)
    resident = []

    def watched(matrix: torch.Tensor, *_: Any) -> Decomposition:
        resident.append(resident_bytes(sharded))
        return first_row_and_column(matrix)

    monkeypatch.setattr(layers, "decompose", watched)
    saten_edge.compress(sharded, tmp_path / "out", OPTIONS)
    assert max(resident) > 2 * MOST_LAYERS * LAYER_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives memory back")
@pytest.mark.parametrize("given_back", [True, False])
def test_what_was_read_to_share_out_the_bytes_is_given_back(
    given_back: bool, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, resident = load_model(sharded, dtype="auto"), []
    sizes = {name: len(matrix) for name, matrix in matrices(compressible_layers(loaded.model)).items()}
    measured = Measured({name: torch.ones(inputs) for name, inputs in sizes.items()}, dict.fromkeys(sizes, 1.0))

    def watched(matrix: torch.Tensor, *_: Any) -> Decomposition:
        resident.append(resident_bytes(sharded))
        return first_row_and_column(matrix)

    monkeypatch.setattr(layers, "decompose", watched)
    if not given_back:
        monkeypatch.setattr(compression, "release", lambda tensor: None)
    how = {"allocation": "sensitivity", "measured": measured, "recipe": OPTIONS.recipe}
    compression.compress(loaded, 0.3, pattern="none", **how)
    assert (resident[0] <= MOST_LAYERS * LAYER_BYTES) == given_back


@pytest.mark.slow  # reads and writes 16 GB that are not there
@pytest.mark.parametrize("texts_read", [0, 2])
def test_a_model_of_eight_billion_weights(texts_read: int, sharded: Path, tmp_path: Path) -> None:
    """4 × the largest layer and 1 GiB, with a block that is really decomposed where there are no texts."""
    command = [sys.executable, larger_than_memory.__file__, str(tmp_path), str(sharded), "--texts", str(texts_read)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert found["layers"] == 226
    assert found["stored"] >= 16e9
    assert found["peak"] <= 4 * found["largest"] + (1 << 30)
    assert found["peak"] < found["stored"]


def test_the_files_are_those_of_a_model_in_memory(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "decompose", lambda matrix, *_: first_row_and_column(matrix))
    saten_edge.compress(sharded, tmp_path / "out", OPTIONS)
    loaded = load_model(sharded)
    assert len(compressible_layers(loaded.model)) == 7 * BLOCKS + 2
    compression.compress(loaded, 0.3, pattern="none", allocation="uniform", recipe=OPTIONS.recipe)
    wanted = loaded.model.state_dict()
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)
    assert load_model(tmp_path / "out").model.config.dtype == torch.float32
