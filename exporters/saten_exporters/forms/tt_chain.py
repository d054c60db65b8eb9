"""The tensor train core by core: the smallest file where inner ranks are cut, and never an Einsum.

A core G (r, n, r') is one product: over the inputs by (n · r, r'), where x is read with its digits reversed, so that
the next digit always stands beside the rank; over the outputs by (r, n · r'), whose digits come out in order.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from math import prod

import numpy as np
from numpy.typing import NDArray

from saten_exporters.exportable import LayerParts
from saten_exporters.forms.form import Form, Weights, Work, product
from saten_exporters.forms.storage import INT64_BYTES, STORAGES

__all__ = ["tt_linear"]

Matrix = NDArray[np.float32]


@cache
def tt_linear(inputs: int, outputs: int, precision: str) -> Form:
    """X (…, in) → (… (x G1) … ) Gd, with `inputs` cores over in and `outputs` over out."""
    storage = STORAGES[precision]
    names = [f"g{k}" for k in range(1, inputs + outputs + 1)]
    stored = [storage.names(name, f"{name}_scale") for name in names]
    reversed_digits = ", ".join(map(str, (0, *range(inputs, 0, -1))))
    body = f"""
        split = Reshape (x, digits)
        y0 = Transpose <perm = [{reversed_digits}]> (split)"""
    for k, own in enumerate(stored):
        body += f"""
        x{k} = Reshape (y{k}, {names[k]}_rows)"""
        body += storage.multiply(f"x{k}", f"y{k + 1}", *own)
    body += f"""
        lead = Shape <start = 0, end = -1> (x)
        width = Constant <value_ints = [-1]> ()
        shape = Concat <axis = 0> (lead, width)
        y = Reshape (y{len(names)}, shape)"""

    def pack(parts: LayerParts) -> Weights:
        weights: dict[str, NDArray[np.generic]] = {"digits": np.array([-1, *_dims(parts)[0]], np.int64)}
        for name, own, matrix in zip(names, stored, _matrices(parts), strict=True):
            weights[f"{name}_rows"] = np.array([-1, len(matrix)], np.int64)
            weights.update(zip(own, storage.pack_product(matrix), strict=True))
        return weights

    def stored_bytes(parts: LayerParts) -> int:
        digits = 1 + len(_dims(parts)[0])
        cores = sum(storage.product_bytes(matrix.shape) for matrix in _matrices(parts))
        return cores + (digits + 2 * len(names)) * INT64_BYTES

    def sizes(parts: LayerParts, floats: bool) -> dict[str, int]:
        return storage.sizes({name: m.shape for name, m in zip(names, _matrices(parts), strict=True)}, floats)

    return Form(
        f"TT{inputs}x{outputs}",
        "linear",
        precision,
        ("digits", *chain.from_iterable((f"{name}_rows", *own) for name, own in zip(names, stored, strict=True))),
        body,
        pack,
        stored_bytes,
        _work,
        attributes=storage.attributes(*names),
        sizes=sizes,
    )


def _dims(parts: LayerParts) -> tuple[list[int], list[int]]:
    """N of the cores over in, and of those over out."""
    first, last = ([core.shape[1] for core in side] for side in parts.cores)
    return first, last


def _matrices(parts: LayerParts) -> list[Matrix]:
    """Each core as the matrix that it multiplies by."""
    first, last = parts.cores
    return [
        *(core.transpose(1, 0, 2).reshape(-1, core.shape[2]) for core in first),
        *(core.reshape(core.shape[0], -1) for core in last),
    ]


def _work(parts: LayerParts) -> tuple[Work, ...]:
    first, last = _dims(parts)
    times = [*(prod(first[k + 1 :]) for k in range(len(first))), *(prod(last[:k]) for k in range(len(last)))]
    products = (product(matrix.shape, times=count) for matrix, count in zip(_matrices(parts), times, strict=True))
    return Work("transpose", moved=2 * parts.shape[0]), *products
