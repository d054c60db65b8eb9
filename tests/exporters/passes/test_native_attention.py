from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from saten_edge.checkpoints.models import load_model
from saten_exporters import TARGETS, export
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.passes import NativeAttentionPass, run_passes
from saten_exporters.tracing.trace import trace
from saten_runtime.vocabulary.operators import ATTENTION

HEADS, WIDTH, VALUE_WIDTH, SCALE = 3, 8, 5, 0.3
UNIT = float(np.finfo(np.float32).eps) / 2
LOWEST = np.finfo(np.float32).min

FLAT = {"queries": ("new", WIDTH), "keys": ("tokens", WIDTH), "values": ("tokens", VALUE_WIDTH)}
ATTEND = f"attended = saten.Attention <scale = {SCALE}> (q_turned, k_turned, v_turned, repeated)"
TURNS = [
    f"{name[0]}_split = Reshape ({name}, {name[0]}_shape) "
    f"{name[0]}_turned = Transpose <perm = [0, 2, 1, 3]> ({name[0]}_split)"
    for name in FLAT
]
REPEAT = "repeated = Expand (mask, mask_shape)"
JOIN = "back = Transpose <perm = [0, 2, 1, 3]> (attended)", "y = Reshape (back, y_shape)"


def text(*nodes: str, outputs: str = f"float[batch, new, {HEADS * VALUE_WIDTH}] y") -> str:
    given = [f"float[batch, {tokens}, {HEADS * width}] {name}" for name, (tokens, width) in FLAT.items()]
    shapes = [f"float[batch, {tokens}, {HEADS}, {width}] {name[0]}_split" for name, (tokens, width) in FLAT.items()]
    shapes += [f"float[batch, {HEADS}, {tokens}, {width}] {name[0]}_turned" for name, (tokens, width) in FLAT.items()]
    shapes += [f"float[batch, {HEADS}, new, {VALUE_WIDTH}] attended", f"float[batch, new, {HEADS}, {VALUE_WIDTH}] back"]
    shapes += ["float[batch, 1, new, tokens] repeated"]
    heads = [f"int64[4] {name[0]}_shape = {{0, 0, {HEADS}, {width}}}" for name, (_, width) in FLAT.items()]
    heads += [f"int64[3] y_shape = {{0, 0, {HEADS * VALUE_WIDTH}}}"]
    inputs = ", ".join([*given, "float[batch, 1, 1, tokens] mask", "int64[4] mask_shape"])
    head = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "saten" : 1]>'
    return "\n".join((f"{head} g ({inputs}) => ({outputs}) <{', '.join([*shapes, *heads])}> {{", *nodes, "}"))


TEXT = text(*TURNS, REPEAT, ATTEND, *JOIN)
# None of these can be replaced.
FLAT_Y, TURNED_Y = f"float[batch, new, {HEADS * VALUE_WIDTH}] y", f"float[batch, {HEADS}, new, {VALUE_WIDTH}] attended"
HALVES = TEXT.replace(f"{HEADS}, {WIDTH}] k_split", f"{2 * HEADS}, {WIDTH // 2}] k_split")
OTHERS = {
    "turned otherwise": TEXT.replace("[0, 2, 1, 3]> (q_split)", "[0, 1, 2, 3]> (q_split)"),
    "not turned back": TEXT.replace("[0, 2, 1, 3]> (attended)", "[0, 1, 2, 3]> (attended)"),
    "keys are computed": text(*TURNS, REPEAT, "odd = Neg (k_turned)", ATTEND.replace("k_turned", "odd"), *JOIN),
    "other heads": HALVES.replace(f"{HEADS}, tokens, {WIDTH}] k", f"{2 * HEADS}, tokens, {WIDTH // 2}] k"),
    "an unknown width": TEXT.replace(f"{HEADS * WIDTH}] queries", "width] queries"),
    "the joined axes are others": TEXT.replace(FLAT_Y, FLAT_Y.replace("batch, new", "new, batch")),
    "something else reads the heads": text(*TURNS, REPEAT, ATTEND, "z = Neg (attended)", *JOIN),
    "the heads are an output": text(*TURNS, REPEAT, ATTEND, outputs=TURNED_Y),
    "another operator": TEXT.replace("saten.Attention", "saten.CachedAttention"),
}

Parse = Callable[..., ir.Model]
RunOrt = Callable[..., list[np.ndarray]]
Arrays = dict[str, np.ndarray]


def feeds(batch: int, new: int, tokens: int) -> Arrays:
    random = np.random.default_rng(tokens)
    seen = random.random((batch, 1, 1, tokens)) < 0.7
    seen[..., -1] = True
    seen[0] &= batch == 1  # a text of padding alone
    sizes = {"new": new, "tokens": tokens}
    flat = {name: (batch, sizes[axis], HEADS * width) for name, (axis, width) in FLAT.items()}
    given = {name: random.standard_normal(shape, np.float32) for name, shape in flat.items()}
    mask = np.where(seen, 0, LOWEST).astype(np.float32)
    return {**given, "mask": mask, "mask_shape": np.array([batch, 1, new, tokens])}


