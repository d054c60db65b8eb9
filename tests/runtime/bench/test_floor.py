"""Floor and profile of the tiny bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from saten_runtime import Bundle
from saten_runtime.bench.floor import Floor, Rates, floor_of, floor_of_work, measure_rates, moved_bytes
from saten_runtime.bench.plan import Setup, Size
from saten_runtime.bench.profiling import owners, profile
from saten_runtime.bundle.graph import Node
from saten_runtime.bundle.layers import layers_of

WORK = 4096
MACS = 2 * 8 * WORK  # of the two superfluous products of `slow`, 8 × WORK and back


def rates(flops: float, moved: float) -> Rates:
    return Rates(1, {"fp32": flops, "int8": 4 * flops}, [(1, moved)])


def test_floor_is_the_larger_of_the_two(slow: Path) -> None:
    bundle, size = Bundle.open(slow), Size(2, 16)
    assert sum(layer.macs_per_row for layer in layers_of(bundle)) == MACS
    assert moved_bytes(bundle, size) == 4 * MACS
    compute, memory = (floor_of(bundle, size, one) for one in (rates(1e6, 1e12), rates(1e12, 1e6)))
    assert compute is not None
    assert memory is not None
    assert (compute.bound, memory.bound) == ("compute", "memory")
    assert compute.ms == pytest.approx(1000 * 2 * MACS * 32 / 1e6)
    assert memory.ms == pytest.approx(1000 * 4 * MACS / 1e6)
    many = floor_of(bundle, Size(1, 5, "generate"), rates(1e6, 1e12))
    assert many is not None
    assert many.ms == pytest.approx(1000 * 2 * MACS * 5 / 1e6)


def test_the_faster_of_two_measurements_is_so_rate_by_rate() -> None:
    one, other = Rates(1, {"fp32": 2.0, "int8": 5.0}, [(8, 3.0)]), Rates(1, {"fp32": 4.0, "int8": 1.0}, [(8, 2.0)])
    assert one.faster(other) == other.faster(one) == Rates(1, {"fp32": 4.0, "int8": 5.0}, [(8, 3.0)])


def test_the_floor_of_work_is_at_the_rate_of_its_precision() -> None:
    assert floor_of_work(4e6, 1, "fp32", rates(1e6, 1e12)) == Floor(4000.0, "compute")
    assert floor_of_work(4e6, 1, "int8", rates(1e6, 1e12)) == Floor(1000.0, "compute")
    assert floor_of_work(1.0, 2_000_000, "fp32", rates(1e12, 1e6)) == Floor(2000.0, "memory")


def test_rates_are_of_this_world() -> None:
    found = measure_rates(1, [1 << 20])
    assert 1e8 < found.flops_per_s["fp32"] < 1e13
    assert 1e8 < found.flops_per_s["int8"] < 1e14
    assert 1e8 < found.copy_bytes_per_s[0][1] < 1e12


def test_profile_sums_up_to_its_layers(slow: Path) -> None:
    found = profile(Bundle.open(slow), Setup(1, "fast"), Size(1, 32), runs=5)
    rows = {row.name: row for row in found.rows}
    assert sum(row.ms for row in found.rows) == pytest.approx(found.ms)
    assert sum(row.time_share for row in found.rows) == pytest.approx(1)
    assert rows["wide"].macs_share == rows["back"].bytes_share == 0.5
    assert rows["wide"].ms + rows["back"].ms > 0.3 * found.ms
    assert rows["Gather"].form is None


def test_nodes_inside_an_inlined_function_belong_to_its_layer(slow: Path) -> None:
    layers = [layer for layer in layers_of(Bundle.open(slow)) if layer.name == "wide"]
    nodes = [
        Node("", "", "Transpose", ("x",), ("_inlfunc_rows",)),
        Node("", "", "Gather", ("_inlfunc_rows", "wide.indices"), ("_inlfunc_picked",)),
        Node("", "", "Flatten", ("_inlfunc_picked",), ("_inlfunc_flat",)),
        Node("", "", "Add", ("_inlfunc_flat", "z"), ("y",)),
        Node("", "", "Softmax", ("y",), ("z2",)),
        Node("", "", "MatMul", ("z2", "val_1"), ("m",)),
        Node("", "", "Add", ("m", "wide.bias"), ("out",)),
        Node("", "", "MatMul", ("z2", "widest.weight"), ("other",)),
    ]
    assert owners(layers, nodes) == ["wide"] * 4 + [None] + ["wide"] * 2 + [None]
