from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_exporters import TARGETS
from saten_exporters.tracing.samples import padded_tokens
from saten_exporters.tracing.trace import forget_graphs, name_axes, trace
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import ExportError
from saten_runtime.vocabulary.operators import ATTENTION, DOMAIN, LAYERS

HEAD = '<ir_version: 10, opset_import: ["" : 18]>'
SYMBOLS = (
    HEAD
    + """
    g (int64[s44, s70] ids, float[s44, 2, s36, 4] past, int64[s44, s53] mask) => (float[s44, later, other] y)
    <float[s44, s70] numbers> {
        numbers = Cast <to = 1> (ids)
        axes = Constant <value_ints = [2]> ()
        y = Unsqueeze (numbers, axes)
    }"""
)
AXES = {
    "ids": {0: "batch", 1: "sequence"},
    "past": {0: "batch", 2: "past_sequence"},
    "mask": {0: "batch", 1: "past_sequence + sequence"},
}
NAMES = {"input_ids", "attention_mask", "token_type_ids"}
SHAPES = ((1, 1), (1, 30), (4, 2), (3, 17))


def dims(value: ir.Value) -> list[str | int]:
    return [dim if isinstance(dim, int) else str(dim) for dim in value.shape or ()]


@pytest.mark.parametrize("model", ["dense", "saten"])
def test_the_graph_is_dynamic_in_batch_and_sequence(
    model: str, bundle_of: Callable[[str, str], Bundle], run_ort: Callable[..., list[np.ndarray]]
) -> None:
    bundle = bundle_of(model, "fp32")
    graph = ir.load(bundle.model).graph
    assert {value.name: dims(value) for value in graph.inputs} == {name: ["batch", "sequence"] for name in NAMES}
    assert {value.name: dims(value)[:2] for value in graph.outputs} == {"last_hidden_state": ["batch", "sequence"]}
    for batch, tokens in SHAPES:
        ids = np.full((batch, tokens), 7)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = run_ort(bundle.model, feeds)
        assert hidden.shape == (batch, tokens, 64)


@pytest.mark.parametrize("model", ["dense", "saten"])
def test_the_mask_is_read(
    model: str, bundle_of: Callable[[str, str], Bundle], run_ort: Callable[..., list[np.ndarray]]
) -> None:
    """A mask traced away would leave an output that padding changes."""
    ids = np.random.default_rng(0).integers(5, 1000, (1, 9))
    mask, types = (np.arange(9) < 6)[None].astype(np.int64), np.zeros_like(ids)
    other = np.where(mask == 1, ids, 5)
    (first,), (second,), (unmasked,) = (
        run_ort(bundle_of(model, "fp32").model, {"input_ids": each, "attention_mask": seen, "token_type_ids": types})
        for each, seen in ((ids, mask), (other, mask), (other, np.ones_like(mask)))
    )
    np.testing.assert_allclose(first[:, :6], second[:, :6], atol=1e-5)
    assert np.abs(first[:, :6] - unmasked[:, :6]).max() > 1e-2


def test_tracing_says_nothing_and_leaves_a_placeholder_for_each_layer(
    loaded_tiny: dict[str, LoadedModel], capfd: pytest.CaptureFixture[str]
) -> None:
    source = loaded_tiny["saten"]
    exported = trace(source, TARGETS["x86-64"])
    stdout, stderr = capfd.readouterr()
    assert (stdout, stderr) == ("", "")
    graph = exported.program.graph
    placeholders = [node for node in graph if node.domain == DOMAIN]
    layers = [node.attributes.get_string("layer") for node in placeholders if node.op_type in LAYERS]
    assert sorted(layers) == sorted(source.layer_parts())
    assert {node.op_type for node in placeholders} - set(LAYERS) == {ATTENTION}
    assert {value.name for value in graph.inputs} == NAMES
    assert exported.program.opset_imports[""] == TARGETS["x86-64"].opset
    assert not [name for name in graph.initializers if ".cores." in name or ".residual." in name]
    dense = sum(parameter.numel() for name, parameter in source.model.named_parameters() if "." in name)
    stored = sum(value.const_value.size for value in graph.initializers.values())
    kept = sum(
        parameter.numel()
        for name, parameter in source.model.named_parameters()
        if ".cores." not in name and ".residual." not in name
    )
    assert stored <= kept + 1000 < dense  # what stayed dense, and constants


def test_a_model_that_cannot_be_traced(loaded_tiny: dict[str, LoadedModel]) -> None:
    class Stubborn(torch.nn.Module):
        """Looks at its numbers, which a tracer does not have."""

        def __init__(self, like: Any) -> None:
            super().__init__()
            self.config = like.config

        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no graph\nof me")

    stubborn = dataclasses.replace(loaded_tiny["dense"], model=Stubborn(loaded_tiny["dense"].model))
    with pytest.raises(ExportError, match="BertModel cannot be traced to ONNX") as caught:
        trace(stubborn, TARGETS["x86-64"])
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("swapped", [False, True])
def test_axes_are_named(swapped: bool, parse_model: Callable[..., ir.Model]) -> None:
    text = SYMBOLS.replace("s44", "sequence").replace("s70", "batch") if swapped else SYMBOLS
    model = parse_model(text)
    batch, tokens = dims(model.graph.inputs[0])
    model.graph.outputs[0].shape = ir.Shape([batch, f"s36 + {tokens}", "other"])
    name_axes(model.graph, AXES)
    assert [dims(value) for value in model.graph.inputs] == [
        ["batch", "sequence"],
        ["batch", 2, "past_sequence", 4],
        ["batch", "past_sequence + sequence"],
    ]
    assert dims(model.graph.outputs[0]) == ["batch", "past_sequence + sequence", "other"]
    assert dims(model.graph[0].outputs[0]) == ["batch", "sequence"]


def test_an_axis_that_the_tracer_fixed(parse_model: Callable[..., ir.Model]) -> None:
    model = parse_model(SYMBOLS.replace("s70", "7"))
    with pytest.raises(ExportError, match="axis sequence of ids was traced as 7"):
        name_axes(model.graph, AXES)


def test_samples(loaded_tiny: dict[str, LoadedModel]) -> None:
    source = loaded_tiny["dense"]
    inputs = padded_tokens(source, [(2, 9), (9, 9), (5, 9)])
    assert set(inputs) == NAMES
    assert {tuple(tensor.shape) for tensor in inputs.values()} == {(3, 9)}
    assert inputs["attention_mask"].sum(dim=1).tolist() == [2, 9, 5]
    assert inputs["attention_mask"][0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    hidden = inputs["attention_mask"] == 0
    assert set(inputs["input_ids"][hidden].tolist()) == {source.tokenizer.pad_token_id}
    assert 0 <= inputs["input_ids"].min() < inputs["input_ids"].max() < source.model.config.vocab_size
    again = padded_tokens(source, [(2, 9), (9, 9), (5, 9)])
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)


def test_samples_of_a_model_that_reads_less(
    loaded_tiny: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_tiny["dense"].tokenizer, "model_input_names", ["input_ids", "attention_mask", "x"])
    assert list(padded_tokens(loaded_tiny["dense"], [(3, 3)])) == ["input_ids", "attention_mask"]


def test_the_weights_of_a_graph_out_of_use_are_freed(tiny_bert: Path) -> None:
    source = load_model(tiny_bert)
    exported = trace(source, TARGETS["x86-64"])
    weights = [weakref.ref(parameter) for parameter in source.model.parameters()]
    forget_graphs()
    assert all(weight() is not None for weight in weights)
    del source, exported
    forget_graphs()
    assert not [weight for weight in weights if weight() is not None]
