"""Every form a part of a layer can be written in, in one table."""

from __future__ import annotations

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

__all__ = ["DOMAIN", "DOMAIN_VERSION", "RESIDUAL_FORMS", "TRAIN_FORMS", "Form", "Weights", "form_of"]

# (kind, precision) → form of the tensor train
TRAIN_FORMS = {
    (form.kind, form.precision): form
    for form in (LOW_RANK_LINEAR, LOW_RANK_LINEAR_INT8, LOW_RANK_EMBEDDING, LOW_RANK_EMBEDDING_INT8)
}

# (pattern, kind, precision) → form of the residual
RESIDUAL_FORMS = {
    (pattern, form.kind, form.precision): form
    for pattern, forms in {
        "grouped": (GROUPED_LINEAR, GROUPED_LINEAR_INT8, ROWS_EMBEDDING, ROWS_EMBEDDING_INT8),
        "unstructured": (CSR_LINEAR, CSR_LINEAR_INT8, SPARSE_EMBEDDING, SPARSE_EMBEDDING_INT8),
    }.items()
    for form in forms
}


def form_of(parts: LayerParts, precision: str) -> Form:
    """The form of a whole layer: the train's alone where the residual kept nothing, else the sum of both."""
    train = TRAIN_FORMS[parts.kind, precision]
    if parts.values.size == 0:
        return train
    return sum_of(train, RESIDUAL_FORMS[parts.pattern, parts.kind, precision])
