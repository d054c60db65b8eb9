"""The matrix rebuilt before it is written: one product or one lookup, and no function that stands for it.

Export puts the body itself into the graph. Layers that were never compressed are stored through the same forms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saten_exporters.exportable import LayerParts
from saten_exporters.forms.form import Form, Weights, Work, product
from saten_exporters.forms.storage import Storage
from saten_runtime.bundle.manifest import DENSE

__all__ = ["dense_embedding", "dense_linear", "matrix_of"]


def dense_linear(storage: Storage) -> Form:
    """X (…, in) → x M."""
    stored = storage.names("codes", "scale", plain="weight")

    def pack(parts: LayerParts) -> Weights:
        return dict(zip(stored, storage.pack_product(matrix_of(parts)), strict=True))

    return Form(
        DENSE,
        "linear",
        storage.precision.name,
        stored,
        storage.multiply("x", "y", *stored),
        pack,
        lambda parts: storage.product_bytes(parts.shape),
        lambda parts: (product(parts.shape),),
        attributes=storage.attributes(stored[0]),
        sizes=lambda parts, floats: storage.sizes({stored[0]: parts.shape}, floats),
    )


def dense_embedding(storage: Storage) -> Form:
    """Ids (…) → M[ids]."""
    stored = storage.table_names("weight")

    def pack(parts: LayerParts) -> Weights:
        return dict(zip(stored, storage.pack_whole(matrix_of(parts)), strict=True))

    return Form(
        DENSE,
        "embedding",
        storage.precision.name,
        stored,
        storage.look_up_whole("x", "y", *stored),
        pack,
        lambda parts: storage.whole_bytes(parts.shape),
        lambda parts: (Work("lookup", moved=parts.shape[1]),),
    )


def matrix_of(parts: LayerParts) -> NDArray[np.float32]:
    """M (in, out) = A B + S, summed in float64."""
    matrix = parts.a.astype(np.float64) @ parts.b.astype(np.float64)
    if parts.values.size:
        rows, columns = POSITIONS[parts.layout](parts)
        matrix[rows, columns] += parts.values
    with np.errstate(over="ignore"):  # what is infinite then is refused where it is packed
        return matrix.astype(np.float32)


def _grouped(parts: LayerParts) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    groups, size, _ = parts.values.shape
    outputs = np.arange(groups * size).reshape(groups, size, 1)
    return parts.indices["indices"].astype(np.intp)[:, None, :], outputs


def _csr(parts: LayerParts) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    counts = np.diff(parts.indices["indptr"])
    return parts.indices["indices"].astype(np.intp), np.repeat(np.arange(len(counts)), counts)


def _nofm(parts: LayerParts) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    kept, of = map(int, parts.indices["numbers"])
    outputs, k = parts.values.shape
    bits = (of - 1).bit_length()
    stream = np.unpackbits(parts.indices["codes"], count=outputs * k * bits, bitorder="little")
    places = stream.reshape(outputs, k, bits).astype(np.intp) @ (1 << np.arange(bits))
    return places + np.arange(k) // kept * of, parts.indices["outputs"].astype(np.intp)[:, None]


def _rows(parts: LayerParts) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return parts.indices["rows"].astype(np.intp)[:, None], np.arange(parts.shape[1])[None, :]


def _ell(parts: LayerParts) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.arange(parts.shape[0])[:, None], parts.indices["indices"].astype(np.intp)


# layout → row and column in M of each value, of shapes that broadcast to that of the values
POSITIONS = {"grouped": _grouped, "csr": _csr, "n:m": _nofm, "rows": _rows, "ell": _ell}
