"""What ONNX Runtime keeps in memory is what the bundle stores: nothing small is folded into something dense."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest

from saten_exporters import PRECISIONS, LayerParts
from saten_exporters.forms import DENSE_FORMS, RESIDUAL_FORMS, STORAGES, TRAIN_FORMS, Form, form_of
from saten_runtime.bundle.folder import Bundle

ALLOWED = 0.02
# Forms whose bodies rebuild a matrix once at load, and say so.
REBUILT = ("csr", "n:m")
LAYERS = [(None, *row) for row in TRAIN_FORMS] + list(RESIDUAL_FORMS)

BundleOf = Callable[[str, str], Bundle]
OneForm = Callable[[Form, LayerParts], ir.Model]


def constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every constant tensor of a model: initializers, and the values of Constant nodes, functions included."""
    yield from (value.const_value for value in model.graph.initializers.values() if value.const_value is not None)
    for owner in (model.graph, *model.functions.values()):
        for node in owner.all_nodes():
            if node.op_type == "Constant" and "value" in node.attributes:
                yield node.attributes["value"].as_tensor()


def size_bytes(model: ir.Model) -> int:
    return sum(tensor.nbytes for tensor in constants(model))


def optimized(model: Path, folder: Path) -> ir.Model:
    """The graph that ONNX Runtime runs, as it stands after all its optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return ir.load(folder / "optimized.onnx")


def growth(bundle: Bundle, folder: Path) -> float:
    exported = size_bytes(ir.load(bundle.model))
    return size_bytes(optimized(bundle.model, folder)) / exported - 1


def grown_bytes(model: ir.Model, folder: Path) -> tuple[int, int]:
    """Bytes of the weights of a one-layer model, as exported and as ONNX Runtime keeps them; small ones are shapes."""
    ir.save(model, folder / "layer.onnx")
    kept = optimized(folder / "layer.onnx", folder)
    before, after = (
        sum(tensor.nbytes for tensor in constants(each) if tensor.nbytes > SMALL_BYTES) for each in (model, kept)
    )
    return before, after


SMALL_BYTES = 128


@pytest.mark.parametrize("whole", [False, True], ids=["matrix", "parts"])
@pytest.mark.parametrize(("layout", "kind", "precision"), [row for row in LAYERS if row[0] not in REBUILT])
def test_no_form_is_decoded_at_load(
    layout: str | None,
    kind: str,
    precision: str,
    whole: bool,
    make_parts: Callable[..., LayerParts],
    one_form: OneForm,
    tmp_path: Path,
) -> None:
    parts = make_parts(kind, layout)
    form = form_of(parts, precision) if whole else DENSE_FORMS[kind, precision]
    before, after = grown_bytes(one_form(form, parts), tmp_path)
    assert before > 900
    assert after <= before


def test_a_decoded_weight_is_seen(make_parts: Callable[..., LayerParts], one_form: OneForm, tmp_path: Path) -> None:
    """The twin: without the shape that is taken from x, ONNX Runtime decodes halves at load."""
    parts = make_parts("linear", "grouped")
    model = one_form(RESIDUAL_FORMS["grouped", "linear", "fp16"], parts)
    for function in model.functions.values():
        for node in function:
            if node.op_type == "Reshape" and node.outputs[0].name == "blocks_late":
                node.outputs[0].replace_all_uses_with(node.inputs[0])
    before, after = grown_bytes(model, tmp_path)
    assert after > 1.5 * before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_grouped_weights_stay_as_they_are(precision: str, bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle = bundle_of("saten", precision)
    layers = sum(layer.bytes for layer in bundle.manifest.layers)
    assert layers > 0.5 * size_bytes(ir.load(bundle.model))  # the rest does not drown them
    assert -ALLOWED <= growth(bundle, tmp_path) <= ALLOWED


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_as_large_as_a_dense_matrix_appears(precision: str, bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle = bundle_of("saten", precision)
    sizes = [tensor.nbytes for tensor in constants(optimized(bundle.model, tmp_path))]
    stored = [tensor.nbytes for tensor in constants(ir.load(bundle.model))]
    assert max(sizes) == max(stored)
    assert max(sizes) < max(layer.dense_fp32_bytes for layer in bundle.manifest.layers) / 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", REBUILT)
def test_what_is_rebuilt_is_rebuilt_once(
    layout: str, precision: str, make_parts: Callable[..., LayerParts], one_form: OneForm, tmp_path: Path
) -> None:
    """Nothing is left to do at each call but the product: no step of the unpacking, and no index."""
    parts = make_parts("linear", layout)
    form = RESIDUAL_FORMS[layout, "linear", precision]
    ir.save(one_form(form, parts), tmp_path / "layer.onnx")
    kept = optimized(tmp_path / "layer.onnx", tmp_path)
    left = {node.op_type for node in kept.graph}
    assert left <= {"MatMul", "DynamicQuantizeMatMul", "Shape", "Min", "Add", "Reshape", "Cast"}
    assert left & {"MatMul", "DynamicQuantizeMatMul"}
    widened = max(8, STORAGES[form.precision].precision.bits)  # values of 4 bits are multiplied as 8
    assert max(tensor.nbytes for tensor in constants(kept)) == 48 * 64 * widened // 8


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_matrix_rebuilt_at_load_is_seen(precision: str, bundle_of: BundleOf, tmp_path: Path) -> None:
    """The unstructured form rebuilds its matrices, and the check has to notice."""
    assert growth(bundle_of("unstructured", precision), tmp_path) > 10 * ALLOWED
