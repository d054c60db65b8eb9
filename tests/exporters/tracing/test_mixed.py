"""Which layers int8 keeps in blocks: those whose activations one scale does not fit, and no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_exporters import export
from saten_exporters.bundles.judge import cases_of, judge_of
from saten_exporters.quantize import quantize_blocks
from saten_exporters.tracing.mixed import BLOCKS, Mixed, head_losses, mixed_layers, noise_of, round_to_bytes, worst
from saten_runtime.bundle.folder import Bundle

HUGE = 40.0
MOST = 0.05
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


def chosen_at(precision: str, loaded: LoadedModel) -> tuple[str, ...]:
    """The layers that stay in blocks, by the built-in text."""
    return mixed_layers(loaded, precision, (case.inputs for case in cases_of(loaded, judge_of(loaded, None)))).layers


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
        expected = float((((rounded - y) ** 2).sum(-1) / (y**2).sum(-1)).clamp_max(1).mean())
        found = noise_of(model, {"layer": layer}, [{"input": inputs}])
        assert found == {"layer": pytest.approx(expected, rel=1e-5)}
    assert not layer._forward_hooks


def test_a_huge_token_does_not_hide_what_the_others_lose() -> None:
    layer = torch.nn.Linear(64, 32, bias=False).requires_grad_(False)
    x = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(1))
    x[0, 0] *= 1000
    y, rounded = layer(x), layer(round_to_bytes(x))
    found = noise_of(torch.nn.Sequential(layer), {"layer": layer}, [{"input": x}])["layer"]
    assert found > 0.5  # eight of nine tokens are lost
    assert float(((rounded - y) ** 2).sum() / (y**2).sum()) < 0.01  # the twin: all tokens as one


def test_a_head_takes_its_table_with_it(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load_model(make_tiny("qwen2", "text-generation"))
    assert chosen_at("int8", loaded) == ()
    with torch.no_grad():
        loaded.model.model.norm.weight[5] *= 4 * HUGE
        loaded.model.lm_head.weight[:, 5] /= 4 * HUGE
    bundle = export(loaded, tmp_path / "out", precision="int8", max_loss=float("inf"))
    lookups = Counter(node.op_type for node in ir.load(bundle.model).graph if node.op_type == "GatherBlockQuantized")
    assert bundle.manifest.mixed == {"lm_head": BLOCKS}
    assert (products(bundle)["MatMulNBits"], lookups["GatherBlockQuantized"]) == (1, 1)


@pytest.mark.parametrize("precision", ["int4", "int4-128", "int2"])
@pytest.mark.parametrize(("scale", "chosen"), [(30.0, ("lm_head",)), (0.01, ())], ids=["sharp", "flat"])
def test_a_head_is_kept_that_fewer_bits_cost_much(
    scale: float, chosen: tuple[str, ...], precision: str, make_tiny: Callable[..., Path]
) -> None:
    loaded = load_model(make_tiny("qwen2", "text-generation"))
    with torch.no_grad():
        loaded.model.model.norm.weight *= scale  # distributions of one token, or of all alike
    assert chosen_at(precision, loaded) == chosen


def test_what_a_head_loses_is_the_divergence_of_its_distributions() -> None:
    head = torch.nn.Linear(64, 96).requires_grad_(False)
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1))
    rounded = torch.nn.Linear(64, 96).requires_grad_(False)
    codes, scales = quantize_blocks(head.weight.numpy(), 4, 32)
    rounded.weight.data = torch.from_numpy(((codes.astype(np.float32) - 8) * scales[..., None]).reshape(96, 64))
    rounded.bias.data = head.bias.data
    p, q = (torch.distributions.Categorical(logits=each(x)) for each in (head, rounded))
    expected = float(torch.distributions.kl_divergence(p, q).mean())
    found = head_losses(torch.nn.Sequential(head), {"head": head}, [{"input": x}])
    assert found == {"head": pytest.approx(expected, rel=1e-3)}
    assert expected > 1e-4


@pytest.mark.parametrize(
    ("noise", "chosen"),
    [
        ({}, []),
        ({"a": 0.01, "b": 0.02}, []),
        ({"a": MOST}, []),
        ({"a": 2 * MOST}, ["a"]),
        ({"a": 1.0, "b": 0.02, "c": 0.04}, ["c", "a"]),
        ({"a": 1.0, "b": 0.01, "c": 0.04}, ["a"]),
    ],
)
def test_the_worst_are_taken_until_the_rest_is_small(noise: dict[str, float], chosen: list[str]) -> None:
    assert worst(noise, MOST) == chosen


def test_a_compressed_layer_goes_by_its_name() -> None:
    mixed = Mixed(("here",))
    assert [mixed.precision_of(name, "int8") for name in ("here", "there")] == [BLOCKS, "int8"]
