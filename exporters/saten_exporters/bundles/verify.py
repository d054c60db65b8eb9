"""A bundle that is being written against torch: what is stored to compare with, and how far off an output may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from saten_exporters.exportable import Exportable
from saten_exporters.tracing.samples import Case
from saten_exporters.tracing.signatures import kind_of, name_on_the_device, task_of
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import ParityError, UsageError
from saten_runtime.run.parity import (
    COLUMNS,
    READS,
    Arrays,
    Comparison,
    compare_case,
    in_columns,
    read_cases,
    usual_sizes,
    write_case,
)
from saten_runtime.vocabulary.operators import DOMAIN, EMBEDDING

__all__ = ["DERIVED", "answered", "approximation", "measured_bound", "rounding_bound", "write_cases"]

# operator → the products in it, one after the other
PRODUCTS: Mapping[str, int] = {"MatMul": 1, "Gemm": 1, "FusedMatMul": 1, "GroupQueryAttention": 2}

# Precisions whose bound follows from the arithmetic → relative rounding of a stored weight. A range of 8-bit
# activations is known only when they are, so below these the error is measured at export, and kept.
DERIVED: Mapping[str, float] = {"fp32": 0.0, "fp16": 2.0**-11}

# Where half of the measured errors are above this, no rounding to so few bits explains them. One alone may be, of a few
# logits. Random weights make the most of every rounding, trained ones stay far below.
LARGEST_USUAL = {"int8": 0.5, "int8-block": 0.5, "int4": 1.0, "int4-128": 1.0, "int2": 2.0}
# Of a larger vocabulary as many tokens are compared, and the likeliest of every row: 29 MB of logits become 1.
MOST_COLUMNS, LIKELIEST = 2048, 8
# What other machines' 8-bit instructions, which round and saturate in their own ways, may add to a measured error.
MARGIN = 2.0


def write_cases(source: Exportable, folder: Path, outputs: list[str]) -> None:
    """Inputs of every case of the model's kind, and what torch computes for them.

    A decoder is asked for all tokens in one run without a cache; the graph has to give the same in several with one.
    """
    kind = kind_of(source)
    whole = [name for name in outputs if not kind.cached or "past_key_values" not in name]
    for name, case in kind.cases(source).items():
        write_case(folder, name, _thinned(answered(source, case, whole)))


def _thinned(arrays: Arrays) -> Arrays:
    """A decoder's case with the logits of the likeliest tokens, and of some drawn ones, of a large vocabulary."""
    logits = arrays.get("logits")
    if READS not in arrays or logits is None or logits.shape[-1] <= MOST_COLUMNS:
        return arrays
    likeliest = np.argpartition(logits, -LIKELIEST, axis=-1)[..., -LIKELIEST:]
    drawn = np.random.default_rng(0).choice(logits.shape[-1], MOST_COLUMNS, replace=False)
    columns = np.union1d(likeliest, drawn).astype(np.int64)
    return {**arrays, "logits": logits[..., columns], COLUMNS: columns}


def answered(source: Exportable, case: Case, outputs: Sequence[str]) -> Arrays:
    """A case's inputs, and what torch computes for them by the names of `outputs`."""
    reads = {READS: np.array(case.reads, np.int64)} if case.reads else {}
    inputs = {name: tensor.numpy() for name, tensor in case.inputs.items()}
    return {**inputs, **reads, **_computed(source, case.inputs, outputs)}


def approximation(bundle: Bundle, dense: Exportable) -> list[Comparison]:
    """How far torch's outputs in a compressed model's bundle are from the dense model's: no bound, and no verdict.

    Raises:
        UsageError: `dense` is of another task or architecture.
    """
    manifest, outputs = bundle.manifest, task_of(dense).outputs
    ours = f"{manifest.task} by {manifest.source['architecture']}"
    theirs = f"{name_on_the_device(dense)} by {dense.source['architecture']}"
    if ours != theirs:
        raise UsageError(f"{dense.source['model']}: does {theirs}, the model to export {ours}; they cannot be compared")
    cases, wanted = read_cases(bundle), {}
    for name, arrays in cases.items():
        inputs = {each: torch.from_numpy(arrays[each]) for each in manifest.inputs if each in arrays}
        wanted[name] = {**arrays, **in_columns(_computed(dense, inputs, outputs), arrays)}
    usual = usual_sizes(bundle.task, wanted, outputs)
    return [
        row
        for name, arrays in cases.items()
        for row in compare_case(bundle.task, name, {each: arrays[each] for each in outputs}, wanted[name], usual)
    ]


def _computed(source: Exportable, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """What torch computes, by the names of outputs."""
    options = {"use_cache": False} if hasattr(source.model.config, "use_cache") else {}
    with torch.no_grad():
        results = source.model(**inputs, **options)
    return {name: results[name].numpy() for name in outputs}


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
        if EMBEDDING not in node.op_type
        for value in node.inputs
        if value is not None and value.const_value is not None
    ]
    longest = max((max(weight.shape.numpy()) for weight in weights if len(weight.shape) == 2), default=1)
    unit = float(np.finfo(np.float32).eps) / 2
    count = sum(PRODUCTS.get(node.op_type, 1) for node in products)
    return count * (math.sqrt(longest) * unit + DERIVED[precision])


def measured_bound(name: str, precision: str, comparisons: list[Comparison]) -> float:
    """What a precision without a derived bound is held to from now on: its own error, with a margin.

    Raises:
        ParityError: an error that no rounding explains.
    """
    errors, largest = [row.relative_error for row in comparisons], LARGEST_USUAL[precision]
    if not (np.isfinite(errors).all() and np.median(errors) <= largest):
        raise ParityError(
            f"{name}: the relative error of its outputs is {np.median(errors):.2e} in the median and {max(errors):.2e} "
            f"at worst; rounding to {precision} explains a median of {largest} at most; choose a higher precision"
        )
    return MARGIN * max(errors)
