"""Hostile parts of a compressed layer: tensor trains (T) and sparse residuals (S)."""

from __future__ import annotations

import math

import torch

from hostile.case import MEBIBYTE, Case, Place, saten_edge
from hostile.folders import (
    BIG,
    LAYER,
    TABLE,
    config,
    entries,
    export,
    put,
    refused,
    replaced,
    spec,
    table_spec,
    weights,
)

__all__ = ["CASES"]


def _reconstruction_bomb(place: Place) -> None:
    """A vocabulary of 2^24 words of 4096 values, all of them in a train of rank one."""
    config(
        lambda data: (
            entries(vocab_size=1 << 24, hidden_size=4096)(data),
            data["quantization_config"].update(layers={TABLE: data["quantization_config"]["layers"][TABLE]}),
            table_spec(shape=[1 << 24, 4096], cores=[[1, 4096, 1], [1, 4096, 1], [1, 4096, 1]], inputs=2)(data),
        )
    )(place)


CORES = f"{LAYER}.cores"
TRAINS = [
    refused(
        "T1",
        "ranks that do not chain",
        config(spec(cores=[[1, 64, 4], [5, 128, 1]], inputs=1)),
        rf"layer '{LAYER}': core 1: left rank 5, but the core before it ends in 4",
    ),
    refused(
        "T1",
        "a last rank of two",
        config(spec(cores=[[1, 64, 4], [4, 128, 2]], inputs=1)),
        rf"layer '{LAYER}': core 1: the last right rank is 2",
    ),
    refused(
        "T1",
        "a first rank of two",
        config(spec(cores=[[2, 64, 4], [4, 128, 1]], inputs=1)),
        rf"layer '{LAYER}': core 0: left rank 2",
    ),
    refused("T1", "a core of two axes", config(spec(cores=[[1, 64], [4, 128, 1]], inputs=1)), rf"layer '{LAYER}'"),
    refused("T1", "no cores", config(spec(cores=[])), rf"layer '{LAYER}': .*input cores"),
    refused(
        "T1",
        "a core of another shape in the file",
        weights(replaced(f"{CORES}.1", lambda core: core[:, :-1])),
        "saten: cannot be loaded",
    ),
    refused(
        "T1",
        "a core of whole numbers",
        weights(replaced(f"{CORES}.1", lambda core: torch.ones(core.shape, dtype=torch.int64))),
        rf"{CORES}\.1 is of type torch\.int64",
    ),
    refused(
        "T2", "another matrix", config(spec(shape=[64, 127])), rf"layer '{LAYER}' is described as linear \(64, 127\)"
    ),
    refused(
        "T2",
        "dims of another product",
        config(spec(cores=[[1, 63, 4], [4, 128, 1]], inputs=1)),
        rf"layer '{LAYER}': cores over \(63, 128\)",
    ),
    refused(
        "T2",
        "inputs and outputs changed over",
        config(spec(cores=[[1, 128, 4], [4, 64, 1]], inputs=1)),
        rf"layer '{LAYER}': cores over \(128, 64\)",
    ),
    refused(
        "T3",
        "a matrix of 2^80 values",
        config(spec(shape=[1 << 40, 1 << 40])),
        rf"layer '{LAYER}' is described as linear",
    ),
    refused(
        "T3",
        "a table of terabytes from small cores",
        _reconstruction_bomb,
        rf"layer '{TABLE}' describes a matrix \(16777216, 4096\), more than 16 GiB",
    ),
    refused(
        "T4",
        "a product of cores larger than the matrix",
        config(spec(cores=[[1, 64, 1], [1, 1, 4000], [4000, 128, 1]], inputs=2)),
        rf"layer '{LAYER}' holds more values than 4|layer '{LAYER}' multiplies its cores",
    ),
    refused(
        "T4",
        "a middle tensor larger than all cores",
        config(spec(cores=[[1, 64, 1], [1, 1, 5000], [5000, 1, 1], [1, 128, 1]], inputs=2)),
        rf"layer '{LAYER}' multiplies its cores through 640000 values",
    ),
    refused(
        "T5",
        "a rank no SVD gives, beyond the cap",
        config(spec(cores=[[1, 64, 10**6], [10**6, 128, 1]], inputs=1)),
        rf"layer '{LAYER}' holds more values than 4 dense ones would",
    ),
    refused("T5", "a rank of 2^62", config(spec(cores=[[1, 64, BIG], [BIG, 128, 1]], inputs=1)), rf"layer '{LAYER}'"),
    *(
        refused(
            "T6",
            f"{label} in a core",
            weights(put(f"{CORES}.0", 3, value)),
            rf"{LAYER}\.cores\.0 holds 1 values that are NaN or infinite, the first at 3",
        )
        for label, value in {"NaN": math.nan, "infinity": math.inf}.items()
    ),
    refused(
        "T6",
        "NaN in what stays dense",
        weights(put("encoder.layer.0.output.LayerNorm.weight", 0, math.nan), "bert"),
        r"LayerNorm\.weight: holds values that are NaN",
        run=lambda place: saten_edge("compress", place.folder / "bert", "-o", place.out, "--quiet"),
    ),
    refused(
        "T6",
        "NaN in a dense matrix",
        weights(put(f"{LAYER}.weight", 5, math.nan), "bert"),
        rf"{LAYER}\.weight: .*NaN",
        run=lambda place: saten_edge("compress", place.folder / "bert", "-o", place.out, "--quiet"),
    ),
    refused(
        "T7",
        "a rank of zero",
        config(spec(cores=[[1, 64, 0], [0, 8, 0], [0, 16, 1]], inputs=1)),
        rf"layer '{LAYER}': core 0: shape \(1, 64, 0\) holds no value",
    ),
    refused(
        "T7",
        "a dim of zero",
        config(spec(cores=[[1, 0, 4], [4, 128, 1]], inputs=1)),
        rf"layer '{LAYER}': core 0: shape \(1, 0, 4\)",
    ),
    refused(
        "T7", "a single core", config(spec(cores=[[1, 8192, 1]], inputs=0)), rf"layer '{LAYER}': 0 input cores of 1"
    ),
    refused(
        "T7",
        "ten thousand cores",
        config(spec(cores=[[1, 1, 1]] * 10_000, inputs=1)),
        rf"layer '{LAYER}': 1 input cores of 10000",
    ),
    refused(
        "T7",
        "a negative dim",
        config(spec(cores=[[1, -64, 4], [4, -128, 1]], inputs=1)),
        rf"layer '{LAYER}' is not described",
    ),
]


