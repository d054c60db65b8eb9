"""The table of targets, and the check that a graph uses nothing a target lacks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from saten_edge.checkpoints.models import LoadedModel
from saten_exporters import TARGETS, export
from saten_exporters.bundles.layouts import JS_DTYPES
from saten_exporters.choice.settings import DEFAULT_TARGET
from saten_exporters.choice.targets import ORT_OPERATORS, Target, check_operators
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.graph import DOMAINS
from saten_runtime.errors import ExportError

HEAD = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "saten" : 1, "other" : 1]>'
BODY = "g (float[batch, 4] x, float[4] w) => (float[batch, 4] y) {{ {} }}"
FUNCTION = '<domain: "saten", opset_import: ["" : 18, "other" : 1]> Twice (x) => (y) {{ {} }}'

# what is refused → the graph
REFUSED = {
    "com.microsoft.Attention": BODY.format("y = com.microsoft.Attention (x, w)"),
    "RMSNormalization": BODY.format("y = RMSNormalization (x, w)"),  # ONNX has it from opset 23 on
    "Unheard": BODY.format("y = Unheard (x, w)"),
    "other.Add": BODY.format("y = other.Add (x, w)"),
    "saten.Twice": BODY.format("y = saten.Twice (x)"),  # no function of that name
    "other.Relu": BODY.format("y = saten.Twice (x)") + FUNCTION.format("y = other.Relu (x)"),
    "other.Neg": BODY.format(
        "some = Shape (x) yes = Cast <to = 9> (some) one = ReduceMax <keepdims = 0> (some) flag = Cast <to = 9> (one)"
        " y = If (flag) <then_branch = a () => (float[batch, 4] p) { p = other.Neg (x) },"
        " else_branch = b () => (float[batch, 4] q) { q = Neg (x) }>"
    ),
}
ALLOWED = {
    "plain": BODY.format("y = Add (x, w)"),
    "ORT's own": BODY.format("z = com.microsoft.BiasGelu (x, w) y = SimplifiedLayerNormalization (z, w)"),
    "function": BODY.format("y = saten.Twice (x)") + FUNCTION.format("y = Add (x, x)"),
}

Parse = Callable[..., ir.Model]
BundleOf = Callable[[str, str], Bundle]


def test_the_targets_and_their_names() -> None:
    assert list(TARGETS) == ["x86-64", "x86-64+kernels", "arm64", "arm64+kernels", "web", "mobile"]
    assert DEFAULT_TARGET in TARGETS
    assert [name for name, target in TARGETS.items() if target.kernels] == ["x86-64+kernels", "arm64+kernels"]
    assert {name: target.name for name, target in TARGETS.items()} == {name: name for name in TARGETS}


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_a_row_stays_within_the_design(target: Target) -> None:
    assert 18 <= target.opset <= 21
    assert target.ir_version <= 10
    assert set(target.operators) <= DOMAINS - {"saten"}  # what the runtime would refuse must not be written


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("operator", REFUSED)
def test_an_operator_that_a_target_lacks(operator: str, target: Target, parse_model: Parse) -> None:
    model = parse_model(HEAD + REFUSED[operator])
    with pytest.raises(ExportError, match=rf"target {target.name.replace('+', '.')} .* has no operator {operator};"):
        check_operators(model, target)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("graph", ALLOWED)
def test_what_a_target_has(graph: str, target: Target, parse_model: Parse) -> None:
    check_operators(parse_model(HEAD + ALLOWED[graph]), target)


def test_a_graph_without_an_operator_of_its_target_is_never_written(
    loaded_tiny: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = Target("poor", 18, 10, "1.23", {**ORT_OPERATORS, "com.microsoft": frozenset()}, "x86_64")
    monkeypatch.setitem(TARGETS, "poor", poor)
    with pytest.raises(ExportError, match=r"target poor .* has no operator com\.microsoft\.FusedMatMul"):
        export(loaded_tiny["dense"], tmp_path / "out", target="poor")
    assert list(tmp_path.iterdir()) == []


def test_the_page_shows_the_tables() -> None:
    page = (Path(__file__).parents[3] / "docs" / "targets.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)`.* \| (\d+) \| (\d+) \| ≥ ([\d.]+) \|", page, re.MULTILINE)
    assert rows == [
        (name, str(target.opset), str(target.ir_version), target.smallest_onnxruntime)
        for name, target in TARGETS.items()
    ]
    names = re.findall(r"^\| (\w+) \| `onnx/model(\w*)\.onnx` \| `(\w+)` \|", page, re.MULTILINE)
    assert {precision: (dtype, suffix) for precision, suffix, dtype in names} == JS_DTYPES
