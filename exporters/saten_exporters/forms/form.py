"""A form: one way to write one part of a layer as ONNX operators.

Each form is a function of the domain `saten` whose body is made of standard operators (and `com.microsoft`'s
where 8- and 4-bit arithmetic needs them). ONNX Runtime inlines the body, or runs a kernel registered
under the function's name instead. Data flows x → y; every other input is a constant weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray

from saten_exporters.exportable import LayerParts
from saten_exporters.quantize import STORED
from saten_runtime.vocabulary.operators import DOMAIN, DOMAIN_VERSION

__all__ = [
    "EPILOGUES",
    "NATIVE",
    "Form",
    "Weights",
    "Work",
    "followed_by",
    "function",
    "product",
    "sum_of",
]

NATIVE = ("fp32", "int8")  # precisions that the native library has kernels for

# What may follow a linear layer in the same node, by the end of its name → the text of y from what the layer makes.
EPILOGUES: Mapping[str, str] = {
    "Bias": """
        y = Add (product, bias)""",
    "BiasGelu": """
        y = com.microsoft.BiasGelu (product, bias)""",
}

Weights = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Work:
    """What one step of a form does: the quantities that its time is predicted from (`saten_exporters.choice.cost`).

    family: of steps that take equally long per unit. macs, moved: multiply-accumulates, and activations read or
    written, for one row of x; weights: values read once per call; calls: of an operator.
    """

    family: str
    macs: int = 0
    weights: int = 0
    moved: int = 0
    calls: int = 1


def product(shape: tuple[int, ...], times: int = 1, family: str = "product") -> Work:
    """A product of `times` rows by a matrix of a shape (inputs, outputs), for each row of x."""
    inputs, outputs = shape
    size = inputs * outputs
    return Work(family, macs=times * size, weights=size, moved=times * (inputs + outputs))


def function(name: str, inputs: Sequence[str], body: str, opset: int, *, attributes: Sequence[str] = ()) -> ir.Function:
    """A function of the domain `saten` from the ONNX text of its body, which makes y of the inputs and attributes."""
    imports = f'"" : {opset}, "com.microsoft" : 1, "{DOMAIN}" : {DOMAIN_VERSION}'
    taken = f"<{', '.join(attributes)}> " if attributes else ""
    text = f'<domain: "{DOMAIN}", opset_import: [{imports}]>\n{name} {taken}({", ".join(inputs)}) => (y) {{\n{body}\n}}'
    made = ir.serde.deserialize_function(onnx.parser.parse_function(text))
    for domain in set(made.opset_imports) - {node.domain for node in made}:
        del made.opset_imports[domain]
    return made


def _no_sizes(parts: LayerParts, floats: bool) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True)
class Form:
    """stem, kind, precision: make the operator's name. body: its ONNX text, from x and the weights to y.

    pack: a layer's numbers → the weights, in the order of the function's inputs. stored_bytes: of these weights, from
    the shapes of the numbers alone. work: its own steps; native: all
    steps of the kernel of the same name, where there is one. attributes: names of the integers that the body refers
    to; sizes: their values, for a layer, and whether products of few inputs take x in float32 (see `Storage`).
    parts: forms whose functions the body calls. epilogue: what follows in the same node, one of `EPILOGUES` or nothing.
    """

    stem: str
    kind: str
    precision: str
    inputs: tuple[str, ...]
    body: str
    pack: Callable[[LayerParts], Weights]
    stored_bytes: Callable[[LayerParts], int]
    work: Callable[[LayerParts], tuple[Work, ...]]
    native: Callable[[LayerParts], tuple[Work, ...]] | None = None
    attributes: tuple[str, ...] = ()
    sizes: Callable[[LayerParts, bool], Mapping[str, int]] = _no_sizes
    parts: tuple[Form, ...] = ()
    epilogue: str = ""

    @property
    def op_type(self) -> str:
        """E.g. "LowRankGroupedLinear", "LowRankLinearInt8BiasGelu"."""
        return f"{self.stem}{self.kind.capitalize()}{STORED[self.precision].suffix}{self.epilogue}"

    def steps(self, parts: LayerParts, *, native: bool = False) -> tuple[tuple[str, Work], ...]:
        """(precision, step) of everything that is computed: by the native kernel, where there is one and it may."""
        if native and self.native:
            return tuple((self.precision, step) for step in self.native(parts))
        called = (step for part in self.parts for step in part.steps(parts, native=native))
        return (*called, *((self.precision, step) for step in self.work(parts)))

    def macs(self, parts: LayerParts) -> int:
        """Multiply-accumulates for one row of x, by the function's body or by the kernel, whichever needs fewer."""
        return min(sum(step.macs for _, step in self.steps(parts, native=native)) for native in (False, True))

    def functions(self, opset: int) -> list[ir.Function]:
        """The function of this form and of every form its body calls."""
        own = function(self.op_type, ("x", *self.inputs), self.body, opset, attributes=self.attributes)
        return [own, *(each for part in self.parts for each in part.functions(opset))]

    def call(self, y: str) -> str:
        """Text of a call of this form's function: y = form(x, its weights), its attributes handed on."""
        handed = ", ".join(f"{name}: int = @{name}" for name in self.attributes)
        attributes = f" <{handed}>" if handed else ""
        return f"""
        {y} = {DOMAIN}.{self.op_type}{attributes} ({", ".join(("x", *self.inputs))})"""


def sum_of(train: Form, residual: Form) -> Form:
    """The form of a whole layer: y = train(x) + residual(x), as one function that calls both."""
    both = (train, residual)
    return Form(
        stem=train.stem + residual.stem,
        kind=train.kind,
        precision=train.precision,
        inputs=(*train.inputs, *residual.inputs),
        body=train.call("low")
        + residual.call("rest")
        + """
        y = Add (low, rest)""",
        pack=lambda parts: {**train.pack(parts), **residual.pack(parts)},
        stored_bytes=lambda parts: train.stored_bytes(parts) + residual.stored_bytes(parts),
        work=lambda parts: (Work("add", moved=3 * parts.shape[1]),),
        native=_native_sum(train, residual),
        attributes=tuple(dict.fromkeys(name for form in both for name in form.attributes)),
        sizes=lambda parts, floats: {**train.sizes(parts, floats), **residual.sizes(parts, floats)},
        parts=both,
    )


def followed_by(form: Form, epilogue: str) -> Form:
    """The form of a layer and its epilogue: y = epilogue(layer(x), bias), with bias (outputs) as the last input."""
    return replace(
        form,
        inputs=(*form.inputs, "bias"),
        body=form.call("product") + EPILOGUES[epilogue],
        parts=(form,),
        epilogue=epilogue,
    )


def _native_sum(train: Form, residual: Form) -> Callable[[LayerParts], tuple[Work, ...]] | None:
    """The steps of the kernel of a whole layer, which adds in place; there is one where both parts have one."""
    first, second = train.native, residual.native
    if first is None or second is None or train.precision != residual.precision:
        return None
    return lambda parts: (*first(parts), *second(parts))
