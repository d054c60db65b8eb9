"""export(): a complete, verified bundle, or nothing at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_edge.checkpoints.models import LoadedModel
from saten_exporters import PRECISIONS, TARGETS, rounding_bound
from saten_exporters.quantize import STORED
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.layers import layers_of
from saten_runtime.records.files import sha256_file
from saten_runtime.records.folders import MARK
from saten_runtime.run.parity import check_parity
from saten_runtime.vocabulary.operators import DOMAIN

BUNDLES = [(model, precision) for model in ("dense", "saten", "unstructured") for precision in PRECISIONS]
CASES = {"single": (1, 1), "short": (1, 7), "padded": (2, 16), "ragged": (3, 33)}
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}

# Random weights make the most of every rounding; that of trained ones is what `--max-loss` refuses.
LEAST_COSINE = {"int4-128": 0.85, "int2": 0.3}

BundleOf = Callable[[str, str], Bundle]


def weights_of(model: ir.Model) -> dict[str, int]:
    """Name of each `saten` node → bytes of the initializers it reads, but for a bias."""
    return {
        node.name: sum(
            value.const_value.nbytes
            for name, value in zip(model.functions[node.op_identifier()].inputs, node.inputs, strict=True)
            if name.name != "bias" and value.const_value is not None
        )
        for node in model.graph
        if node.domain == DOMAIN
    }


# --- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "precision"), BUNDLES)
def test_the_manifest(model: str, precision: str, bundle_of: BundleOf, loaded_tiny: dict[str, LoadedModel]) -> None:
    manifest, source = bundle_of(model, precision).manifest, loaded_tiny[model]
    assert manifest.name == f"{model}-{precision}"
    assert (manifest.precision, manifest.task) == (precision, "feature-extraction")
    assert manifest.source == source.source
    assert manifest.source["architecture"] == "BertModel"
    assert len(manifest.source["sha256"]) == 64
    assert set(manifest.inputs) == INPUTS
    assert manifest.outputs == ["last_hidden_state"]
    assert (manifest.opset, manifest.ir_version) == (18, 10)
    assert manifest.smallest_onnxruntime == TARGETS["x86-64"].smallest_for(STORED[precision])
    assert manifest.tokenizer.max_length == source.max_length
    assert manifest.tokenizer.pad_id == source.tokenizer.pad_token_id
    assert manifest.postprocess == source.postprocess
    assert set(manifest.made_by) >= {"saten-edge", "torch", "onnxruntime"}
    assert set(manifest.tolerance) == {"relative"}


@pytest.mark.parametrize(("model", "precision"), BUNDLES)
def test_every_file_is_listed(model: str, precision: str, bundle_of: BundleOf) -> None:
    bundle = bundle_of(model, precision)
    found = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    found.remove(MARK)  # for --overwrite
    assert found == {*bundle.manifest.files, "saten_edge.json"}
    arrays = {
        f"validation/{case}.{name}.npy" for case in CASES for name in (*bundle.manifest.inputs, "last_hidden_state")
    }
    assert found == arrays | {
        "saten_edge.json",
        "model.onnx",
        "model.onnx.data",
        "export.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "validation/report.json",
    }
    for name, entry in bundle.manifest.files.items():
        assert (bundle.path / name).stat().st_size == entry.bytes
        assert sha256_file(bundle.path / name) == entry.sha256


@pytest.mark.parametrize(("model", "precision"), BUNDLES)
def test_bytes_per_layer_are_those_on_disk(
    model: str, precision: str, bundle_of: BundleOf, loaded_tiny: dict[str, LoadedModel]
) -> None:
    bundle, parts = bundle_of(model, precision), loaded_tiny[model].layer_parts()
    assert {layer.name: layer.bytes for layer in bundle.manifest.layers} == weights_of(ir.load(bundle.model))
    assert {layer.name for layer in bundle.manifest.layers} == set(parts)
    for layer in bundle.manifest.layers:
        assert layer.dense_fp32_bytes == math.prod(parts[layer.name].shape) * 4
        assert math.prod(layer.shape) * 4 == layer.dense_fp32_bytes


@pytest.mark.parametrize("model", ["saten", "unstructured"])
def test_a_bundle_keeps_the_budget_of_its_checkpoint(
    model: str, bundle_of: BundleOf, loaded_tiny: dict[str, LoadedModel]
) -> None:
    promised = json.loads((loaded_tiny[model].folder / "saten_layers.json").read_text())["layers"]
    stored = {layer.name: layer.bytes for layer in bundle_of(model, "fp32").manifest.layers}
    for row in promised:
        # 16: the shape that rebuilds a matrix; a checkpoint has positions of one byte, ONNX Runtime needs whole columns
        columns = row["nnz"] + 4 * (row["shape"][1] + 1) if model == "unstructured" and row["kind"] == "linear" else 0
        assert stored[row["name"]] <= row["bytes"] + columns + 16, row["name"]
    quarter = {layer.name: layer.bytes for layer in bundle_of(model, "int8").manifest.layers}
    assert sum(quarter.values()) < 0.5 * sum(stored.values())


def test_the_weights_of_a_bundle_are_all_it_holds(bundle_of: BundleOf) -> None:
    for model, precision in BUNDLES:
        bundle = bundle_of(model, precision)
        stored = sum(value.const_value.nbytes for value in ir.load(bundle.model).graph.initializers.values())
        assert bundle.model_bytes - bundle.manifest.files["model.onnx"].bytes <= stored
        assert stored <= bundle.model_bytes
        layers = sum(layer.bytes for layer in bundle.manifest.layers)
        dense = sum(layer.dense_fp32_bytes for layer in bundle.manifest.layers)
        assert layers <= 0.4 * dense + 16 * len(bundle.manifest.layers)


TYPES = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "int8-block": ir.DataType.UINT8,
    "int4": ir.DataType.UINT8,
    "int4-128": ir.DataType.UINT8,
    "int2": ir.DataType.UINT8,
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dense_layers_are_in_the_graph(precision: str, bundle_of: BundleOf) -> None:
    bundle = bundle_of("dense", precision)
    assert bundle.manifest.layers == []
    weights = list(ir.load(bundle.model).graph.initializers.values())
    kinds = {value.dtype for value in weights if value.const_value.size >= 4096}
    sizes = [value.const_value.size for value in weights if value.dtype == TYPES[precision]]
    smallest = 4096 // max(1, 8 // STORED[precision].bits)  # codes in a byte
    assert sum(size >= smallest for size in sizes) == 2 * 4 + 2  # queries, keys and values are one product; two tables
    assert kinds == {TYPES[precision]}


@pytest.mark.parametrize(("model", "precision"), BUNDLES)
def test_the_report(model: str, precision: str, bundle_of: BundleOf) -> None:
    bundle = bundle_of(model, precision)
    rows = json.loads((bundle.path / "validation" / "report.json").read_text())["comparisons"]
    assert {(row["case"], row["optimized"]) for row in rows} == {(case, on) for case in CASES for on in (False, True)}
    bound = bundle.manifest.tolerance["relative"]
    for row in rows:
        assert tuple(row["shape"][:2]) == CASES[row["case"]]
        assert row["bound"] == bound
        assert 0 < row["relative_error"] <= bound
        assert row["cosine"] > LEAST_COSINE.get(precision, 0.9)
    assert [row.to_json() for row in check_parity(bundle)] == rows


def test_the_cases_cover_padding_and_ragged_batches(bundle_of: BundleOf) -> None:
    folder = bundle_of("saten", "fp32").path / "validation"
    masks = {case: np.load(folder / f"{case}.attention_mask.npy") for case in CASES}
    assert {case: mask.shape for case, mask in masks.items()} == CASES
    assert {case: mask.sum(axis=1).tolist() for case, mask in masks.items()} == {
        "single": [1],
        "short": [7],
        "padded": [16, 5],
        "ragged": [33, 2, 20],
    }


def test_fp32_and_int8_carry_the_same_cases(bundle_of: BundleOf) -> None:
    folders = [bundle_of("saten", precision).path / "validation" for precision in PRECISIONS]
    for file in folders[0].glob("*.npy"):
        np.testing.assert_array_equal(np.load(file), np.load(folders[1] / file.name))


@pytest.mark.parametrize(("model", "precision"), BUNDLES)
def test_the_card(model: str, precision: str, bundle_of: BundleOf) -> None:
    bundle = bundle_of(model, precision)
    card = (bundle.path / "README.md").read_text()
    smallest = "1.29" if precision == "int2" else "1.23"
    assert bundle.manifest.smallest_onnxruntime == smallest
    assert f"for ONNX Runtime ≥ {smallest}." in card
    assert bundle.manifest.session_entries == ({"session.x64quantprecision": "1"} if precision == "int8" else {})
    assert ("the entry `session.x64quantprecision` = `1`" in card) is (precision == "int8")
    head, title = card.split("---\n")[1:3]
    assert f"base_model: {bundle.manifest.source['model']}\n" in head
    assert title.startswith(f"# {bundle.name}\n")
    assert f"{bundle.model_bytes:,} bytes" in card
    rows = json.loads((bundle.path / "validation" / "report.json").read_text())["comparisons"]
    assert f"{max(row['relative_error'] for row in rows):.2e}" in card
    assert f"over {len(rows)} comparisons" in card
    for row in rows:
        setting = "on" if row["optimized"] else "off"
        shape = " × ".join(map(str, row["shape"]))
        line = f"| {row['case']} | {row['output']} | {shape} | {setting} | {row['relative_error']:.2e} | "
        assert line in card
    for layer in bundle.manifest.layers:
        assert f"| {layer.name} | {layer.form} |" in card
    assert ("Every weight is dense." in card) == (model == "dense")
    assert f"at {precision}, opset 18" in card


# --- the bound ---------------------------------------------------------------------------------------------------


def test_the_bound_counts_products_and_the_longest(parse_model: Callable[..., ir.Model]) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[2, 9] x, float[9, 25] w, float[25, 4] v) => (float[2, 4] y) {
            inner = MatMul (x, w)
            active = Relu (inner)
            y = MatMul (active, v)
        }"""
    model = parse_model(text, w=np.ones((9, 25), np.float32), v=np.ones((25, 4), np.float32))
    assert rounding_bound(model.graph) == pytest.approx(2 * 5 * 2.0**-24)
    model.graph.append(ir.Node("com.microsoft", "GroupQueryAttention", []))  # queries by keys, weights by values
    assert rounding_bound(model.graph) == pytest.approx(4 * 5 * 2.0**-24)


@pytest.mark.parametrize("model", ["dense", "saten", "unstructured"])
def test_the_bound_is_far_above_rounding_and_far_below_a_wrong_layer(model: str, bundle_of: BundleOf) -> None:
    bundle = bundle_of(model, "fp32")
    bound = bundle.manifest.tolerance["relative"]
    assert 1e-6 < bound < 1e-4
    assert max(row.relative_error for row in check_parity(bundle)) < bound / 4


# --- the layers of a dense bundle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [each for each in PRECISIONS if each != "fp32"])
def test_a_dense_bundle_has_the_same_layers_at_every_precision(precision: str, bundle_of: BundleOf) -> None:
    plain, stored = (layers_of(bundle_of("dense", each)) for each in ("fp32", precision))
    facts = [[(layer.name, layer.kind, layer.shape, layer.macs_per_row) for layer in each] for each in (plain, stored)]
    assert facts[0] == facts[1]
    assert facts[0]
    share = sum(layer.bytes for layer in stored) / sum(layer.bytes for layer in plain)
    assert share < 0.51
    data = (bundle_of("dense", precision).path / "model.onnx.data").stat().st_size
    assert sum(layer.bytes for layer in stored) <= data
