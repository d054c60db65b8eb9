from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from saten_exporters.passes import TidyPass
from saten_runtime.bundle.folder import Bundle

HEAD = '<ir_version: 10, opset_import: ["" : 18]>'
TIDY = (
    HEAD
    + """
    g (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask) => (float[batch, sequence, other] y)
    <float[batch, sequence] numbers> {
        numbers = Cast <to = 1> (input_ids)
        mask = Cast <to = 1> (attention_mask)
        product = Mul (numbers, mask)
        axes = Constant <value_ints = [2]> ()
        y = Unsqueeze (product, axes)
    }"""
)

Parse = Callable[..., ir.Model]


def everything(model: ir.Model) -> Iterator[Any]:
    """Everything of a model that can carry metadata."""
    yield model
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        yield from (graph, *graph.inputs, *graph.initializers.values(), *graph)
        yield from (output for node in graph for output in node.outputs)


def test_metadata_and_docs_go(parse_model: Parse) -> None:
    model = parse_model(TIDY)
    for thing in everything(model):
        thing.doc_string = "made by somebody"
        thing.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/somewhere/model.py", line 3'
    assert TidyPass()(model).modified
    assert b"somebody" not in ir.to_proto(model).SerializeToString()
    for thing in everything(model):
        assert not thing.metadata_props
        assert not thing.doc_string


def test_a_tidy_graph_stays(parse_model: Parse) -> None:
    model = parse_model(TIDY)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not TidyPass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_once_is_enough(parse_model: Parse) -> None:
    model = parse_model(TIDY)
    model.doc_string = "made by somebody"
    assert TidyPass()(model).modified
    assert not TidyPass()(model).modified


def strings(message: Any, field_name: str) -> Iterator[Any]:
    """Every value of the fields called `field_name` in a protobuf message, at any depth."""
    for field, value in message.ListFields():
        if field.name == field_name:
            yield value
        nested = value if field.is_repeated else [value]
        if field.message_type is not None:
            for item in nested:
                yield from strings(item, field_name)


@pytest.mark.parametrize(("model", "precision"), [("dense", "fp32"), ("saten", "int8"), ("unstructured", "fp32")])
def test_an_exported_graph_knows_nothing_of_this_machine(
    model: str, precision: str, bundle_of: Callable[[str, str], Bundle], tiny_bert: Path
) -> None:
    bundle = bundle_of(model, precision)
    proto = onnx.load(bundle.model, load_external_data=False)
    assert list(strings(proto, "metadata_props")) == []
    assert list(strings(proto, "doc_string")) == []
    assert len(list(strings(proto, "op_type"))) > 50  # the search does find what is there
    repository = Path(__file__).resolve().parents[3]
    # The traces name Python files; a home of "/" would be found in every node's name.
    hidden = [
        str(path) for path in (repository, Path.home(), tiny_bert.parent, bundle.path.parent) if len(str(path)) > 1
    ]
    for file in bundle.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert [text for text in (*hidden, "site-packages") if text.encode() in content] == [], file.name
    assert b".py" not in bundle.model.read_bytes()
