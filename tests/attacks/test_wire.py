"""The sound graph that hostile ones are made from is what Google's own protobuf reads, and writes again."""

from __future__ import annotations

import onnx
import pytest
from google.protobuf.message import DecodeError
from hostile.sound import WIDTH, WORDS, graph, model, node
from hostile.wire import bytes_field, packed, varint_field


def test_the_sound_graph_is_read_and_written_again() -> None:
    content = model(graph([node("Gather", ["table", "input_ids"], "last_hidden_state")]))
    read = onnx.ModelProto.FromString(content)
    assert (read.ir_version, read.opset_import[0].version) == (10, 20)
    assert [(one.op_type, list(one.input), list(one.output)) for one in read.graph.node] == [
        ("Gather", ["table", "input_ids"], ["last_hidden_state"])
    ]
    (table,) = read.graph.initializer
    assert (table.name, list(table.dims), table.data_type) == ("table", [len(WORDS), WIDTH], onnx.TensorProto.FLOAT)
    assert {entry.key: entry.value for entry in table.external_data}["location"] == "model.onnx.data"
    assert onnx.ModelProto.FromString(read.SerializeToString()) == read


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31, 2**63 - 1])
def test_numbers_are_those_that_were_written(number: int) -> None:
    assert onnx.TensorProto.FromString(packed(1, [number, 5])).dims == [number, 5]
    assert onnx.ModelProto.FromString(varint_field(5, number)).model_version == number


def test_strings_are_as_long_as_they_say() -> None:
    content = bytes_field(2, "é" * 200)
    assert onnx.ModelProto.FromString(content).producer_name == "é" * 200
    with pytest.raises(DecodeError):
        onnx.ModelProto.FromString(content[:-1])
