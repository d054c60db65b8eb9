"""Weights lie once, beside the graph, and where a file can be mapped."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from saten_edge.checkpoints.models import LoadedModel
from saten_exporters import PRECISIONS, export
from saten_exporters.bundles.export import ALIGNED_FROM_BYTES, ALIGNMENT_BYTES
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.passes import run_passes
from saten_runtime.bundle.folder import Bundle

BUNDLES = [(model, precision) for model in ("dense", "saten", "unstructured") for precision in PRECISIONS]
INLINE_BYTES = 256  # smaller tensors may stay in the graph

BundleOf = Callable[[str, str], Bundle]


def tensors(model: Path) -> dict[str, Any]:
    return {name: value.const_value for name, value in ir.load(model).graph.initializers.items()}


def repeated(model: Path) -> list[str]:
    """Names of initializers whose type, shape and content another one has, too."""
    keys = {
        name: (tensor.dtype, tuple(tensor.shape.numpy()), hashlib.sha256(tensor.tobytes()).digest())
        for name, tensor in tensors(model).items()
    }
    counts = Counter(keys.values())
    return [name for name, key in keys.items() if counts[key] > 1]


@pytest.mark.parametrize(("model", "precision"), BUNDLES)
def test_no_weight_lies_twice(model: str, precision: str, bundle_of: BundleOf) -> None:
    assert repeated(bundle_of(model, precision).model) == []


def test_a_weight_that_lies_twice_is_noticed_and_the_passes_join_it(
    parse_model: Callable[..., ir.Model], tmp_path: Path
) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[2, 8] x, float[8, 8] w, float[8, 8] v) => (float[2, 8] y) {
            inner = MatMul (x, w)
            y = MatMul (inner, v)
        }"""
    weight = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    model = parse_model(text, w=weight, v=weight.copy())
    ir.save(model, tmp_path / "twice.onnx")
    assert set(repeated(tmp_path / "twice.onnx")) == {"w", "v"}
    run_passes(model, {}, ExportSettings())
    ir.save(model, tmp_path / "once.onnx")
    assert list(tensors(tmp_path / "once.onnx")) == ["w"]


@pytest.mark.parametrize(("model", "precision"), BUNDLES)
def test_weights_lie_beside_the_graph(model: str, precision: str, bundle_of: BundleOf) -> None:
    """Always, and so above 1 GiB, too, where protobuf could not hold them."""
    bundle = bundle_of(model, precision)
    for name, tensor in tensors(bundle.model).items():
        assert isinstance(tensor, ir.ExternalTensor) or tensor.nbytes <= INLINE_BYTES, name


@pytest.fixture
def large(
    loaded_tiny: dict[str, LoadedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int], Bundle]:
    """large(bytes) -> a bundle whose tensors count as large from that size on."""

    def make(size: int) -> Bundle:
        monkeypatch.setattr("saten_exporters.bundles.export.ALIGNED_FROM_BYTES", size)
        return export(loaded_tiny["dense"], tmp_path / str(size))

    return make


def test_large_tensors_start_where_windows_can_map_them(large: Callable[[int], Bundle]) -> None:
    assert (ALIGNMENT_BYTES, ALIGNED_FROM_BYTES) == (65536, 1 << 20)
    stored = [tensor for tensor in tensors(large(8192).model).values() if isinstance(tensor, ir.ExternalTensor)]
    aligned = [tensor for tensor in stored if tensor.nbytes >= 8192]
    assert len(aligned) >= 10
    assert all(tensor.offset % ALIGNMENT_BYTES == 0 for tensor in aligned)
    assert any(tensor.offset % ALIGNMENT_BYTES for tensor in stored if tensor.nbytes < 8192)


def test_small_tensors_are_not_padded(large: Callable[[int], Bundle]) -> None:
    close, spread = (large(size).manifest.files["model.onnx.data"].bytes for size in (1 << 20, 8192))
    assert spread - close > 5 * ALIGNMENT_BYTES
