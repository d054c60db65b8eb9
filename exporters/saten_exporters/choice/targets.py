"""What a graph may use, and what its bundle carries besides, by the kind of device it is for: one row per target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx.defs
import onnx_ir as ir

from saten_exporters.choice.ort_format import add_ort_format
from saten_exporters.choice.settings import DEFAULT_TARGET
from saten_exporters.quantize import Precision
from saten_runtime.errors import ExportError

__all__ = ["TARGETS", "WEB_MACHINE", "Target", "check_operators", "target_of"]

# What ONNX Runtime has beside ONNX' own operators, as far as the exporter may write it. A test runs each of them
# in the smallest ONNX Runtime of every target.
ORT_OPERATORS: Mapping[str, frozenset[str]] = {
    "": frozenset({"SimplifiedLayerNormalization"}),  # it lives in ONNX' domain, and ONNX does not know it
    "com.microsoft": frozenset(
        {
            "BiasGelu",
            "DynamicQuantizeMatMul",
            "FastGelu",
            "FusedMatMul",
            "GatherBlockQuantized",
            "Gelu",
            "GroupQueryAttention",
            "MatMulNBits",
            "MultiHeadAttention",
            "QuickGelu",
            "RotaryEmbedding",
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
        }
    ),
}

WEB_MACHINE = "wasm32"


@dataclass(frozen=True)
class Target:
    """opset: of ONNX' own domain; ir_version: of the file; smallest_onnxruntime: the oldest that runs every form.

    machine: the processor, as Python's module platform calls it, which is the same in every browser. operators:
    allowed by domain, beside ONNX' own at `opset` and the functions that travel in the file. kernels: whether the
    native kernels are installed there. few_rows: up to so many rows of x, products by 4-bit weights take activations in
    8 bits however few inputs they have; None: always. extras: each adds files to the folder of a verified bundle.
    """

    name: str
    opset: int
    ir_version: int
    smallest_onnxruntime: str
    operators: Mapping[str, frozenset[str]]
    machine: str
    kernels: bool = False
    few_rows: int | None = 8
    extras: tuple[Callable[[Path], None], ...] = ()

    def floats_at(self, rows: int) -> bool:
        """Whether products by 4-bit weights with few inputs take activations in float32."""
        return self.few_rows is not None and rows > self.few_rows

    def smallest_for(self, precision: Precision) -> str:
        """The oldest ONNX Runtime that runs every form at a precision, "major.minor"."""
        both = (self.smallest_onnxruntime, precision.smallest_onnxruntime)
        return max(both, key=lambda version: tuple(map(int, version.split("."))))


# opset 18 brought ScatterElements(add) and is the oldest that every form needs; IR 10 is what it came to be
# written with. onnx stamps the newest IR by default, which released ONNX Runtimes refuse. ONNX Runtime 1.23 is
# the first to run MatMulNBits and GatherBlockQuantized with 8 bits, natively and in WebAssembly. On 64-bit ARM its
# products of 4-bit by 8-bit numbers (KleidiAI, SDOT) are faster than those of float32 at any number of rows.
TARGETS = {
    target.name: target
    for target in (
        Target("x86-64", 18, 10, "1.23", ORT_OPERATORS, "x86_64"),
        Target("x86-64+kernels", 18, 10, "1.23", ORT_OPERATORS, "x86_64", kernels=True),
        Target("arm64", 18, 10, "1.23", ORT_OPERATORS, "aarch64", few_rows=None),
        Target("arm64+kernels", 18, 10, "1.23", ORT_OPERATORS, "aarch64", kernels=True, few_rows=None),
        Target("web", 18, 10, "1.23", ORT_OPERATORS, WEB_MACHINE),
        Target("mobile", 18, 10, "1.23", ORT_OPERATORS, "aarch64", few_rows=None, extras=(add_ort_format,)),
    )
}


def target_of(machine: str) -> Target:
    """The first target of a processor, as Python's module platform calls it; that of x86-64 for an unknown one."""
    return next((target for target in TARGETS.values() if target.machine == machine), TARGETS[DEFAULT_TARGET])


def check_operators(model: ir.Model, target: Target) -> None:
    """Look at every node, those of subgraphs and functions too.

    Raises:
        ExportError: the target has no such operator at its opset, and the file brings no function of that name.
    """
    for node in _nodes(model):
        brought = node.op_identifier() in model.functions
        if not (brought or node.op_type in target.operators.get(node.domain, ()) or _in_onnx(node, target.opset)):
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ExportError(
                f"{node.name or 'a node'}: the target {target.name} (opset {target.opset}, ONNX Runtime ≥ "
                f"{target.smallest_onnxruntime}) has no operator {operator}; choose another target or lowering"
            )


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _in_onnx(node: ir.Node, opset: int) -> bool:
    return node.domain == "" and onnx.defs.has(node.op_type, max_inclusive_version=opset)