def oracle(given: Arrays, rounded: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Attention in float64 and what rounding may do to it, as in `test_fuse_attention.py`.

    rounded: what each factor of a product is off by besides, relatively.
    """
    queries, keys, values = (
        given[name].astype(float).reshape(*given[name].shape[:2], HEADS, -1).transpose(0, 2, 1, 3) for name in FLAT
    )
    scores = queries @ keys.swapaxes(2, 3) * SCALE
    scores = np.where(given["mask"] == LOWEST, float(LOWEST), scores + given["mask"])  # no score moves the lowest
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    off = (WIDTH + 4) * UNIT + 2.01 * rounded
    delta = (off * SCALE * (np.abs(queries) @ np.abs(keys).swapaxes(2, 3))).max(axis=-1, keepdims=True)
    bound = (np.expm1(2 * delta) + (keys.shape[2] + 16) * UNIT + 2.01 * rounded) * (weights @ np.abs(values))
    attended, bound = (each.transpose(0, 2, 1, 3) for each in (weights @ values, bound))
    return attended.reshape(*attended.shape[:2], -1), bound.reshape(*bound.shape[:2], -1)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize(("batch", "new", "tokens"), [(1, 1, 1), (1, 7, 7), (3, 7, 7), (3, 2, 9)])
def test_the_body_computes_attention(
    batch: int, new: int, tokens: int, optimized: bool, masked: bool, parse_model: Parse, run_ort: RunOrt
) -> None:
    model = parse_model(TEXT if masked else TEXT.replace(", repeated)", ")"))
    assert NativeAttentionPass()(model).modified
    given = feeds(batch, new, tokens)
    expected, bound = oracle(given if masked else {**given, "mask": given["mask"] * 0})
    (got,) = run_ort(model, given, optimized=optimized)
    assert (np.abs(got - expected) <= bound).all()
    assert not (np.abs(np.roll(got, 1, axis=-1) - expected) <= bound).all()


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_it_reads_and_gives_what_layers_do(masked: bool, narrow: bool, parse_model: Parse) -> None:
    model = parse_model(TEXT if masked else TEXT.replace(", repeated)", ")"))
    NativeAttentionPass(narrow=narrow)(model)
    (node,) = [node for node in model.graph if node.domain == "saten"]
    name = "MaskedMultiHeadAttention" if masked else "MultiHeadAttention"
    assert node.op_type == name + ("Bf16" if narrow else "")
    assert [function.name for function in model.functions.values()] == [node.op_type]
    assert [value.name for value in node.inputs] == [*FLAT, *(["mask"] if masked else [])]
    assert node.outputs[0] is model.graph.outputs[0]
    assert (node.attributes.get_int("heads"), node.attributes.get_float("scale")) == (HEADS, pytest.approx(SCALE))
    assert "Reshape" not in [user.op_type for user in node.outputs[0].consumers()]


@pytest.mark.parametrize("odd", ["float[odd, 1, new, tokens] repeated", "float[batch, new, tokens] repeated"])
def test_a_mask_that_grew_stays_repeated(odd: str, parse_model: Parse) -> None:
    model = parse_model(TEXT.replace("float[batch, 1, new, tokens] repeated", odd))
    NativeAttentionPass()(model)
    (node,) = [node for node in model.graph if node.domain == "saten"]
    assert node.inputs[3].name == "repeated"


@pytest.mark.parametrize("case", OTHERS)
def test_another_graph_stays(case: str, parse_model: Parse) -> None:
    assert OTHERS[case] != TEXT
    model = parse_model(OTHERS[case])
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not NativeAttentionPass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_an_encoder_has_one_for_each_layer(make_tiny: Callable[..., Path]) -> None:
    source = load_model(make_tiny("distilbert", "text-classification"), "text-classification")
    model = trace(source, TARGETS["x86-64+kernels"]).program
    layers = [node.op_type for node in model.graph].count(ATTENTION)
    run_passes(model, {}, ExportSettings(target="x86-64+kernels"))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MaskedMultiHeadAttention") == layers > 0
    assert not {"Softmax", "Transpose", "Expand"} & set(kinds)


@pytest.mark.parametrize(
    ("family", "task", "precision", "native"),
    [
        ("bert", "feature-extraction", "int8", "MaskedMultiHeadAttentionBf16"),
        ("vit", "image-classification", "fp32", "MultiHeadAttention"),
    ],
)
def test_a_bundle_passes_its_own_checks(
    family: str, task: str, precision: str, native: str, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """`export` compares the graph with torch, batches with padding among them; here the bodies run."""
    source = load_model(make_tiny(family, task), task)
    options = {"precision": precision, "max_loss": float("inf")}
    bundle = export(source, tmp_path / "bundle", target="x86-64+kernels", **options)
    kinds = [node.op_type for node in ir.load(bundle.path / "model.onnx").graph]
    assert kinds.count(native) == source.model.config.num_hidden_layers
    assert "Softmax" not in kinds
