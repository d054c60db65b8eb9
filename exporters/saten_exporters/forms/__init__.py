"""Every form a part of a layer can be written in, in one table, and the lowerings that choose among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import prod

from saten_exporters.exportable import LayerParts
from saten_exporters.forms.csr import csr_linear
from saten_exporters.forms.dense import dense_embedding, dense_linear
from saten_exporters.forms.form import EPILOGUES, Form, Weights, Work, followed_by, sum_of
from saten_exporters.forms.grouped import grouped_linear
from saten_exporters.forms.head import dense_head, head_of
from saten_exporters.forms.low_rank import low_rank_embedding, low_rank_linear
from saten_exporters.forms.nofm import nofm_linear, nofm_linear_int4
from saten_exporters.forms.rows import rows_embedding, sparse_embedding
from saten_exporters.forms.storage import OFFSETS, STORAGES, Storage
from saten_exporters.forms.tt_chain import tt_linear
from saten_runtime.errors import ExportError

__all__ = [
    "DENSE_FORMS",
    "EPILOGUES",
    "LOWERINGS",
    "OFFSETS",
    "RESIDUAL_FORMS",
    "STORAGES",
    "TRAIN_FORMS",
    "Form",
    "Lowering",
    "Storage",
    "Weights",
    "Work",
    "followed_by",
    "form_of",
    "head_of",
]

# (kind, precision) → form of the tensor train, folded to factors
TRAIN_FORMS = {
    (form.kind, form.precision): form
    for make in (low_rank_linear, low_rank_embedding)
    for form in map(make, STORAGES.values())
}

# (kind, precision) → form of a whole matrix
DENSE_FORMS = {
    (form.kind, form.precision): form
    for make in (dense_linear, dense_embedding, dense_head)
    for form in map(make, STORAGES.values())
} | {("linear", OFFSETS.precision.name): dense_linear(OFFSETS)}


def _with_8_bits_at_least(make: Callable[[Storage], Form]) -> dict[str, Form]:
    """A form of single entries by precision: blocks of values would save little and cost their scales."""
    made = {name: make(STORAGES[name]) for name in ("fp32", "fp16", "int8")}
    return made | dict.fromkeys((name for name, storage in STORAGES.items() if storage.precision.block), made["int8"])


_BELOW_8_BITS = [name for name, storage in STORAGES.items() if storage.precision.bits < 8]
# (layout, kind, precision) → form of the residual
RESIDUAL_FORMS = {
    **{("grouped", "linear", name): grouped_linear(storage) for name, storage in STORAGES.items()},
    **{("csr", "linear", name): form for name, form in _with_8_bits_at_least(csr_linear).items()},
    **{("n:m", "linear", name): form for name, form in _with_8_bits_at_least(nofm_linear).items()},
    **dict.fromkeys((("n:m", "linear", name) for name in _BELOW_8_BITS), nofm_linear_int4()),
    **{("rows", "embedding", name): rows_embedding(storage) for name, storage in STORAGES.items()},
    **{("ell", "embedding", name): sparse_embedding(storage) for name, storage in STORAGES.items()},
}


@dataclass(frozen=True)
class Lowering:
    """A way to write a whole layer. refusal: why it cannot write a layer, or nothing; form: what it writes."""

    name: str
    refusal: Callable[[LayerParts], str]
    form: Callable[[LayerParts, str], Form]


def form_of(parts: LayerParts, precision: str) -> Form:
    """The layer as factors and residual: the sum of both, or the one that it has.

    Raises:
        ExportError: the layer has neither.
    """
    train = [TRAIN_FORMS[parts.kind, precision]] if parts.a.shape[1] else []
    return _whole(parts, precision, train)


def _chained(parts: LayerParts, precision: str) -> Form:
    first, last = parts.cores
    return _whole(parts, precision, [tt_linear(len(first), len(last), precision)])


def _whole(parts: LayerParts, precision: str, train: list[Form]) -> Form:
    residual = [RESIDUAL_FORMS[parts.layout, parts.kind, precision]] if parts.values.size else []
    if not train and not residual:
        raise ExportError(
            f"{parts.name}: has neither a tensor train nor a residual, so its output would always be 0; "
            "compress the model again with a larger budget"
        )
    return reduce(sum_of, (*train, *residual))


def _no_chain(parts: LayerParts) -> str:
    if parts.kind != "linear":
        return "it is a table, whose rows are looked up"
    if not parts.a.shape[1]:
        return "it has no tensor train"
    if sum(map(len, parts.cores)) < 3:
        return "its train has no more cores than factors"
    if tuple(prod(core.shape[1] for core in side) for side in parts.cores) != tuple(parts.shape):
        return "the dims of its train are padded"
    return ""


# The ways to write a layer, in the order in which they are preferred where they are predicted to take equally long.
LOWERINGS = {
    lowering.name: lowering
    for lowering in (
        Lowering("low-rank", lambda parts: "" if parts.a.shape[1] else "it has no tensor train", form_of),
        Lowering("residual", lambda parts: "it has a tensor train" if parts.a.shape[1] else "", form_of),
        Lowering("tt-chain", _no_chain, _chained),
        Lowering("dense", lambda parts: "", lambda parts, precision: DENSE_FORMS[parts.kind, precision]),
    )
}
