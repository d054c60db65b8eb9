"""What training pools is what the device pools, and a gradient passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saten_edge.training import pooling
from saten_runtime.bundle.manifest import Module, Postprocess
from saten_runtime.run import pooling as device

NORM = Module("layer_norm", "w", "b", eps=1e-5)


def step(module: Module, width: int, out: int) -> device.Step:
    random = np.random.default_rng(len(module.activation))
    shape = (out, width) if module.kind == "dense" else (width,)
    bias = random.normal(size=out).astype(np.float32) if module.bias else np.zeros(0, np.float32)
    return device.Step(module, random.normal(size=shape).astype(np.float32), bias)


CASES: dict[str, tuple[str, list[Module]]] = {
    **{name: (name, []) for name in device.POOLS},
    "two of them": ("cls+mean", []),
    "a norm": ("mean", [NORM]),
    **{name: ("mean", [Module("dense", "w", "b" * (name != "tanh"), name)]) for name in device.ACTIVATIONS},
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_devices_and_has_a_gradient(name: str) -> None:
    kind, modules = CASES[name]
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    steps = [step(module, 4, 4) for module in modules]
    how = Postprocess(kind, normalize=True, modules=modules, dimensions=3)
    loaded: Any = SimpleNamespace(postprocess=how, steps=steps)
    got = pooling.pooling_of(loaded)(hidden, mask)
    wanted = device.pool(hidden.detach().numpy(), mask.numpy(), how, steps)
    assert np.abs(got.detach().numpy() - wanted).max() < 16 * np.finfo(np.float32).eps
    other = device.pool(hidden.detach().numpy() + 0.1 * np.arange(4, dtype=np.float32), mask.numpy(), how, steps)
    assert np.abs(got.detach().numpy() - other).max() > 1e-3
    got[:, 0].sum().backward()
    assert hidden.grad is not None
    assert float(hidden.grad.abs().sum()) > 1e-3


def test_the_tables_name_the_same() -> None:
    assert pooling.POOLS.keys() - {"none"} == device.POOLS.keys()
    assert pooling.STEPS.keys() == device.STEPS.keys()
    assert pooling.ACTIVATIONS.keys() == device.ACTIVATIONS.keys()
