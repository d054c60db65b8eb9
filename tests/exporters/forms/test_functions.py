"""The functions of the domain `saten`: plain operators, complete, and valid ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
import onnx.defs
import onnx_ir as ir
import pytest

from saten_exporters import TARGETS, LayerParts
from saten_exporters.forms import RESIDUAL_FORMS, TRAIN_FORMS, Form, form_of
from saten_exporters.quantize import PRECISIONS
from saten_runtime.bundle.folder import Bundle
from saten_runtime.vocabulary.operators import DOMAIN, DOMAIN_VERSION

FORMS = {form.op_type: form for form in (*TRAIN_FORMS.values(), *RESIDUAL_FORMS.values())}
LAYERS = list(RESIDUAL_FORMS)
BUNDLES = [(model, precision) for model in ("dense", "saten", "unstructured") for precision in PRECISIONS]
DOMAINS = {"", "com.microsoft", DOMAIN}
OPSET = TARGETS["x86-64"].opset

BundleOf = Callable[[str, str], Bundle]


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def inferable(model: ir.Model) -> bool:
    """Whether onnx can infer every shape: it knows nothing of ONNX Runtime's own operators."""
    return all(node.domain in {"", DOMAIN} for node in all_nodes(model))


@pytest.mark.parametrize("op_type", FORMS)
def test_a_body_is_plain_operators(op_type: str) -> None:
    form = FORMS[op_type]
    own, *called = form.functions(OPSET)
    assert {function.name for function in called} <= set(FORMS)
    assert (own.domain, own.name) == (DOMAIN, op_type)
    assert [value.name for value in own.inputs] == ["x", *form.inputs]
    assert [value.name for value in own.outputs] == ["y"]
    assert set(own.opset_imports) == {node.domain for node in own}
    assert own.opset_imports.get("", OPSET) == OPSET
    for node in own:
        assert node.domain in {"", "com.microsoft"} or node.op_type in {function.name for function in called}
        assert node.op_type != "Einsum"
        if node.domain == "":
            assert onnx.defs.get_schema(node.op_type, OPSET, "").since_version <= OPSET


@pytest.mark.parametrize("op_type", FORMS)
def test_an_operator_is_named_after_what_it_does(op_type: str) -> None:
    form = FORMS[op_type]
    kinds = {"linear": "Linear", "embedding": "Embedding"}
    assert op_type == form.stem + kinds[form.kind] + PRECISIONS[form.precision].suffix


def test_no_two_forms_share_a_name() -> None:
    assert len(FORMS) == len({id(form) for form in (*TRAIN_FORMS.values(), *RESIDUAL_FORMS.values())})


@pytest.mark.parametrize("op_type", FORMS)
def test_the_weights_come_in_the_order_of_the_inputs(op_type: str, make_parts: Callable[..., LayerParts]) -> None:
    form = FORMS[op_type]
    layout = next((row[0] for row, other in RESIDUAL_FORMS.items() if other is form), None)
    assert tuple(form.pack(make_parts(form.kind, layout))) == form.inputs


@pytest.mark.parametrize(("layout", "kind", "precision"), LAYERS)
def test_a_layer_calls_its_two_parts(
    layout: str, kind: str, precision: str, make_parts: Callable[..., LayerParts]
) -> None:
    form = form_of(make_parts(kind, layout), precision)
    whole, *parts = form.functions(OPSET)
    train, residual = TRAIN_FORMS[kind, precision], RESIDUAL_FORMS[layout, kind, precision]
    called = [function.name for form in (train, residual) for function in form.functions(OPSET)]
    assert [function.name for function in parts] == called
    assert [(node.domain, node.op_type) for node in whole] == [
        (DOMAIN, train.op_type),
        (DOMAIN, residual.op_type),
        ("", "Add"),
    ]
    assert form.inputs == (*train.inputs, *residual.inputs)
    assert len(set(form.inputs)) == len(form.inputs)


@pytest.mark.parametrize(("layout", "kind", "precision"), LAYERS)
def test_a_layer_passes_the_checker(
    layout: str,
    kind: str,
    precision: str,
    make_parts: Callable[..., LayerParts],
    one_form: Callable[[Form, LayerParts], ir.Model],
) -> None:
    parts = make_parts(kind, layout)
    model = one_form(form_of(parts, precision), parts)
    onnx.checker.check_model(ir.to_proto(model), full_check=inferable(model))


def test_the_checker_sees_an_operator_that_is_not_there(
    make_parts: Callable[..., LayerParts], one_form: Callable[[Form, LayerParts], ir.Model]
) -> None:
    model = one_form(FORMS["GroupedLinear"], make_parts("linear", "grouped"))
    (function,) = model.functions.values()
    function[0].op_type = "Flattened"
    with pytest.raises(onnx.checker.ValidationError, match="Flattened"):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize(("model", "precision"), BUNDLES)
def test_an_exported_graph_holds_only_known_domains_and_versions(
    model: str, precision: str, bundle_of: BundleOf
) -> None:
    bundle = bundle_of(model, precision)
    graph = ir.load(bundle.model)
    onnx.checker.check_model(str(bundle.model), full_check=inferable(graph))
    used = {(node.domain, node.op_type) for node in all_nodes(graph)}
    assert {domain for domain, _ in used} <= DOMAINS
    assert not {"Einsum", "Linear", "Embedding"} & {op for _, op in used}
    assert {(function.domain, function.name) for function in graph.functions.values()} == {
        row for row in used if row[0] == DOMAIN
    }
    assert graph.ir_version == TARGETS["x86-64"].ir_version == bundle.manifest.ir_version
    assert graph.opset_imports[""] == OPSET == bundle.manifest.opset
    assert graph.opset_imports.get(DOMAIN, DOMAIN_VERSION) == DOMAIN_VERSION
    assert set(graph.opset_imports) == {domain for domain, _ in used}
    assert not onnx.load(bundle.model, load_external_data=False).graph.sparse_initializer


@pytest.mark.parametrize(("model", "precision"), BUNDLES)
def test_one_node_for_each_layer(model: str, precision: str, bundle_of: BundleOf) -> None:
    bundle = bundle_of(model, precision)
    nodes = {node.name: node.op_type for node in ir.load(bundle.model).graph if node.domain == DOMAIN}
    assert nodes == {layer.name: layer.form for layer in bundle.manifest.layers}
    assert bool(nodes) == (model != "dense")
