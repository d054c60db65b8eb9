"""A lookup table used again as the output layer: y = (x Bᵀ) Aᵀ + x Sᵀ.

A head owns no weights: its function takes those of the table, as the table's form packed them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import reduce

from saten_exporters.exportable import LayerParts
from saten_exporters.forms.dense import dense_embedding
from saten_exporters.forms.form import NATIVE, Form, Work, product, sum_of
from saten_exporters.forms.low_rank import low_rank_embedding
from saten_exporters.forms.rows import rows_embedding, sparse_embedding
from saten_exporters.forms.storage import STORAGES, Storage
from saten_runtime.errors import ExportError

__all__ = ["HEAD_FORMS", "dense_head", "head_of"]


def low_rank_head(storage: Storage) -> Form:
    """X (…, width) → (x Bᵀ) Aᵀ."""
    a, b = storage.names("a", "a_scale"), storage.names("b", "b_scale")

    def work(parts: LayerParts, family: str = "product") -> tuple[Work, ...]:
        return product(parts.b.shape[::-1], family=family), product(parts.a.shape[::-1], family=family)

    def sizes(parts: LayerParts, floats: bool) -> dict[str, int]:
        inner = storage.whole_blocks(parts.a.shape[1])
        return storage.sizes({"a": (inner, len(parts.a))}, floats, table=True)

    return dataclasses.replace(
        low_rank_embedding(storage),
        kind="head",
        body=storage.multiply_turned("x", "inner", *b) + storage.multiply_table("inner", "y", *a),
        work=work,
        native=(lambda parts: work(parts, "native-product")) if storage.precision.name in NATIVE else None,
        attributes=storage.attributes("a"),
        sizes=sizes,
    )


def rows_head(storage: Storage) -> Form:
    """X (…, width) → x Sᵀ; a row of the table without a residual finds the stored row of zeros."""
    table = rows_embedding(storage)
    stored = storage.table_names("rows")

    def shape(parts: LayerParts) -> tuple[int, int]:
        return parts.shape[1], len(parts.values) + 1

    return dataclasses.replace(
        table,
        kind="head",
        body=storage.multiply_table("x", "by_row", *stored[:2])
        + """
        slot = Cast <to = 7> (slots)
        y = Gather <axis = -1> (by_row, slot)""",
        work=lambda parts: (product(shape(parts)), Work("lookup", moved=2 * parts.shape[0])),
        attributes=storage.attributes(stored[0]),
        sizes=lambda parts, floats: storage.sizes({stored[0]: shape(parts)}, floats, table=True),
    )


def sparse_head(storage: Storage) -> Form:
    """X (…, width) → x Sᵀ: step k adds, to all rows at once, the input that each row's k-th entry multiplies.

    A step sees one column of indices and entries, so nothing larger than the output is made, and no index is
    widened but those at hand.
    """
    stored = storage.names("codes", "scale", plain="entries")
    decode, numbers, result = _ENTRIES.get(storage.precision.name, (storage.table_numbers, "numbers", _PLAIN_SUMS))

    def work(parts: LayerParts) -> tuple[Work, ...]:
        rows, kept = parts.values.shape
        return (Work("entries", macs=rows * kept, weights=rows * kept, moved=3 * rows * kept, calls=kept),)

    def native(parts: LayerParts) -> tuple[Work, ...]:
        values = parts.values.size
        return (Work("native-blocks-1", values, values, sum(parts.shape)),)

    return dataclasses.replace(
        sparse_embedding(storage),
        kind="head",
        body=decode.format(y="numbers", w=stored[0], s=stored[-1])
        + f"""
        lines = Flatten <axis = -1> (x)
        inputs = Transpose <perm = [1, 0]> (lines)
        rows = Shape <start = 0, end = 1> (columns)
        count = Shape <start = 0, end = 1> (lines)
        sums_shape = Concat <axis = 0> (rows, count)
        nothing = ConstantOfShape <value = float[1] {{0}}> (sums_shape)
        sums = Scan <num_scan_inputs = 2, scan_input_axes = [1, 1], body = step (before, column, entry) => (after) {{
            where = Cast <to = 7> (column)
            picked = Gather <axis = 0> (inputs, where)
            number = Cast <to = 1> (entry)
            axis = Constant <value_ints = [1]> ()
            factor = Unsqueeze (number, axis)
            product = Mul (picked, factor)
            after = Add (before, product)
        }}> (nothing, columns, {numbers or stored[0]})"""
        + result
        + """
        lead = Shape <start = 0, end = -1> (x)
        rest = Constant <value_ints = [-1]> ()
        shape = Concat <axis = 0> (lead, rest)
        y = Reshape (flat, shape)""",
        work=work,
        native=native if storage.precision.name in NATIVE else None,
    )


def dense_head(storage: Storage) -> Form:
    """X (…, width) → x Mᵀ."""
    table = dense_embedding(storage)
    stored = table.inputs

    def shape(parts: LayerParts) -> tuple[int, int]:
        return parts.shape[1], parts.shape[0]

    return dataclasses.replace(
        table,
        kind="head",
        body=storage.multiply_table("x", "y", *stored[:2]),
        work=lambda parts: (product(shape(parts)),),
        attributes=storage.attributes(stored[0]),
        sizes=lambda parts, floats: storage.sizes({stored[0]: shape(parts)}, floats, table=True),
    )


_PLAIN_SUMS = """
        flat = Transpose <perm = [1, 0]> (sums)"""

# precision → (text that decodes the entries, the name they then have, text that ends the sums); codes in blocks are
# decoded first, others on the way
_ENTRIES = {
    "fp32": ("", "", _PLAIN_SUMS),
    "fp16": ("", "", _PLAIN_SUMS),
    "int8": (
        "",
        "",
        """
        scaled = Mul (sums, scale)
        flat = Transpose <perm = [1, 0]> (scaled)""",
    ),
}

_MAKERS: tuple[tuple[Callable[[Storage], Form], Callable[[Storage], Form]], ...] = (
    (low_rank_embedding, low_rank_head),
    (rows_embedding, rows_head),
    (sparse_embedding, sparse_head),
    (dense_embedding, dense_head),
)

# op type of the table's form → form of the head
HEAD_FORMS = {table(storage).op_type: head(storage) for table, head in _MAKERS for storage in STORAGES.values()}


def head_of(table: Form) -> Form:
    """The head that multiplies by the transpose of what the form `table` looks up.

    Raises:
        ExportError: there is none for that form.
    """
    parts = table.parts or (table,)
    if missing := [part.op_type for part in parts if part.op_type not in HEAD_FORMS]:
        raise ExportError(f"a tied head over {missing[0]} has no form; there are heads of {', '.join(HEAD_FORMS)}")
    return reduce(sum_of, [HEAD_FORMS[part.op_type] for part in parts])
