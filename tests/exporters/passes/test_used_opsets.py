from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from saten_exporters.passes import UsedOpsetsPass

FUNCTION = """
<domain: "saten", opset_import: ["com.microsoft" : 1]>
Faster (x) => (y) { y = com.microsoft.Gelu (x) }"""


def model(parse: Callable[..., ir.Model], more: str, called: str) -> ir.Model:
    head = f'<ir_version: 10, opset_import: ["" : 18, "saten" : 1, "com.microsoft" : 1{more}]>'
    return parse(f"{head} g (float[2] x) => (float[2] y) {{ y = {called} (x) }} {FUNCTION}")


def test_what_a_function_uses_stays(parse_model: Callable[..., ir.Model]) -> None:
    made = model(parse_model, "", "saten.Faster")
    assert not UsedOpsetsPass()(made).modified
    assert set(made.opset_imports) == {"", "saten", "com.microsoft"}


def test_what_nobody_uses_goes(parse_model: Callable[..., ir.Model]) -> None:
    made = model(parse_model, ', "ai.onnx.ml" : 3', "Relu")
    made.functions.clear()
    assert UsedOpsetsPass()(made).modified
    assert set(made.opset_imports) == {""}
    assert not UsedOpsetsPass()(made).modified


def test_what_a_node_needs_comes(parse_model: Callable[..., ir.Model]) -> None:
    """As of a symbolic operator in a graph without any fusion."""
    made = model(parse_model, "", "com.microsoft.Gelu")
    made.functions.clear()
    del made.opset_imports["com.microsoft"]
    made.graph[0].version = 1
    assert UsedOpsetsPass()(made).modified
    assert made.opset_imports == {"": 18, "com.microsoft": 1}
    assert not UsedOpsetsPass()(made).modified
