from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters import LayerParts
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.choice.targets import TARGETS
from saten_exporters.forms import RESIDUAL_FORMS, Form, form_of
from saten_exporters.passes import LowerPass
from saten_runtime.errors import ExportError
from saten_runtime.vocabulary.operators import DOMAIN

HEAD = '<ir_version: 10, opset_import: ["" : 18, "saten" : 1, "other" : 1]>'
ONE = {
    "linear": HEAD
    + """
        g (float[batch, sequence, 48] x) => (float[batch, sequence, 64] y) {
            y = saten.Linear <layer = "layer"> (x)
        }""",
    "embedding": HEAD
    + """
        g (int64[batch, sequence] x) => (float[batch, sequence, 64] y) {
            y = saten.Embedding <layer = "layer"> (x)
        }""",
}
TWICE = (
    HEAD
    + """
    g (float[batch, sequence, 48] x) => (float[batch, sequence, 64] y) {
        first = saten.Linear <layer = "layer"> (x)
        negative = Neg (x)
        second = saten.Linear <layer = "layer"> (negative)
        y = Add (first, second)
    }"""
)
NONE = (
    HEAD
    + """
    g (float[batch, sequence, 48] x) => (float[batch, sequence, 48] y) {
        low = saten.Other <layer = "layer"> (x)
        strange = other.Linear <layer = "layer"> (low)
        y = Relu (strange)
    }"""
)

MakeParts = Callable[..., LayerParts]
Parse = Callable[..., ir.Model]


def to_bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize(("layout", "kind", "precision"), RESIDUAL_FORMS)
def test_a_placeholder_becomes_its_form(
    layout: str,
    kind: str,
    precision: str,
    parse_model: Parse,
    make_parts: MakeParts,
    one_form: Callable[[Form, LayerParts], ir.Model],
    run_ort: Callable[..., list[np.ndarray]],
) -> None:
    model, parts = parse_model(ONE[kind]), make_parts(kind, layout)
    form = form_of(parts, precision)
    lower = LowerPass({"layer": parts}, ExportSettings(precision, lowering="low-rank"))
    assert lower(model).modified
    assert [(node.domain, node.op_type, node.name) for node in model.graph] == [(DOMAIN, form.op_type, "layer")]
    weights = {f"layer.{name}": array for name, array in form.pack(parts).items()}
    assert list(model.graph.initializers) == list(weights)
    for name, array in weights.items():
        stored = model.graph.initializers[name].const_value.numpy()
        assert stored.dtype == array.dtype
        np.testing.assert_array_equal(stored, array)
    called = {function.name for part in form.parts for function in part.functions(TARGETS["x86-64"].opset)}
    assert {function.name for function in model.functions.values()} == {form.op_type, *called}
    x = np.arange(6).reshape(2, 3) if kind == "embedding" else np.ones((2, 3, 48), np.float32)
    (got,), (expected,) = (run_ort(each, {"x": x}) for each in (model, one_form(form, parts)))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("layout", "kind", "precision"), RESIDUAL_FORMS)
def test_the_row_for_the_manifest(
    layout: str, kind: str, precision: str, parse_model: Parse, make_parts: MakeParts
) -> None:
    model, parts = parse_model(ONE[kind]), make_parts(kind, layout)
    lower = LowerPass({"layer": parts}, ExportSettings(precision, lowering="low-rank"))
    lower(model)
    (row,) = lower.layers
    assert (row.name, row.kind, row.form) == ("layer", kind, form_of(parts, precision).op_type)
    assert row.shape == ([64, 48] if kind == "linear" else [48, 64])
    assert row.nnz == parts.values.size
    assert row.ranks == parts.ranks
    assert row.dense_fp32_bytes == 48 * 64 * 4
    assert row.bytes == sum(value.const_value.nbytes for value in model.graph.initializers.values())


@pytest.mark.parametrize(
    ("layout", "kind", "macs"),
    [
        ("grouped", "linear", (48 + 64) * 7 + 64 * 9),
        # and each stored value once: the body needs more, the kernel does not
        ("csr", "linear", (48 + 64) * 7),
        ("n:m", "linear", (48 + 64) * 7),
        ("rows", "embedding", 7 * 64),
        ("ell", "embedding", 7 * 64),
    ],
)
def test_multiplications_for_one_row(
    layout: str, kind: str, macs: int, parse_model: Parse, make_parts: MakeParts
) -> None:
    parts = make_parts(kind, layout)
    lower = LowerPass({"layer": parts}, ExportSettings(lowering="low-rank"))
    lower(parse_model(ONE[kind]))
    assert [row.macs_per_row for row in lower.layers] == [macs + (parts.values.size if layout in ("csr", "n:m") else 0)]


def test_a_layer_used_twice_is_stored_once(
    parse_model: Parse, make_parts: MakeParts, run_ort: Callable[..., list[np.ndarray]]
) -> None:
    model, parts = parse_model(TWICE), make_parts("linear", "grouped")
    lower = LowerPass({"layer": parts}, ExportSettings(lowering="low-rank"))
    assert lower(model).modified
    assert len(lower.layers) == 1
    names = [node.name for node in model.graph if node.domain == DOMAIN]
    assert names == ["layer", "layer#2"]
    assert len(model.graph.initializers) == len(form_of(parts, "fp32").inputs)
    (got,) = run_ort(model, {"x": np.random.default_rng(0).standard_normal((2, 3, 48)).astype(np.float32)})
    assert not got.any()  # f(x) + f(−x)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_graph_without_placeholders_stays(precision: str, parse_model: Parse) -> None:
    model = parse_model(NONE)
    before, lower = to_bytes(model), LowerPass({}, ExportSettings(precision, lowering="low-rank"))
    assert not lower(model).modified
    assert to_bytes(model) == before
    assert lower.layers == []


def test_lowering_again_finds_nothing(parse_model: Parse, make_parts: MakeParts) -> None:
    model = parse_model(ONE["linear"])
    LowerPass({"layer": make_parts("linear", "grouped")}, ExportSettings(lowering="low-rank"))(model)
    before = to_bytes(model)
    assert not LowerPass({}, ExportSettings(lowering="low-rank"))(model).modified
    assert to_bytes(model) == before


@pytest.mark.parametrize("names", [[], ["another"], ["layer", "another"]])
def test_layers_and_nodes_must_be_the_same(names: list[str], parse_model: Parse, make_parts: MakeParts) -> None:
    parts = make_parts("linear", "grouped")
    model = parse_model(ONE["linear"])
    before = to_bytes(model)
    named = {name: dataclasses.replace(parts, name=name) for name in names}
    with pytest.raises(ExportError) as caught:
        LowerPass(named, ExportSettings(lowering="low-rank"))(model)
    assert all(name in str(caught.value) for name in {"layer"} ^ set(names))
    assert to_bytes(model) == before
