"""A form: one way to write one part of a layer as ONNX operators.

Each form is a function of the domain `saten` whose body is made of standard operators (and `com.microsoft`'s
where 8-bit arithmetic needs them). ONNX Runtime inlines the body, or runs a kernel registered
under the function's name instead. Data flows x → y; every other input is a constant weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray

from saten_exporters.parts import LayerParts

__all__ = ["DOMAIN", "DOMAIN_VERSION", "Form", "Weights", "sum_of"]

DOMAIN = "saten"
DOMAIN_VERSION = 1
SUFFIXES = {"fp32": "", "int8": "Int8"}

Weights = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Form:
    """stem, kind, precision: make the operator's name. body: its ONNX text, from x and the weights to y.

    pack: a layer's numbers → the weights, in the order of the function's inputs.
    macs: multiply-accumulates for one row of x. parts: forms whose functions the body calls.
    """

    stem: str
    kind: str
    precision: str
    inputs: tuple[str, ...]
    body: str
    pack: Callable[[LayerParts], Weights]
    macs: Callable[[LayerParts], int]
    parts: tuple[Form, ...] = ()

    @property
    def op_type(self) -> str:
        """E.g. "LowRankGroupedLinear", "LowRankLinearInt8"."""
        return f"{self.stem}{self.kind.capitalize()}{SUFFIXES[self.precision]}"

    def functions(self, opset: int) -> list[ir.Function]:
        """The function of this form and of every form its body calls."""
        imports = f'"" : {opset}, "com.microsoft" : 1, "{DOMAIN}" : {DOMAIN_VERSION}'
        text = (
            f'<domain: "{DOMAIN}", opset_import: [{imports}]>\n'
            f"{self.op_type} ({', '.join(('x', *self.inputs))}) => (y) {{\n{self.body}\n}}"
        )
        own = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        used = {node.domain for node in own}
        for domain in set(own.opset_imports) - used:
            del own.opset_imports[domain]
        return [own, *(function for part in self.parts for function in part.functions(opset))]


def sum_of(train: Form, residual: Form) -> Form:
    """The form of a whole layer: y = train(x) + residual(x), as one function that calls both."""
    both = (*train.inputs, *residual.inputs)
    body = f"""
        low = {DOMAIN}.{train.op_type} ({", ".join(("x", *train.inputs))})
        rest = {DOMAIN}.{residual.op_type} ({", ".join(("x", *residual.inputs))})
        y = Add (low, rest)"""
    return Form(
        stem=train.stem + residual.stem,
        kind=train.kind,
        precision=train.precision,
        inputs=both,
        body=body,
        pack=lambda parts: {**train.pack(parts), **residual.pack(parts)},
        macs=lambda parts: train.macs(parts) + residual.macs(parts),
        parts=(train, residual),
    )
