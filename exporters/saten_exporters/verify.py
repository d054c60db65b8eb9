"""A bundle that is being written against torch: what is stored to compare with, and how far off an output may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from saten_exporters.forms import DOMAIN
from saten_exporters.parts import Exportable
from saten_exporters.tasks import kind_of
from saten_runtime.errors import ParityError
from saten_runtime.parity import READS, Comparison, write_case

__all__ = ["DERIVED", "measured_bound", "rounding_bound", "write_cases"]

PRODUCTS = ("MatMul", "Gemm", "FusedMatMul")

# Precisions whose bound follows from the arithmetic → relative rounding of a stored weight. A range of 8-bit
# activations is known only when they are, so below these the error is measured at export, and kept.
DERIVED: Mapping[str, float] = {"fp32": 0.0, "fp16": 2.0**-11}

# A measured error above this is no rounding: half of the output would be noise.
LARGEST_MEASURED = 0.5
# What other machines' 8-bit instructions, which round and saturate in their own ways, may add to a measured error.
MARGIN = 2.0


def write_cases(source: Exportable, folder: Path, outputs: list[str]) -> None:
    """Inputs of every case of the model's kind, and what torch computes for them.

    A decoder is asked for all tokens in one run without a cache; the graph has to give the same in several with one.
    """
    kind = kind_of(source)
    whole = [name for name in outputs if not kind.cached or "past_key_values" not in name]
    options = {"use_cache": False} if hasattr(source.model.config, "use_cache") else {}
    for name, case in kind.cases(source).items():
        with torch.no_grad():
            results = source.model(**case.inputs, **options)
        arrays = {each: tensor.numpy() for each, tensor in case.inputs.items()}
        reads = {READS: np.array(case.reads, np.int64)} if case.reads else {}
        write_case(folder, name, {**arrays, **reads, **{each: results[each].numpy() for each in whole}})


def rounding_bound(graph: ir.Graph, precision: str = "fp32") -> float:
    """Relative difference that rounding alone may cause between two float32 evaluations of `graph`.

    A product of length k rounded at every step has relative error of about √k · u, u = eps / 2 (Higham & Mary,
    "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41(5), 2019); n products
    one after the other add up to n √k u. n is the number of products in the graph, k the longest of them.
    A precision of `DERIVED` that rounds each stored weight by w moves each product by w besides: n (√k u + w).
    """
    products = [node for node in graph if node.op_type in PRODUCTS or node.domain == DOMAIN]
    weights = [
        value.const_value
        for node in products
        if "Embedding" not in node.op_type
        for value in node.inputs
        if value is not None and value.const_value is not None
    ]
    longest = max((max(weight.shape.numpy()) for weight in weights if len(weight.shape) == 2), default=1)
    unit = float(np.finfo(np.float32).eps) / 2
    return len(products) * (math.sqrt(longest) * unit + DERIVED[precision])


def measured_bound(name: str, comparisons: list[Comparison]) -> float:
    """What a precision without a derived bound is held to from now on: its own error, with a margin.

    Raises:
        ParityError: an error that no rounding explains.
    """
    worst = max(comparisons, key=lambda row: np.nan_to_num(row.relative_error, nan=np.inf))
    if not worst.relative_error <= LARGEST_MEASURED:
        raise ParityError(
            f"{name}: output {worst.output!r} of case {worst.case} is {worst.relative_error:.2e} from torch's; more "
            f"than {LARGEST_MEASURED} is no rounding to fewer bits; choose a higher precision"
        )
    return MARGIN * worst.relative_error
