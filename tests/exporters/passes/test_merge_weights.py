from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from saten_exporters.passes import MergeWeightsPass

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[2] x, float[2] a, float[2] b, float[2] c) => (float[2] y) {
        one = Add (x, a) two = Add (one, b) y = Add (two, c) }"""
ONE, TWO = np.ones(2, np.float32), np.full(2, 2, np.float32)


def weights_of(model: ir.Model) -> set[str | None]:
    return set(model.graph.initializers)


def test_equal_weights_become_one_and_other_ones_stay(parse_model: Callable[..., ir.Model]) -> None:
    model = parse_model(TEXT, a=ONE, b=ONE, c=TWO)
    assert MergeWeightsPass()(model).modified
    assert weights_of(model) == {"a", "c"}
    assert not MergeWeightsPass()(model).modified


def test_the_default_of_an_input_is_merged_with_nothing_and_nobody_is_warned(
    parse_model: Callable[..., ir.Model], run_ort: Callable[..., list[np.ndarray]], caplog: pytest.LogCaptureFixture
) -> None:
    model = parse_model(TEXT, a=ONE, b=ONE, c=TWO)
    model.graph.inputs.append(model.graph.initializers["a"])
    assert not MergeWeightsPass()(model).modified
    assert weights_of(model) == {"a", "b", "c"}
    assert not caplog.records
    given = {"x": np.zeros(2, np.float32)}
    assert run_ort(model, given)[0].tolist() == [4, 4]
    assert run_ort(model, {**given, "a": TWO})[0].tolist() == [5, 5]
