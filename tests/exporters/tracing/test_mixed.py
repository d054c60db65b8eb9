"""Which layers int8 keeps in blocks: those whose activations one scale does not fit, and no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from saten_edge.checkpoints.models import load_model
from saten_exporters import export
from saten_exporters.tracing.mixed import BLOCKS, LARGEST_NOISE, Mixed, noise_of, round_to_bytes, worst
from saten_runtime.bundle.folder import Bundle

HUGE = 40.0
PLANTED = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}


def exported(folder: Path, out: Path, *, planted: bool) -> Bundle:
    """A tiny decoder at int8; planted: with a huge channel behind the first norm, which the next weights undo."""
    loaded = load_model(folder)
    layer = loaded.model.model.layers[0]
    if planted:
        with torch.no_grad():
            layer.input_layernorm.weight[5] *= HUGE
            for name in PLANTED:
                layer.get_submodule(name).weight[:, 5] /= HUGE
    return export(loaded, out, precision="int8", max_loss=float("inf"))


def products(bundle: Bundle) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(bundle.model).graph if "Mul" in node.op_type and node.domain)


def test_a_layer_with_a_huge_channel_stays_in_blocks(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_tiny("llama", "text-generation")
    mixed, plain = (exported(folder, tmp_path / str(planted), planted=planted) for planted in (True, False))
    assert set(mixed.manifest.mixed) <= {f"model.layers.0.{name}" for name in PLANTED}
    assert set(mixed.manifest.mixed.values()) == {BLOCKS}
    assert f"{len(mixed.manifest.mixed)} layers are stored at {BLOCKS}." in (mixed.path / "README.md").read_text()
    # The three are one product in the graph.
    assert products(mixed)["MatMulNBits"] == 1
    # The twin.
    assert plain.manifest.mixed == {}
    assert products(plain)["MatMulNBits"] == 0
    assert products(plain)["DynamicQuantizeMatMul"] == products(mixed)["DynamicQuantizeMatMul"] + 1


def test_the_noise_is_that_of_the_bytes() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32).requires_grad_(False)
    model = torch.nn.Sequential(layer)
    x = torch.randn(1, 9, 64)
    spread = x.clone()
    spread[0, 0, 0] = 500.0
    for inputs in (x, spread):
        y, rounded = layer(inputs), layer(round_to_bytes(inputs))
        expected = float(((rounded - y) ** 2).sum() / (y**2).sum())
        found = noise_of(model, {"layer": layer}, [{"input": inputs}])
        assert found == {"layer": pytest.approx(expected, rel=1e-5)}
    assert not layer._forward_hooks


@pytest.mark.parametrize(
    ("noise", "chosen"),
    [
        ({}, []),
        ({"a": 0.01, "b": 0.02}, []),
        ({"a": LARGEST_NOISE}, []),
        ({"a": 2 * LARGEST_NOISE}, ["a"]),
        ({"a": 1.0, "b": 0.02, "c": 0.04}, ["c", "a"]),
        ({"a": 1.0, "b": 0.01, "c": 0.04}, ["a"]),
    ],
)
def test_the_worst_are_taken_until_the_rest_is_small(noise: dict[str, float], chosen: list[str]) -> None:
    assert worst(noise, LARGEST_NOISE) == chosen


def test_a_compressed_layer_goes_by_its_name() -> None:
    mixed = Mixed(("here",))
    assert [mixed.precision_of(name, "int8") for name in ("here", "there")] == [BLOCKS, "int8"]
