"""The cost model: what it adds up, what it picks, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saten_exporters import PRECISIONS, TARGETS, LayerParts
from saten_exporters.choice.cost import choose, predicted_us
from saten_exporters.choice.lowerings import lowerings_of
from saten_exporters.choice.prices import Rates, shipped_prices
from saten_exporters.choice.settings import ExportSettings
from saten_exporters.forms import DENSE_FORMS, LOWERINGS, RESIDUAL_FORMS, TRAIN_FORMS, Work
from saten_exporters.forms.form import NATIVE, product
from saten_runtime.errors import ExportError, UsageError

MakeParts = Callable[..., LayerParts]
KERNELS = "x86-64+kernels"
HIDDEN, WIDE = 768, 3072


def layer(layout: str = "none", *, rank: int = 48, group: int = 32, density: float = 0.1) -> LayerParts:
    """A layer of BERT's size, all zeros: only its sizes count here."""
    kept = int(density * HIDDEN)
    shapes = {"none": (0,), "grouped": (WIDE // group, group, kept), "csr": (WIDE * kept,)}
    indices = {
        "none": {},
        "grouped": {"indices": np.tile(np.arange(kept, dtype=np.int32), (WIDE // group, 1))},
        "csr": {
            "indptr": np.arange(WIDE + 1, dtype=np.int32) * kept,
            "indices": np.tile(np.arange(kept, dtype=np.uint16), WIDE),
        },
    }
    return LayerParts(
        name="layer",
        kind="linear",
        shape=(HIDDEN, WIDE),
        ranks=[16, rank, 16],
        a=np.zeros((HIDDEN, rank), np.float32),
        b=np.zeros((rank, WIDE), np.float32),
        layout=layout,
        values=np.zeros(shapes[layout], np.float32),
        indices=indices[layout],
        cores=(
            (np.zeros((1, 24, 16), np.float32), np.zeros((16, 32, rank), np.float32)),
            (np.zeros((rank, 64, 16), np.float32), np.zeros((16, 48, 1), np.float32)),
        ),
    )


# --- what is added up -------------------------------------------------------------------------------------------------


def test_a_step_is_the_sum_of_its_prices() -> None:
    rates = Rates(call=1000, weight=2, mac=0.5, move=3)
    assert rates.time_ns(Work("any", macs=10, weights=100, moved=4), rows=7) == 1000 + 2 * 100 + 7 * (0.5 * 10 + 3 * 4)
    assert product((3, 5), times=2) == Work("product", macs=30, weights=15, moved=16)


def test_the_work_of_a_chain() -> None:
    """By hand: 24 · 32 inputs and 64 · 48 outputs with ranks 16, 48, 16."""
    form = LOWERINGS["tt-chain"].form(layer(), "fp32")
    products = [step for _, step in form.steps(layer()) if step.family == "product"]
    assert [step.macs for step in products] == [32 * 24 * 16, 32 * 16 * 48, 48 * 64 * 16, 64 * 16 * 48]
    assert [step.weights for step in products] == [24 * 16, 32 * 16 * 48, 48 * 64 * 16, 16 * 48]
    assert form.macs(layer()) == sum(step.macs for step in products)


def test_a_whole_layer_is_its_parts_and_a_sum() -> None:
    parts = layer("grouped")
    steps = LOWERINGS["low-rank"].form(parts, "int8").steps(parts)
    assert [(precision, step.family) for precision, step in steps] == [
        *[("int8", "product")] * 2,
        ("int8", "blocks-32"),
        ("int8", "add"),
    ]
    assert sum(step.macs for _, step in steps) == 48 * (HIDDEN + WIDE) + parts.values.size


def test_parts_are_priced_at_their_own_precision() -> None:
    """The entries of a residual in compressed rows stay 8-bit codes where the factors have 4 bits."""
    parts = layer("csr")
    steps = LOWERINGS["low-rank"].form(parts, "int4").steps(parts)
    assert [precision for precision, _ in steps] == ["int4", "int4", "int8", "int4"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_form_has_a_price_on_every_target(target: str, precision: str, make_parts: MakeParts) -> None:
    tables = (TRAIN_FORMS, DENSE_FORMS, RESIDUAL_FORMS)
    for form in {
        form.op_type: form for table in tables for form in table.values() if form.precision == precision
    }.values():
        layout = next((row[0] for row, other in RESIDUAL_FORMS.items() if other.op_type == form.op_type), None)
        parts = make_parts(form.kind, layout)
        few, many = (predicted_us(form, parts, rows, target) for rows in (1, 1000))
        assert 0 < few < many


def test_blocks_between_two_measured_sizes_take_the_smaller() -> None:
    rates_of = shipped_prices("x86-64").rates_of
    assert rates_of("blocks-48", "fp32") == rates_of("blocks-32", "fp32")
    assert rates_of("blocks-2", "fp32") == rates_of("blocks-4", "fp32")
    assert rates_of("blocks-4", "fp32") != rates_of("blocks-32", "fp32")


def test_an_unknown_family_is_a_defect() -> None:
    with pytest.raises(KeyError):
        shipped_prices("x86-64").rates_of("magic", "fp32")


# --- what the measured prices say ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", NATIVE)
@pytest.mark.parametrize("group", [4, 8, 16])
def test_kernels_make_narrow_blocks_cheap(group: int, precision: str) -> None:
    parts = layer("grouped", group=group)
    form = RESIDUAL_FORMS["grouped", "linear", precision]
    assert predicted_us(form, parts, 128, KERNELS) < 0.7 * predicted_us(form, parts, 128, "x86-64")


def test_kernels_multiply_single_entries_without_rebuilding() -> None:
    parts, form = layer("csr"), RESIDUAL_FORMS["csr", "linear", "fp32"]
    assert predicted_us(form, parts, 128, KERNELS) < 0.5 * predicted_us(form, parts, 128, "x86-64")


def test_factors_are_cheaper_than_the_matrix_they_replace() -> None:
    for rows in (1, 128):
        train, dense = (table["linear", "fp32"] for table in (TRAIN_FORMS, DENSE_FORMS))
        assert predicted_us(train, layer(), rows, "x86-64") < 0.5 * predicted_us(dense, layer(), rows, "x86-64")


# --- what is picked --------------------------------------------------------------------------------------------------


def test_the_cheapest_of_all_that_apply() -> None:
    for rows in (1, 128):
        chosen, others = choose(layer(), ExportSettings(rows=rows), None)
        assert {chosen.lowering, *(each.lowering for each in others)} == {"low-rank", "tt-chain", "dense"}
        assert chosen.predicted_us == min(each.predicted_us for each in (chosen, *others))


@pytest.mark.parametrize(("density", "lowering"), [(0.1, "low-rank"), (0.4, "dense")])
def test_dense_only_where_it_takes_no_more_bytes(density: float, lowering: str) -> None:
    """The body of compressed rows multiplies the whole matrix, so dense is faster; an entry takes 3 bytes, not 1."""
    parts = layer("csr", density=density)
    chosen, others = choose(parts, ExportSettings("int8"), None)
    assert chosen.lowering == lowering
    dense = next(each for each in (chosen, *others) if each.lowering == "dense")
    assert dense.predicted_us == min(each.predicted_us for each in (chosen, *others))


def test_at_equal_bytes_the_slower_matrix_is_not_taken() -> None:
    parts = dataclasses.replace(layer(rank=700), cores=((), ()))
    for rows in (1, 128):
        chosen, others = choose(parts, ExportSettings(rows=rows), None)
        assert chosen.predicted_us == min(each.predicted_us for each in (chosen, *others))


def test_what_is_asked_for_is_taken() -> None:
    for name in ("low-rank", "tt-chain", "dense"):
        chosen, others = choose(layer(), ExportSettings(), name)
        assert chosen.lowering == name
        assert name not in {each.lowering for each in others}


def test_what_does_not_apply_is_refused_by_name() -> None:
    with pytest.raises(ExportError) as caught:
        choose(layer(), ExportSettings(), "residual")
    assert str(caught.value) == (
        "layer: --lowering residual does not apply, it has a tensor train; "
        "this layer can be written as low-rank, tt-chain, dense"
    )


# --- what was chosen --------------------------------------------------------------------------------------------------

TABLE = dataclasses.replace(layer(), kind="embedding")
LAYERS = {"encoder.0.query": layer(), "encoder.0.key": layer(), "embeddings.word": TABLE}


def test_one_name_is_for_every_layer_that_it_can_write() -> None:
    assert lowerings_of("dense", LAYERS) == dict.fromkeys(LAYERS, "dense")
    assert lowerings_of("tt-chain", LAYERS) == dict.fromkeys(["encoder.0.query", "encoder.0.key"], "tt-chain")
    assert lowerings_of(None, LAYERS) == {}


def test_a_name_that_applies_nowhere() -> None:
    with pytest.raises(UsageError, match=r"tt-chain: applies to no layer; to embeddings\.word not, for it is a table"):
        lowerings_of("tt-chain", {"embeddings.word": TABLE})


def test_the_first_pattern_that_fits_counts(tmp_path: Path) -> None:
    file = tmp_path / "lowering.json"
    file.write_text(json.dumps({"*.query": "dense", "encoder.*": "tt-chain"}))
    assert lowerings_of(file, LAYERS) == {"encoder.0.query": "dense", "encoder.0.key": "tt-chain"}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"*": "einsum"}, "'*' asks for 'einsum'; there are low-rank, residual, tt-chain, dense"),
        ({"decoder.*": "dense"}, "'decoder.*' fits no layer; the first is called encoder.0.query"),
        ({"*": 7}, "asks for '7'"),
    ],
)
def test_a_file_that_does_not_fit(rules: dict[str, object], words: str, tmp_path: Path) -> None:
    file = tmp_path / "lowering.json"
    file.write_text(json.dumps(rules))
    with pytest.raises(UsageError) as caught:
        lowerings_of(file, LAYERS)
    assert words in str(caught.value)


def test_neither_a_name_nor_a_file() -> None:
    with pytest.raises(UsageError, match=r"--lowering einsum: there are low-rank, .* or a JSON file of patterns"):
        lowerings_of("einsum", LAYERS)


def test_a_layer_gets_at_least_one_row() -> None:
    with pytest.raises(UsageError, match="--rows 0: a layer gets at least 1 row"):
        ExportSettings(rows=0)
