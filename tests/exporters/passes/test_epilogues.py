from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_edge.checkpoints.models import LoadedModel
from saten_exporters import TARGETS
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.forms import EPILOGUES, RESIDUAL_FORMS, followed_by
from saten_exporters.passes import run_passes
from saten_exporters.passes.epilogues import epilogue_of
from saten_runtime.vocabulary.operators import DOMAIN

WIDTH = 6
HEAD = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "saten" : 1]>'
BIAS = np.arange(WIDTH, dtype=np.float32)

Parse = Callable[..., ir.Model]


def graph(parse: Parse, rest: str, outputs: str = "y", bias: np.ndarray = BIAS) -> ir.Model:
    """A placeholder whose result h is read by `rest`."""
    given = f"float[2, 3] x, float[2, {WIDTH}] other, float[{WIDTH}] read, float[{len(bias)}] bias"
    made = ", ".join(f"float[2, {WIDTH}] {name}" for name in outputs.split(", "))
    text = f"{HEAD} g ({given}) => ({made}) <float[2, {WIDTH}] h> {{ h = saten.Linear (x) {rest} }}"
    return parse(text, bias=bias)


def found(model: ir.Model, *, split: bool = False) -> str | None:
    node = next(node for node in model.graph if node.domain == DOMAIN)
    after = epilogue_of(model, node, split=split)
    return after and after.name


@pytest.mark.parametrize(
    ("rest", "epilogue"),
    [
        ("y = Add (h, bias)", "Bias"),
        ("y = Add (bias, h)", "Bias"),
        ("y = com.microsoft.BiasGelu (h, bias)", "BiasGelu"),
        ("y = com.microsoft.FastGelu (h, bias)", None),
        ("y = Mul (h, bias)", None),
        ("y = Add (h, other)", None),
        ("y = Add (h, read)", None),  # an input of the graph is no constant
        ("y = Add (h, h)", None),
        ("z = Add (h, bias) y = Mul (z, h)", None),  # read twice
        ("y = Sum (h, other, bias)", None),
    ],
)
def test_what_goes_into_the_node(rest: str, epilogue: str | None, parse_model: Parse) -> None:
    assert found(graph(parse_model, rest)) == epilogue


def test_what_is_an_output_stays(parse_model: Parse) -> None:
    assert found(graph(parse_model, "y = Add (h, bias)", outputs="y, h")) is None


@pytest.mark.parametrize("bias", [BIAS[:1], BIAS.astype(np.float64)], ids=["one value for all", "float64"])
def test_another_bias_stays(bias: np.ndarray, parse_model: Parse) -> None:
    assert found(graph(parse_model, "y = Add (h, bias)", bias=bias)) is None


def test_a_sum_of_three_is_split_where_asked(parse_model: Parse) -> None:
    model = graph(parse_model, "y = Sum (h, other, bias)")
    assert found(model, split=True) == "Bias"
    assert [node.op_type for node in model.graph] == ["Linear", "Add", "Sum"]
    add, total = list(model.graph)[1:]
    assert [value.name for value in add.inputs] == ["h", "bias"]
    assert [value.name for value in total.inputs] == [add.outputs[0].name, "other"]
    assert model.graph.outputs[0] is total.outputs[0]


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_the_function_calls_the_layer(epilogue: str) -> None:
    form = RESIDUAL_FORMS["grouped", "linear", "int8"]
    whole, layer = followed_by(form, epilogue).functions(18)
    assert whole.name == form.op_type + epilogue
    assert [value.name for value in whole.inputs] == ["x", *form.inputs, "bias"]
    assert next(node.op_type for node in whole) == layer.name == form.op_type
    assert whole.outputs[0] is list(whole)[-1].outputs[0]


def biases_outside(model: ir.Model) -> int:
    """Operators of the graph that add a weight."""
    adding = [node for node in model.graph if node.op_type in ("Add", "BiasGelu")]
    return sum(any(value is not None and value.const_value is not None for value in node.inputs) for node in adding)


@pytest.mark.parametrize("target", ["x86-64", "x86-64+kernels"])
def test_layers_take_their_biases_along(
    target: str, loaded_tiny: dict[str, LoadedModel], traced: Callable[..., object]
) -> None:
    source = loaded_tiny["saten"]
    model = traced(source, TARGETS["x86-64"]).program
    before = biases_outside(model)
    run_passes(model, source.layer_parts(), ExportSettings(lowering="low-rank", target=target))
    layers = [node for node in model.graph if node.domain == DOMAIN and "Linear" in node.op_type]
    ended = [node for node in layers if node.op_type.endswith(tuple(EPILOGUES))]
    # The sums that skip a layer keep their bias, unless kernels are there to take it.
    sums = [node for node in model.graph if node.op_type == "Sum"]
    assert {len(node.inputs) for node in sums} == ({2} if "kernels" in target else {3})
    assert len(layers) - len(ended) == (0 if "kernels" in target else len(sums))
    assert before - biases_outside(model) == len(ended) - (len(sums) if "kernels" in target else 0)
