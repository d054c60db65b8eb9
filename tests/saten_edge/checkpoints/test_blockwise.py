"""Second moments block by block are those of the whole model, to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_sizes import TINY

import saten_edge
from saten_edge import stages
from saten_edge.checkpoints import layers
from saten_edge.checkpoints.architectures import ARCHITECTURES
from saten_edge.checkpoints.blockwise import BlockMoments
from saten_edge.checkpoints.compress import compressible_layers, tied_head
from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_edge.decomposition.calibration import second_moments
from saten_edge.decomposition.recipe import Recipe
from saten_edge.methods import saten
from saten_edge.methods.calibrate import calibrate
from saten_edge.options import CompressOptions
from saten_runtime.errors import UsageError


def halved(dense: Path, folder: Path) -> Path:
    """A model stored in bfloat16."""
    shutil.copytree(dense, folder)
    tensors = load_file(dense / "model.safetensors")
    small = {name: each.bfloat16() if each.is_floating_point() else each for name, each in tensors.items()}
    save_file(small, folder / "model.safetensors", {"format": "pt"})
    return folder


def batches_of(loaded: LoadedModel, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Two of different lengths, each with padding."""
    if loaded.processor is not None:
        torch.manual_seed(0)
        return [{"pixel_values": torch.randn(3, 3, 32, 32)} for _ in range(2)]
    return [loaded.encode(texts[start : start + 6], 40) for start in (0, 6)]


def by_blocks(loaded: LoadedModel, batches: list[Any], folder: Path, *, bf16: bool = False) -> BlockMoments:
    names, tied = list(compressible_layers(loaded.model)), list(tied_head(loaded.model).values())
    return BlockMoments(loaded.model, names, lambda: batches, tied, folder, bf16=bf16)


@pytest.mark.parametrize(("family", "bf16"), [*((family, False) for family in TINY), ("llama", True), ("bert", True)])
def test_every_family(
    family: str, bf16: bool, make_tiny: Callable[..., Path], texts: list[str], tmp_path: Path
) -> None:
    task = ARCHITECTURES[family].tasks[-1]
    dense = halved(make_tiny(family, task), tmp_path / "model")
    whole, mapped = load_model(dense), load_model(dense, dtype="auto")
    batches = batches_of(whole, texts)
    names = list(compressible_layers(whole.model))
    wanted = second_moments(whole.model, names, batches, list(tied_head(whole.model).values()), bf16=bf16)
    found = by_blocks(mapped, batches, tmp_path, bf16=bf16)
    assert list(found) == names
    assert len(found) == len(wanted) == len(names)
    for name in names:
        assert torch.equal(found[name], wanted[name]), name
    assert not any("forward" in vars(module) for module in mapped.model.modules())


def test_a_block_that_is_over_is_gone(tiny_bert: Path, texts: list[str], tmp_path: Path) -> None:
    loaded = load_model(tiny_bert)
    found = by_blocks(loaded, batches_of(loaded, texts), tmp_path)
    assert found["encoder.layer.1.output.dense"].shape == (128, 128)
    assert found["embeddings.word_embeddings"].shape == (1200,)
    with pytest.raises(ValueError, match=r"^encoder\.layer\.0\.output\.dense: block 0 is over"):
        found["encoder.layer.0.output.dense"]


def test_without_what_left_the_block_before_the_moments_are_others(
    tiny_bert: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: a block that is given noise sees something else."""
    loaded = load_model(tiny_bert)
    name, batches = "encoder.layer.1.attention.self.query", batches_of(loaded, texts)
    wanted = second_moments(loaded.model, [name], batches)[name]
    found = by_blocks(loaded, batches, tmp_path)
    assert found["encoder.layer.0.output.dense"] is not None
    for file in tmp_path.glob("*.npy"):
        np.save(file, np.zeros_like(np.load(file)))
    assert not torch.allclose(found[name], wanted)


@pytest.mark.parametrize("pattern", ["grouped", "none"])
def test_a_compression_is_the_same_as_in_memory(
    pattern: str, make_tiny: Callable[..., Path], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that goes on after a kill comes to the same bytes."""
    dense = halved(make_tiny("llama", "text-generation"), tmp_path / "model")
    options = CompressOptions(budget=0.4, pattern=pattern, group=8, allocation="uniform", recipe=Recipe(rounds=1))
    saten_edge.compress(dense, tmp_path / "blocks", options, calibration=texts)
    with monkeypatch.context() as patch:
        patch.setattr(
            saten,
            "calibrate_by_blocks",
            lambda loaded, layers, items, *_, bf16: calibrate(loaded, layers, items, None, None, bf16=bf16).moments,
        )
        patch.setattr(saten, "whole", lambda *_: False)
        patch.setattr(stages, "load_model", lambda model, dtype: load_model(model))
        saten_edge.compress(dense, tmp_path / "whole", options, calibration=texts)
    with monkeypatch.context() as patch:
        patch.setattr(layers, "decompose", interrupted(layers.decompose, after=9))
        with pytest.raises(KeyboardInterrupt):
            saten_edge.compress(dense, tmp_path / "resumed", options, calibration=texts)
    saten_edge.compress(dense, tmp_path / "resumed", options, calibration=texts, resume=True)
    wanted = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "blocks" / "model.safetensors").read_bytes() == wanted
    assert (tmp_path / "resumed" / "model.safetensors").read_bytes() == wanted


def interrupted(compute: Callable[..., Any], *, after: int) -> Callable[..., Any]:
    """Ctrl-C in the place of one computation."""
    left = iter(range(after))

    def computed(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return compute(*arguments)

    return computed


@pytest.mark.parametrize(
    ("options", "calibrated", "words"),
    [
        (CompressOptions(), True, "--allocation sensitivity holds the weights"),
        (CompressOptions(method="flat"), True, "--method flat holds the weights"),
        (CompressOptions(method="ptnn"), True, "--method ptnn holds the weights"),
        (CompressOptions(allocation="uniform"), True, ""),
        (CompressOptions(), False, ""),
    ],
)
def test_a_model_that_memory_does_not_hold_is_refused_where_it_has_to(
    options: CompressOptions,
    calibrated: bool,
    words: str,
    tiny_bert: Path,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "available_memory_bytes", lambda: 100_000)
    monkeypatch.setattr(stages, "load_model", lambda *_, **__: stop())
    with pytest.raises(UsageError, match=words or "not refused"):
        saten_edge.compress(tiny_bert, tmp_path / "out", options, calibration=texts if calibrated else ())


def stop() -> None:
    raise UsageError("not refused")
