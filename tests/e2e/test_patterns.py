"""A sparse pattern of whole outputs all the way from weights to a bundle, every byte as it was counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

import saten_edge
from saten_edge.checkpoints.models import load_model
from saten_edge.decomposition.residual import Residual
from saten_runtime.run.parity import check_parity

PATTERNS = ("2:4", "1:4", "1:8", "1:16")
EXPORTED = ("2:4", "1:8")  # an export takes long


@pytest.fixture(scope="module", params=PATTERNS)
def compressed(
    request: pytest.FixtureRequest, tiny_bert: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    """Pattern, checkpoint and table of layers."""
    out = tmp_path_factory.mktemp("models") / "saten"
    options = saten_edge.CompressOptions(0.4, request.param, recipe=saten_edge.Recipe(rounds=2, share=0.7))
    table = saten_edge.compress(tiny_bert, out, options, calibration=texts)
    return request.param, out, table


def bits_of(pattern: str) -> int:
    """Of a code."""
    return round(math.log2(int(pattern.partition(":")[2])))


def outputs_of(pattern: str, row: dict[str, Any]) -> int:
    """How many outputs of a layer keep entries."""
    kept, of = map(int, pattern.split(":"))
    return row["nnz"] // (row["shape"][0] // of * kept)


def test_the_checkpoint_stores_the_bytes_that_were_counted(compressed):
    pattern, folder, table = compressed
    tensors = load_file(folder / "model.safetensors")
    linear = [row for row in table["layers"] if row["kind"] == "linear"]
    assert {row["solver"] for row in linear} <= {"admm", "alternate"}
    assert any(row["solver"] == "admm" for row in linear)
    assert all(row["nnz"] for row in linear)
    for row in linear:
        parts = {
            name: t for name, t in tensors.items() if name.startswith((f"{row['name']}.cores", f"{row['name']}.r"))
        }
        assert sum(tensor.numel() * tensor.element_size() for tensor in parts.values()) == row["bytes"], row["name"]
        kept, code_bits = outputs_of(pattern, row), bits_of(pattern)
        without_codes = sum(
            tensor.numel() * tensor.element_size() for name, tensor in parts.items() if "codes" not in name
        )
        assert row["bytes"] - without_codes == math.ceil(row["nnz"] * code_bits / 8)
        assert parts[f"{row['name']}.residual.outputs"].numel() == kept


def test_no_group_holds_more_entries(compressed):
    pattern, folder, table = compressed
    kept, of = map(int, pattern.split(":"))
    model = load_model(folder).model
    for row in table["layers"]:
        if row["kind"] == "linear":
            entries = model.get_submodule(row["name"]).residual.dense().detach() != 0
            held = entries.reshape(-1, of, entries.shape[1]).sum(1)
            assert held.max() == kept, row["name"]
            assert int(held.sum()) == row["nnz"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_is_exported_and_verified(compressed, precision, tmp_path):
    pattern, folder, table = compressed
    if pattern not in EXPORTED:
        pytest.skip("the layout is the same for all of them, and an export takes long")
    options = saten_edge.ExportOptions(precision, lowering="low-rank")  # some of the tiny layers are cheaper dense
    bundle = saten_edge.export(folder, tmp_path / "bundle", options)
    assert all(comparison.holds for comparison in check_parity(bundle))
    entries = {row["name"]: row["nnz"] for row in table["layers"]}
    assert {layer.name: layer.nnz for layer in bundle.manifest.layers if layer.nnz} == {
        name: count for name, count in entries.items() if count
    }
    model = ir.load(bundle.model)
    for row in table["layers"]:
        if row["kind"] == "linear":
            assert residual_bytes(model, row["name"]) == counted(pattern, row, precision), row["name"]


RESIDUAL = ("outputs", "codes", "stored", "scale", "sizes")


def residual_bytes(model: ir.Model, layer: str) -> int:
    """What a layer's node reads of its residual; layers may share what is alike in both."""
    (node,) = (node for node in model.graph if node.name == layer)
    names = (value.name for value in model.functions[node.op_identifier()].inputs)
    weights = dict(zip(names, node.inputs, strict=True))
    return sum(weights[name].const_value.nbytes for name in RESIDUAL if name in weights)


def counted(pattern: str, row: dict[str, Any], precision: str) -> int:
    """Codes of a few bits; values; numbers of outputs, and their scales in int8; four sizes of eight bytes."""
    value_bytes, scale_bytes = {"fp32": (4, 0), "int8": (1, 4)}[precision]
    codes = -(-row["nnz"] * bits_of(pattern) // 8)
    return codes + row["nnz"] * value_bytes + outputs_of(pattern, row) * (2 + scale_bytes) + 4 * 8


def test_a_changed_code_is_another_matrix(compressed):
    """The twin of the above: what is stored is what is read."""
    _, folder, table = compressed
    name = next(row["name"] for row in table["layers"] if row["kind"] == "linear")
    layer = load_model(folder).model.get_submodule(name)
    before = layer.residual.dense()
    values, indices = layer.residual.values.detach(), layer.residual.index_tensors()
    indices["codes"] = indices["codes"] ^ 1
    layer.residual.replace(Residual(values, indices))
    assert not torch.equal(layer.residual.dense(), before)
