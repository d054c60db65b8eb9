"""Numbers that leave their format: every stored tensor is looked at, not only what a sample reads."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_exporters import PRECISIONS, export
from saten_exporters.bundles.numbers import refuse_loose_json, refuse_unstorable
from saten_exporters.choice.cost import choose
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.exportable import LayerParts
from saten_exporters.passes import run_passes
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import ExportError
from saten_runtime.run.session import make_session

BEYOND, BELOW = r"is beyond 65504, fp16's largest number; choose", r"is too far below 6\.1e-05, from where on"
INFINITE = r"values are NaN or infinite; the model is damaged"

WORDS, POSITIONS = "embeddings.word_embeddings", "embeddings.position_embeddings"
INNER, OUTER = "encoder.layer.1.intermediate.dense", "encoder.layer.0.output.dense"


def one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """The tensor with one value in its last row, which no sample reads."""

    def change(array: np.ndarray) -> np.ndarray:
        array[-1, 3] = value
        return array

    return change


def times(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array * np.float32(factor)


LIMITS = [
    (WORDS, "fp16", one(7e4), f"70000 {BEYOND}"),
    (WORDS, "fp16", one(-1e30), BEYOND),
    (POSITIONS, "fp16", one(65520.0), f"65520 {BEYOND}"),  # rounds to infinity
    (INNER, "fp16", one(1e38), BEYOND),
    (OUTER, "fp16", times(1e-7), BELOW),  # rounds to zero
    (INNER, "fp16", times(1e-5), BELOW),  # keeps a digit
    (WORDS, "int8", one(3.4028235e38), r"3\.4028e\+38, its largest value, needs a scale outside of float32's"),
    (OUTER, "int8", times(1e-38), "needs a scale outside of float32's"),
    (OUTER, "int8-block", times(1e-38), "needs a scale outside of float32's"),
    (INNER, "int4", one(np.nan), f"1 of 8192 {INFINITE}"),
    (WORDS, "int8-block", one(-np.inf), INFINITE),
    (WORDS, "fp32", one(np.inf), INFINITE),
    ("encoder.layer.1.output.LayerNorm", "int8", lambda array: array + np.float32(np.nan), f"64 of 64 {INFINITE}"),
]


@pytest.mark.parametrize(("layer", "precision", "change", "said"), LIMITS)
def test_a_weight_that_cannot_be_stored_is_refused_by_name(
    layer: str, precision: str, change: Any, said: str, tiny_bert: Path, tmp_path: Path
) -> None:
    source = load_model(tiny_bert)
    refuse_unstorable(source, precision)  # the twin: as it is, it can be
    weight = source.model.get_parameter(f"{layer}.weight")
    with torch.no_grad():
        weight.copy_(torch.from_numpy(np.array(change(weight.numpy().copy()))))
    with pytest.raises(ExportError, match=f"{layer}.weight: .*{said}") as refusal:
        export(source, tmp_path / "bundle", precision=precision)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("part", "value", "precision", "said"),
    [
        ("a", 7e4, "fp16", BEYOND),
        ("values", -7e4, "fp16", BEYOND),
        ("values", np.nan, "int8", INFINITE),
        ("b", np.inf, "int4", INFINITE),
        ("a", 3.4028235e38, "int8", "needs a scale"),
    ],
)
def test_so_are_the_numbers_of_a_compressed_layer(
    part: str, value: float, precision: str, said: str, make_parts: Callable[..., LayerParts]
) -> None:
    whole = make_parts("linear", "grouped")
    settings = ExportSettings(precision, "x86-64", 128, None)
    assert choose(whole, settings, "low-rank", with_head=False)[0].weights  # the twin
    numbers = getattr(whole, part).copy()
    numbers[(-1,) * numbers.ndim] = value
    with pytest.raises(ExportError, match=f"^layer: .*{said}"):
        choose(dataclasses.replace(whole, **{part: numbers}), settings, "low-rank", with_head=False)[0].weights  # noqa: B018


def test_a_product_of_factors_that_overflows_is_refused(make_parts: Callable[..., LayerParts]) -> None:
    whole = make_parts("linear", None)
    large = dataclasses.replace(whole, a=whole.a * np.float32(1e20), b=whole.b * np.float32(1e20))
    settings = ExportSettings("fp32", "x86-64", 128, None)
    assert np.isfinite(large.a).all()
    assert np.isfinite(large.b).all()
    with pytest.raises(ExportError, match=f"^layer: .*{INFINITE}"):
        choose(large, settings, "dense", with_head=False)[0].weights  # noqa: B018


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "fp32"])
def test_a_weight_that_went_unread_by_passes_is_looked_at_there_too(
    precision: str, loaded_tiny: dict[str, LoadedModel], traced: Callable[..., Any]
) -> None:
    """What the tracer folded has lost its name, and may have left its format on the way."""
    program = traced(loaded_tiny["dense"]).program
    name = next(name for name in program.graph.initializers if "word_embeddings" in name)
    value = program.graph.initializers[name]
    settings = ExportSettings(precision, "x86-64", 128, None)
    run_passes(program.clone(), {}, settings)  # the twin
    value.const_value = ir.tensor(one(np.inf)(value.const_value.numpy().copy()), name=name)
    with pytest.raises(ExportError, match=f"{name}: .*{INFINITE}"):
        run_passes(program, {}, settings)


@pytest.mark.parametrize("model", ["dense", "saten"])
def test_a_text_that_is_masked_as_a_whole_is_finite(model: str, bundle_of: Callable[[str, str], Bundle]) -> None:
    bundle = bundle_of(model, "fp32")
    ids = np.array([[2, 9, 17, 3]] * 2)
    masks = {"all": np.ones_like(ids), "one": np.array([[1] * 4, [0] * 4])}
    states = {}
    for name, mask in masks.items():
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
        (states[name],) = make_session(bundle).run(None, {each: given[each] for each in bundle.manifest.inputs})
    assert np.isfinite(states["one"]).all()
    # The masked text changes nothing of the other; the twin: it is not what it is without the mask.
    np.testing.assert_allclose(states["one"][0], states["all"][0], rtol=1e-4, atol=1e-5)
    assert np.abs(states["one"][1] - states["all"][1]).max() > 1e-3


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan, 1e999])
def test_settings_that_json_cannot_hold_are_refused(value: float, tmp_path: Path) -> None:
    path = tmp_path / "variants" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"clip": [1.0, 1e300]}))
    refuse_loose_json(tmp_path)  # the twin
    path.write_text(json.dumps({"clip": [1.0, value]}))
    with pytest.raises(ExportError, match=r"^variants/config\.json: is not JSON \(.*\); change that setting"):
        refuse_loose_json(tmp_path)
