"""Saten layers in torch: what they compute, what they learn, and what a wrong one would."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from saten_edge.checkpoints.modules import (
    FEW_ROWS,
    LayerSpec,
    SatenEmbedding,
    SatenHead,
    SatenLinear,
    build_module,
)
from saten_edge.decomposition.residual import PATTERNS, Residual, pattern_named, scatter
from saten_edge.decomposition.tt import TensorTrain, tensor_train

# A name of every row of the table; the last row's names carry numbers.
NAMED = [name if name != "N:M" else "2:4" for name in PATTERNS]


def spec_of(kind: str, pattern: str, train: TensorTrain, residual: Residual, **options: Any) -> LayerSpec:
    return LayerSpec(
        kind=kind,
        shape=train.shape,
        cores=tuple(tuple(core.shape) for core in train.cores),
        inputs=train.inputs,
        pattern=pattern,
        values=tuple(residual.values.shape),
        indices={
            name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in residual.indices.items()
        },
        error=0.0,
        **{"group": 2, "bias": False, "padding_idx": None, **options},
    )


def small_linear(pattern: str = "grouped", dtype: torch.dtype = torch.float64) -> SatenLinear:
    """(6 → 8), bond 2, with a residual of 2 outputs per block or of 8 entries."""
    generator = torch.Generator().manual_seed(3)
    train = tensor_train(
        torch.randn(6, 2, generator=generator, dtype=dtype),
        torch.randn(2, 8, generator=generator, dtype=dtype),
        ((2, 3), (4, 2)),
    )
    chosen = pattern_named(pattern, "linear", group=2, width=8)
    matrix = torch.randn(6, 8, generator=generator, dtype=dtype)
    residual = chosen.extract(matrix, chosen.select(matrix.square(), 8))
    spec = spec_of("linear", pattern, train, residual, bias=True)
    module = build_module("small", spec, dtype)
    assert isinstance(module, SatenLinear)
    module.set_parts(train, residual)
    torch.nn.init.normal_(module.bias, generator=generator)
    return module


class TestSatenLinear:
    @pytest.mark.parametrize("pattern", NAMED)
    def test_forward_is_train_plus_residual_plus_bias(self, pattern):
        module = small_linear(pattern)
        x = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        where = module.residual.pattern.positions(module.residual.index_tensors(), (6, 8))
        dense = module.train_part().dense() + scatter(module.residual.values, where, (6, 8))
        assert torch.allclose(module(x), torch.einsum("bti,io->bto", x, dense) + module.bias, rtol=0, atol=1e-13)

    def test_each_part_matters(self):
        x = torch.eye(6, dtype=torch.float64)
        for part in ("cores.0", "cores.3", "residual.values", "bias"):
            module = small_linear()
            before = module(x)
            with torch.no_grad():
                module.get_parameter(part).zero_()
            assert not torch.allclose(module(x), before, atol=1e-3), part

    @pytest.mark.parametrize("pattern", NAMED)
    def test_gradients_reach_every_core_and_value(self, pattern):
        """Against central differences, whose own error is O(h²) + eps / h."""
        module = small_linear(pattern)
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

        def loss() -> torch.Tensor:
            return module(x).square().sum()

        loss().backward()
        step = 1e-5
        for name, parameter in module.named_parameters():
            flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
            for k in range(flat.numel()):
                kept = flat[k].item()
                flat[k] = kept + step
                above = loss().item()
                flat[k] = kept - step
                below = loss().item()
                flat[k] = kept
                assert gradient[k].item() == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-6), name
            assert (gradient != 0).any() or not flat.numel(), name

    def test_replaced_residuals_are_seen_at_once(self):
        """Where the entries lie is remembered between calls, but not longer than they lie there."""
        module = small_linear()
        x = torch.eye(6, dtype=torch.float64)
        module(x)
        matrix = torch.randn(6, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        chosen = module.residual.pattern
        module.residual.replace(chosen.extract(matrix, chosen.select(matrix.square(), 8)))
        where = chosen.positions(module.residual.index_tensors(), (6, 8))
        dense = module.train_part().dense() + scatter(matrix.reshape(-1)[where], where, (6, 8))
        assert torch.allclose(module(x), dense + module.bias, rtol=0, atol=1e-13)

    def test_specs_survive_json(self):
        spec = small_linear("unstructured").spec
        assert LayerSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def small_table(pattern: str, padding_idx: int | None = None, dtype: torch.dtype = torch.float64) -> SatenEmbedding:
    """40 rows of 6, bond 3, with a residual of some rows or of two entries in each."""
    generator = torch.Generator().manual_seed(4)
    train = tensor_train(
        torch.randn(40, 3, generator=generator, dtype=dtype),
        torch.randn(3, 6, generator=generator, dtype=dtype),
        ((5, 8), (3, 2)),
    )
    chosen = pattern_named(pattern, "embedding", group=1, width=6)
    matrix = torch.randn(40, 6, generator=generator, dtype=dtype)
    residual = chosen.extract(matrix, chosen.select(matrix.square(), 80))
    module = build_module("table", spec_of("embedding", pattern, train, residual, padding_idx=padding_idx), dtype)
    assert isinstance(module, SatenEmbedding)
    module.set_parts(train, residual)
    return module


FEW, MANY = torch.tensor([[3, 39, 3, 0], [7, 0, 0, 12]]), torch.arange(39, -1, -1).reshape(8, 5)


class TestSatenEmbedding:
    @pytest.mark.parametrize("pattern", NAMED)
    @pytest.mark.parametrize("ids", [FEW, MANY], ids=["few", "many"])
    def test_a_lookup_is_rows_of_the_matrix(self, pattern, ids):
        module = small_table(pattern)
        assert (len(ids.unique()) <= FEW_ROWS * 40) is (ids is FEW)  # both ways are taken
        rows = module.matrix()[ids]
        assert torch.allclose(module(ids), rows, rtol=0, atol=1e-13)
        assert not torch.allclose(module(ids), rows.roll(1, 0), rtol=0, atol=1e-3)

    @pytest.mark.parametrize("pattern", NAMED)
    @pytest.mark.parametrize("padding_idx", [None, 0])
    def test_both_ways_have_the_same_gradient(self, pattern, padding_idx, monkeypatch):
        """That of `nn.Embedding` on the rebuilt matrix; padding teaches the table nothing."""
        gradients = []
        for share in (0.0, 1.0):
            monkeypatch.setattr("saten_edge.checkpoints.modules.FEW_ROWS", share)
            module = small_table(pattern, padding_idx)
            module(FEW).square().sum().backward()
            gradients.append([parameter.grad for parameter in module.parameters()])
        module = small_table(pattern, padding_idx)
        torch.nn.functional.embedding(FEW, module.matrix(), padding_idx).square().sum().backward()
        for wanted, *got in zip([parameter.grad for parameter in module.parameters()], *gradients, strict=True):
            assert all(torch.allclose(each, wanted, rtol=0, atol=1e-12) for each in got)
        assert gradients[0][0].any()

    def test_no_ids_at_all(self):
        assert small_table("grouped")(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 6)

    def test_ids_outside_the_table(self):
        with pytest.raises(IndexError):
            small_table("grouped")(torch.tensor([40]))


class TestSatenHead:
    @pytest.mark.parametrize("pattern", NAMED)
    @pytest.mark.parametrize("bias", [False, True])
    def test_it_multiplies_by_the_transposed_table(self, pattern, bias):
        table = small_table(pattern)
        head = SatenHead(table, torch.nn.Parameter(torch.arange(40.0).double()) if bias else None)
        x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        wanted = torch.einsum("btw,rw->btr", x, table.matrix()) + (torch.arange(40.0) if bias else 0)
        assert torch.allclose(head(x), wanted, rtol=0, atol=1e-12)
        assert not torch.allclose(head(x), wanted.roll(1, -1), rtol=0, atol=1e-3)

    def test_the_parts_are_the_tables_and_counted_once(self):
        table = small_table("grouped")
        model = torch.nn.ModuleDict({"table": table, "head": SatenHead(table)})
        assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"table"}
        assert {name.split(".")[0] for name in model.state_dict()} == {"table"}
        copied = copy.deepcopy(model)
        with torch.no_grad():
            copied["table"].cores[0].zero_()
        x = torch.ones(1, 6, dtype=torch.float64)
        assert not torch.equal(copied["head"](x), model["head"](x))
        model["head"](x).sum().backward()
        assert table.cores[0].grad.any()
