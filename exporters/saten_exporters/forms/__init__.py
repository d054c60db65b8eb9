"""Every form a part of a layer can be written in, in one table."""

from __future__ import annotations

from functools import reduce

from saten_exporters.forms.csr import CSR_LINEAR, CSR_LINEAR_INT8
from saten_exporters.forms.form import DOMAIN, DOMAIN_VERSION, Form, Weights, sum_of
from saten_exporters.forms.grouped import GROUPED_LINEAR, GROUPED_LINEAR_INT8
from saten_exporters.forms.low_rank import (
    LOW_RANK_EMBEDDING,
    LOW_RANK_EMBEDDING_INT8,
    LOW_RANK_LINEAR,
    LOW_RANK_LINEAR_INT8,
)
from saten_exporters.forms.rows import (
    ROWS_EMBEDDING,
    ROWS_EMBEDDING_INT8,
    SPARSE_EMBEDDING,
    SPARSE_EMBEDDING_INT8,
)
from saten_exporters.parts import LayerParts
from saten_runtime.errors import ExportError

__all__ = ["DOMAIN", "DOMAIN_VERSION", "RESIDUAL_FORMS", "TRAIN_FORMS", "Form", "Weights", "form_of"]

# (kind, precision) → form of the tensor train
TRAIN_FORMS = {
    (form.kind, form.precision): form
    for form in (LOW_RANK_LINEAR, LOW_RANK_LINEAR_INT8, LOW_RANK_EMBEDDING, LOW_RANK_EMBEDDING_INT8)
}

# (layout, kind, precision) → form of the residual
RESIDUAL_FORMS = {
    (layout, form.kind, form.precision): form
    for layout, forms in {
        "grouped": (GROUPED_LINEAR, GROUPED_LINEAR_INT8),
        "csr": (CSR_LINEAR, CSR_LINEAR_INT8),
        "rows": (ROWS_EMBEDDING, ROWS_EMBEDDING_INT8),
        "ell": (SPARSE_EMBEDDING, SPARSE_EMBEDDING_INT8),
    }.items()
    for form in forms
}


def form_of(parts: LayerParts, precision: str) -> Form:
    """The form of a whole layer: that of its train, of its residual, or of the sum of both.

    Raises:
        ExportError: the layer has neither.
    """
    present = [TRAIN_FORMS[parts.kind, precision]] if parts.a.shape[1] else []
    if parts.values.size:
        present.append(RESIDUAL_FORMS[parts.layout, parts.kind, precision])
    if not present:
        raise ExportError(
            f"{parts.name}: has neither a tensor train nor a residual, so its output would always be 0; "
            "compress the model again with a larger budget"
        )
    return reduce(sum_of, present)
