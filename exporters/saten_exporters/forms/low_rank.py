"""The tensor train with its cores folded to two factors: y = (x A) B."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saten_exporters.exportable import LayerParts
from saten_exporters.forms.form import NATIVE, Form, Weights, Work, product
from saten_exporters.forms.storage import Storage

__all__ = ["low_rank_embedding", "low_rank_linear"]

Array = NDArray[np.float32]


def low_rank_linear(storage: Storage) -> Form:
    """X (…, in) → (x A) B."""
    a, b = storage.names("a", "a_scale"), storage.names("b", "b_scale")

    def pack(parts: LayerParts) -> Weights:
        packed = (*storage.pack_product(parts.a), *storage.pack_product(parts.b))
        return dict(zip((*a, *b), packed, strict=True))

    def work(parts: LayerParts, family: str = "product") -> tuple[Work, ...]:
        return product(parts.a.shape, family=family), product(parts.b.shape, family=family)

    def sizes(parts: LayerParts, floats: bool) -> dict[str, int]:
        return storage.sizes({"a": parts.a.shape, "b": parts.b.shape}, floats)

    return Form(
        "LowRank",
        "linear",
        storage.precision.name,
        (*a, *b),
        storage.multiply("x", "inner", *a) + storage.multiply("inner", "y", *b),
        pack,
        lambda parts: storage.product_bytes(parts.a.shape) + storage.product_bytes(parts.b.shape),
        work,
        native=(lambda parts: work(parts, "native-product")) if storage.precision.name in NATIVE else None,
        attributes=storage.attributes("a", "b"),
        sizes=sizes,
    )


def low_rank_embedding(storage: Storage) -> Form:
    """Ids (…) → A[ids] B."""
    a, b = storage.names("a", "a_scale"), storage.names("b", "b_scale")

    def factors(parts: LayerParts) -> tuple[Array, Array]:
        return storage.widened(parts.a), storage.widened(parts.b.T).T

    def pack(parts: LayerParts) -> Weights:
        left, right = factors(parts)
        return dict(zip((*a, *b), (*storage.pack_table(left), *storage.pack_product(right)), strict=True))

    def stored_bytes(parts: LayerParts) -> int:
        rank, width = parts.b.shape
        return storage.table_bytes(parts.a.shape) + storage.product_bytes((storage.wide(rank), width))

    def work(parts: LayerParts) -> tuple[Work, ...]:
        return Work("lookup", moved=parts.a.shape[1]), product(parts.b.shape)

    def sizes(parts: LayerParts, floats: bool) -> dict[str, int]:
        return storage.sizes({"b": factors(parts)[1].shape}, floats)

    return Form(
        "LowRank",
        "embedding",
        storage.precision.name,
        (*a, *b),
        storage.look_up("x", "inner", *a) + storage.multiply("inner", "y", *b),
        pack,
        stored_bytes,
        work,
        native=work if storage.precision.name in NATIVE else None,
        attributes=storage.attributes("b"),
        sizes=sizes,
    )