INDICES, STEPS, LENGTHS = (f"{LAYER}.residual.{name}" for name in ("indices", "steps", "lengths"))
ROWS = f"{TABLE}.residual.indices"
NAMES_ENTRIES = rf"{LAYER}\.residual: its indices do not name one entry of a matrix 64 × 128"
SPARSE = [
    *(
        refused("S1", f"a column of {value}", weights(put(INDICES, 0, value)), NAMES_ENTRIES)
        for value in (-1, 64, 10**6, -(2**31), 2**31 - 1)
    ),
    refused(
        "S1", "a column that wraps int32 when multiplied", weights(put(INDICES, 0, 2**31 // 128 + 1)), NAMES_ENTRIES
    ),
    refused("S2", "row lengths that do not add up", weights(put(LENGTHS, 1, 60000), "unstructured"), NAMES_ENTRIES),
    refused(
        "S2", "row lengths of nothing", weights(lambda tensors: tensors[LENGTHS].zero_(), "unstructured"), NAMES_ENTRIES
    ),
    refused(
        "S2",
        "a row that runs over its end",
        weights(lambda tensors: tensors[STEPS].fill_(255), "unstructured"),
        NAMES_ENTRIES,
    ),
    refused(
        "S2",
        "lengths that are a matrix",
        config(spec(indices={"lengths": ["uint16", [64, 2]], "steps": ["uint8", [1]]}), "unstructured"),
        "unstructured: cannot be loaded|do not name",
    ),
    refused(
        "S3",
        "an entry twice",
        weights(lambda tensors: tensors[INDICES].view(-1)[1].copy_(tensors[INDICES].view(-1)[0])),
        NAMES_ENTRIES,
    ),
    refused(
        "S3",
        "an entry of a table twice",
        weights(
            lambda tensors: tensors[ROWS].view(torch.int16)[0, 1].copy_(tensors[ROWS].view(torch.int16)[0, 0]),
            "unstructured",
        ),
        rf"{TABLE}\.residual: its indices do not name",
    ),
    refused("S4", "a trillion values", config(spec(values=[10**12])), rf"layer '{LAYER}' holds more values than 4"),
    refused("S4", "2^62 values", config(spec(values=[BIG, BIG])), rf"layer '{LAYER}'"),
    refused(
        "S4",
        "fewer values than indices",
        weights(replaced(f"{LAYER}.residual.values", lambda values: values[..., :-1])),
        "saten: cannot be loaded",
    ),
    refused("S4", "values of NaN", weights(put(f"{LAYER}.residual.values", 0, math.nan)), "1 values"),
    refused(
        "S5",
        "three kept of two",
        config(spec(pattern="3:2")),
        rf"layer '{LAYER}': --pattern 3:2: expected N:M with 1 ≤ N ≤ M",
    ),
    refused("S5", "a pattern of another kind", config(spec(pattern="2:4")), NAMES_ENTRIES),
    refused("S5", "no such pattern", config(spec(pattern="blocky")), "no residual pattern 'blocky'"),
    refused("S5", "blocks of nothing", config(spec(group=0)), rf"layer '{LAYER}' is not described"),
    refused("S5", "blocks of another size", config(spec(group=7)), rf"{LAYER}"),
    refused("S5", "a type that is a function", config(spec(indices={"indices": ["load", [1]]})), LAYER),
    *(
        Case("S6", f"{label}, which must work", weights(change), export, None, "", code=0, most_bytes=512 * MEBIBYTE)
        for label, change in {
            "an all-zero residual": lambda tensors: tensors[f"{LAYER}.residual.values"].zero_(),
            "an all-zero layer": lambda tensors: [
                tensors[name].zero_()
                for name in tensors
                if name.startswith(LAYER) and tensors[name].is_floating_point()
            ],
        }.items()
    ),
    refused(
        "S7",
        "train and residual of different shape",
        config(spec(cores=[[1, 64, 4], [4, 64, 1]], inputs=1)),
        rf"layer '{LAYER}': cores over \(64, 64\)",
    ),
    refused(
        "S7",
        "neither train nor residual",
        config(spec(cores=[[1, 64, 0], [0, 128, 1]], inputs=1, pattern="none", values=[0], indices={})),
        "saten: cannot be loaded",
    ),
]

CASES = [*TRAINS, *SPARSE]
