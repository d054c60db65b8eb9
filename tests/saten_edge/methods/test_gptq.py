"""`compress --method gptq`: what is rounded, what is stored of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_sizes import INNER, WIDTH

import saten_edge
from saten_edge.checkpoints.compress import compressible_layers, kind_of, matrices
from saten_edge.checkpoints.models import load_model
from saten_edge.options import CompressOptions, ExportOptions
from saten_edge.training.rounding import rounded
from saten_exporters.quantize import PRECISIONS, in_blocks
from saten_runtime.errors import UsageError

ROUNDED = ("int4", "int4-128", "int2")
ZERO = np.float32(0)  # added, it leaves no negative zero


def told(precision: str | None, **options: Any) -> CompressOptions:
    return CompressOptions(**{"method": "gptq", "precision": precision, **options})


@pytest.fixture(scope="module")
def made(tiny_bert: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """precision → (folder, what `saten_layers.json` holds)."""
    found = {}
    for name in ROUNDED:
        out = tmp_path_factory.mktemp("gptq") / "out"
        found[name] = out, saten_edge.compress(tiny_bert, out, told(name), calibration=texts[:32])
    return found


def rows_of(folder: Path) -> set[bytes]:
    """Each output's weights in the linear layers of a model."""
    rows = (row for matrix in linear(folder).values() for row in matrix.detach().T.contiguous().numpy() + ZERO)
    return {row.tobytes() for row in rows}


def stored_rows(bundle: Path, name: str) -> set[bytes]:
    """The outputs' weights that the codes and scales of products in a bundle say, without what fills up blocks."""
    bits = PRECISIONS[name].bits
    arrays = {
        each.name: numpy_helper.to_array(each, str(bundle))
        for each in onnx.load(bundle / "model.onnx").graph.initializer
    }
    found = set()
    for key, packed in arrays.items():
        if packed.dtype != np.uint8 or packed.ndim != 3:
            continue
        beside = [each for other, each in arrays.items() if other.startswith(f"{key.rpartition('.')[0]}.")]
        (scales,) = (each for each in beside if each.dtype == np.float32)
        codes = np.stack([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], -1)
        numbers = codes.reshape(*packed.shape[:2], -1).astype(np.float32) - (1 << bits - 1)
        rows = (numbers * scales.reshape(*packed.shape[:2], 1)).reshape(len(packed), -1) + ZERO
        found |= {row[:width].tobytes() for width in (WIDTH, INNER) for row in rows}
    return found


def linear(folder: Path) -> dict[str, torch.Tensor]:
    """The matrices (in, out) of the linear layers."""
    layers = compressible_layers(load_model(folder).model)
    return {name: m for name, m in matrices(layers).items() if kind_of(layers[name]) == "linear"}


@pytest.mark.parametrize("name", ROUNDED)
def test_linear_layers_are_on_the_grid_and_all_else_is_as_it_was(name, made, tiny_bert):
    folder, table = made[name]
    before, after = linear(tiny_bert), linear(folder)
    assert {row["name"] for row in table["layers"]} == set(after)
    for layer, matrix in after.items():
        how = PRECISIONS[name].for_inputs(len(matrix))
        stored = [in_blocks(np.ascontiguousarray(each.detach().T.numpy()), how).T for each in (matrix, before[layer])]
        assert np.array_equal(stored[0], matrix.detach().numpy())
        assert not np.array_equal(stored[1], before[layer].detach().numpy())
    same, dense = (load_model(each).model.state_dict() for each in (folder, tiny_bert))
    others = [key for key in dense if key.removesuffix(".weight") not in after]
    assert others
    assert all(torch.equal(same[key], dense[key]) for key in others)


@pytest.mark.parametrize("name", ROUNDED)
def test_training_rounds_nothing_that_is_rounded_already(name, made, tiny_bert, texts):
    """The tables have no grid, so they are left out of what is compared."""
    folder, _ = made[name]
    for source, same in ((folder, True), (tiny_bert, False)):
        loaded = load_model(source)
        layer = loaded.model.get_submodule(next(iter(linear(source))))
        x = torch.randn(3, layer.weight.shape[1], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            plain = layer(x)
            with rounded(loaded.model, name):
                assert torch.allclose(layer(x), plain, atol=1e-6) is same


@pytest.mark.parametrize("name", ROUNDED)
def test_a_bundle_at_the_precision_has_the_weights_and_others_are_told(name, made, tiny_bert, tmp_path, run):
    folder, table = made[name]
    saten_edge.export(folder, tmp_path / "bundle", ExportOptions(precision=name, max_loss=float("inf")))
    wanted = {
        row.tobytes() for matrix in linear(folder).values() for row in matrix.detach().T.contiguous().numpy() + ZERO
    }
    assert wanted <= stored_rows(tmp_path / "bundle", name)
    changed = {row.tobytes() for matrix in linear(tiny_bert).values() for row in matrix.detach().T.contiguous().numpy()}
    assert not changed & stored_rows(tmp_path / "bundle", name)
    (stage,) = load_model(folder).recipe.stages
    assert (stage.stage, stage.options["precision"]) == ("gptq", name)
    assert all(0 < row["error"] < 1 and row["bytes"] < row["dense_bytes"] / 5 for row in table["layers"])
    _, _, said = run("export", folder, "-o", tmp_path / "other", "--precision", "int8", "--max-loss", "inf")
    assert f"the weights were rounded for {name}" in said
    _, _, said = run("export", folder, "-o", tmp_path / "own", "--precision", name, "--max-loss", "inf")
    assert "rounded for" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.3}, r"--budget is for --method saten, but this is --method gptq"),
        ({"tolerance": 0.3}, r"--tolerance is for --method ptnn, but this is --method gptq"),
        ({"then": "saten"}, r"--then saten cannot follow --method gptq"),
        ({"method": "flat", "precision": None, "then": "gptq"}, r"--then gptq cannot follow --method flat"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        told(**{"precision": "int4", **options})


@pytest.mark.parametrize(
    ("precision", "count", "message"),
    [
        ("int4", 0, "--method gptq weighs errors by texts or images; pass --calibration"),
        (None, 8, "found no --precision; pass one of int4, int4-128, int2"),
        ("int8", 8, "found --precision int8; pass one of int4, int4-128, int2"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(precision, count, message, tiny_bert, texts, tmp_path):
    with pytest.raises(UsageError, match=message):
        saten_edge.compress(tiny_bert, tmp_path / "out", told(precision), calibration=texts[:count])
    assert not (tmp_path / "out").exists()


def test_weights_are_rounded_once(made, texts, tmp_path):
    with pytest.raises(UsageError, match="the weights are rounded already; start from the model before it"):
        saten_edge.compress(made["int4"][0], tmp_path / "out", told("int4"), calibration=texts[:8])
