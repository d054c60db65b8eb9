"""Measurements are kept whole, and only what `save` wrote is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saten_edge.decomposition.allocation import Measured
from saten_runtime.errors import CheckpointError

MEASURED = Measured(
    {"a.b": torch.rand(3, 3, dtype=torch.float64), "table": torch.rand(5, dtype=torch.float64)},
    {"a.b": 1 / 3, "table": 2e-9},
)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path):
    MEASURED.save(tmp_path / "measured.safetensors")
    back = Measured.load(tmp_path / "measured.safetensors")
    assert back.sensitivities == MEASURED.sensitivities
    assert set(back.moments) == set(MEASURED.moments)
    assert all(torch.equal(back.moments[name], moments) for name, moments in MEASURED.moments.items())
    assert [path.name for path in tmp_path.iterdir()] == ["measured.safetensors"]


def test_moments_that_layers_share_are_kept_once(tmp_path: Path):
    """As those of query, key and value, which read the same."""
    shared = torch.rand(64, 64)
    Measured({"query": shared, "key": shared, "other": torch.rand(3)}, {"query": 1.0}).save(tmp_path / "shared")
    assert (tmp_path / "shared").stat().st_size < 1.5 * shared.nbytes
    back = Measured.load(tmp_path / "shared")
    assert back.moments["key"] is back.moments["query"]
    assert torch.equal(back.moments["key"], shared)
    assert back.moments["other"].shape == (3,)


def test_one_changed_number_is_noticed(tmp_path: Path):
    MEASURED.save(tmp_path / "measured.safetensors")
    tensors = load_file(tmp_path / "measured.safetensors")
    tensors["moments.table"][2] += 1e-15
    save_file(tensors, tmp_path / "measured.safetensors")
    back = Measured.load(tmp_path / "measured.safetensors")
    assert not torch.equal(back.moments["table"], MEASURED.moments["table"])


@pytest.mark.parametrize("kind", ["missing", "no safetensors", "cut", "of a model"])
def test_what_is_no_measurement_is_refused(kind, tmp_path: Path):
    path = tmp_path / "measured.safetensors"
    if kind == "no safetensors":
        path.write_text("moments")
    elif kind == "cut":
        MEASURED.save(path)
        path.write_bytes(path.read_bytes()[:-3])
    elif kind == "of a model":
        save_file({"layer.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"measured\.safetensors: (cannot be read as measurements|holds 'layer)"):
        Measured.load(path)
